"""Random networks: of the size asked for, and each as likely as any other."""

import logging
from collections import Counter

import numpy as np
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from scipy.stats import chisquare
from torch import nn

from nni_gumbel.complexity import baseline
from nni_gumbel.complexity.baseline import random_network
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.supernet.distribution import Distribution
from search_spaces.mnist import MnistSpace


class Small(ModelSpace):
    """Of 0, 12 or 16 parameters; what is drawn for 'inner' matters in one candidate only."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.Linear(2, 4), nn.Linear(4, 4, bias=False)], label="inner")
        self.outer = LayerChoice(
            {"none": nn.Identity(), "some": inner, "more": nn.Linear(3, 4, bias=False)}, label="outer"
        )
        self.free = InputChoice(3, n_chosen=2, label="free")
        self.gates = InputChoice(2, n_chosen=None, label="gates")


def drawn(space, size, tolerance, seeds):
    distribution, cost = Distribution(space), expected_parameters(space)
    return [random_network(space, distribution, cost, size, tolerance, seed) for seed in range(seeds)]


def test_every_sample_of_the_size_is_equally_likely():
    space = Small()
    # 12 or 16 parameters; 'more' stands for two samples, for it does not use 'inner'.
    networks = Counter(str(sample) for sample in drawn(space, 13, 0.3, 900))
    operations = [
        ({"outer": "some", "inner": 0}, 1),
        ({"outer": "some", "inner": 1}, 1),
        ({"outer": "more"}, 2),
    ]
    weights = {
        str({**operation, "free": free, "gates": gates}): weight
        for operation, weight in operations
        for free in ([0, 1], [0, 2], [1, 2])
        for gates in ([0], [1], [0, 1])
    }
    assert set(networks) == set(weights)
    frequencies = [networks[key] for key in weights]
    expected = 900 * np.array(list(weights.values())) / sum(weights.values())
    assert chisquare(frequencies, expected).pvalue > 1e-3


def test_a_network_of_a_large_space_is_of_the_size_and_frozen_as_counted():
    space = MnistSpace()
    networks = drawn(space, 20_000, 0.05, 8)
    sizes = [count_parameters(space.freeze(sample)) for sample in networks]
    assert all(19_000 <= size <= 21_000 for size in sizes)
    assert len({str(sample) for sample in networks}) == 8


def test_the_same_seed_draws_the_same_network():
    space = MnistSpace()
    distribution, cost = Distribution(space), expected_parameters(space)
    first, second = (random_network(space, distribution, cost, 9_000, 0.1, seed=5) for _ in range(2))
    assert first == second


def test_where_no_network_is_of_the_size_the_nearest_is_drawn_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(baseline, "DRAWS", 3_000)
    space = Small()
    with caplog.at_level(logging.WARNING):
        (sample,) = drawn(space, 100, 0.1, 1)
    assert sample["outer"] == "some" and sample["inner"] == 1
    (record,) = caplog.records
    assert "3,000 samples" in record.message and "costs 16 (-84 %)" in record.message


def test_a_space_without_parameters_has_random_networks(monkeypatch):
    monkeypatch.setattr(baseline, "DRAWS", 1_000)

    class Free(ModelSpace):
        def __init__(self):
            super().__init__()
            self.choice = LayerChoice([nn.Identity(), nn.Tanh()], label="choice")

    assert {sample["choice"] for sample in drawn(Free(), 1.0, 0.1, 20)} == {0, 1}

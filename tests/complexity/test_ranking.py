"""The networks of a space in the order of their probability, each once."""

import itertools
import math
import time

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, plans
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn

from nni_gumbel.complexity import budget
from nni_gumbel.complexity.budget import best_within, largest, ranked_within
from nni_gumbel.complexity.params import expected_parameters
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import used_part


def with_random_logits(space, seed=0, scale=1.0):
    distribution = Distribution(space)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in distribution.logits.values():
            logits.copy_(scale * torch.randn(logits.shape, generator=generator))
    return distribution


def values_of(variable):
    if not hasattr(variable, "n_chosen"):
        return list(variable.values)
    return [list(chosen) for chosen in variable.grid() if chosen]


def by_listing(space, distribution):
    """Every network with its log-probability: all samples, summed over the labels that each leaves unused."""
    probabilities = {}
    variables = space.simplify()
    log_probs = {
        label: [
            float(distribution.laws[label].log_prob(logits.detach(), distribution.outcome(label, value)))
            for value in values_of(variables[label])
        ]
        for label, logits in distribution.double().logits.items()
    }
    for chosen in itertools.product(*(enumerate(values_of(variable)) for variable in variables.values())):
        sample = {label: value for label, (_, value) in zip(variables, chosen)}
        network = tuple((label, str(value)) for label, value in used_part(space, sample).items())
        log_prob = sum(log_probs[label][index] for label, (index, _) in zip(variables, chosen))
        probabilities[network] = probabilities.get(network, 0.0) + math.exp(log_prob)
    return {network: math.log(probability) for network, probability in probabilities.items()}


def assert_ranked(space, distribution, first=None):
    expected = by_listing(space, distribution)
    ranked = list(itertools.islice(ranked_within(space, distribution, []), first))
    networks = [tuple((label, str(value)) for label, value in sample.items()) for sample, _ in ranked]
    assert len(set(networks)) == len(networks) == (first or len(expected))
    best = sorted(expected.values(), reverse=True)[: len(networks)]
    assert [log_prob for _, log_prob in ranked] == pytest.approx(best, abs=1e-6)
    log_probs = [log_prob for _, log_prob in ranked]
    assert log_probs == pytest.approx([expected[network] for network in networks], abs=1e-6)
    assert log_probs == pytest.approx(sorted(log_probs, reverse=True), abs=1e-7)


def number_of_samples(space):
    return math.prod(len(values_of(variable)) for variable in space.simplify().values())


@given(plan=plans, seed=st.integers(0, 3))
@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_the_ranking_of_a_generated_space_is_the_one_found_by_listing_it(plan, seed):
    space = GeneratedSpace(plan)
    assume(number_of_samples(space) <= 60)
    # A scale of 0: all samples are equally probable, networks are not.
    assert_ranked(space, with_random_logits(space, seed, scale=float(seed)))


class Everything(ModelSpace):
    """Nested choices, subsets, an expression as depth, a width, and labels shared across branches."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [2, 3, 4])
        deep = nni.choice("deep", [0, 1])
        self.blocks = Repeat(
            lambda i: LayerChoice(
                {"a": nn.Identity(), "b": LayerChoice([nn.Tanh(), nn.ReLU()], label=f"inner{i % 2}")},
                label=f"block{i}",
            ),
            deep * 2,
        )
        self.wide = LayerChoice([nn.Identity(), MutableLinear(2, width)], label="wide")
        self.two = InputChoice(3, n_chosen=2, label="two")
        self.some = LayerChoice(
            [nn.Identity(), Chooses(InputChoice(2, n_chosen=None, label="some"))], label="is_some"
        )
        self.again = LayerChoice(
            {"a": LayerChoice([nn.Tanh(), nn.ReLU()], label="inner0"), "b": nn.Identity()}, label="block0"
        )


class Chooses(nn.Module):
    def __init__(self, choice):
        super().__init__()
        self.choice = choice


@pytest.mark.slow
def test_the_ranking_of_a_space_with_every_primitive_is_the_one_found_by_listing_it():
    # Each network is an integer programme with a row for every one before it: all of them would take minutes.
    space = Everything()
    assert_ranked(space, with_random_logits(space, seed=0, scale=2.0), first=100)


def layers(number, candidates):
    class Layers(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                *(LayerChoice(candidates(i), label=f"layer{i}") for i in range(number))
            )

    return Layers()


def seconds_for_ten(space, distribution):
    start = time.process_time()
    networks = [str(sample) for sample, _ in itertools.islice(ranked_within(space, distribution, []), 10)]
    assert len(set(networks)) == 10
    return time.process_time() - start


def shared(number):
    """Layers whose inner choices have labels in common: no layer can be decided without the others."""
    return layers(
        number,
        lambda i: [
            LayerChoice([nn.Identity() for _ in range(3)], label=f"inner{(i + step) % number}")
            for step in (1, 3)
        ],
    )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_ten_networks_come_at_once_where_layers_share_the_labels_inside_them(scale):
    space = shared(14)
    assert seconds_for_ten(space, with_random_logits(space, scale=scale)) < 3


def test_networks_of_layers_that_share_labels_are_ranked_as_by_listing():
    space = shared(3)
    assert_ranked(space, with_random_logits(space, scale=1.0), first=12)


def test_where_the_time_is_over_a_line_says_that_no_network_was_found(monkeypatch):
    monkeypatch.setattr(budget, "MOST_SECONDS", 0.0)
    space = shared(14)
    distribution = with_random_logits(space)
    told = "space: the choices of the space depend on each other .* in 0 s; share fewer labels"
    with pytest.raises(UsageError, match=told):
        best_within(space, distribution, [])
    with pytest.raises(UsageError, match=told):
        largest(space, distribution, expected_parameters(space))


def test_ten_of_five_to_the_twentieth_equally_probable_networks_come_at_once():
    space = layers(20, lambda i: [nn.Identity() for _ in range(5)])
    assert seconds_for_ten(space, Distribution(space)) < 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_ten_networks_come_at_once_where_the_best_of_each_layer_is_not_the_likeliest_candidate(scale):
    # The likelier candidate falls apart into five networks, each less probable than the other candidate.
    def candidates(i):
        inner = LayerChoice([nn.Identity() for _ in range(5)], label=f"inner{i}")
        return {"whole": nn.Identity(), "parts": inner}

    space = layers(20, candidates)
    distribution = with_random_logits(space, scale=scale)
    with torch.no_grad():
        for i in range(20):
            distribution.logits[f"layer{i}"].add_(torch.tensor([0.0, 0.8]))
    assert seconds_for_ten(space, distribution) < 3

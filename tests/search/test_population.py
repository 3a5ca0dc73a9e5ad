"""Populations: networks with shared weights, how they are judged, and the distribution of the next ones."""

import itertools

import pytest
import torch
from budgeted_spaces import Sized
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from small_searches import Nested
from torch import nn

from nni_gumbel.complexity.budget import Limit, best_within
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.search.budgets import best_spending
from nni_gumbel.search.population import Population
from nni_gumbel.supernet.distribution import Distribution


class Several(ModelSpace):
    """Four choices of one, and gates."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(LayerChoice([nn.Identity() for _ in range(3)], label=f"layer{i}") for i in range(4))
        )
        self.gates = InputChoice(3, n_chosen=None, label="gates")


def population_of(distribution, best=None):
    return Population(distribution, best or distribution.mode)


def staged(population, loss, stages, batches=8, start=1.0, end=0.2):
    """Judge the networks of several stages by a function of each."""
    for i in range(stages):
        population.begin(start * (end / start) ** (i / max(stages - 1, 1)))
        for _ in range(batches):
            population.judge([*map(loss, population.next_judged())])
        population.end(lambda mean, network: mean)
    return population


def planted(network):
    """Additive: candidate 2 of every layer is best, and gate 1 is in and the others are not."""
    return sum(network[f"layer{i}"] != 2 for i in range(4)) + len({*network["gates"]} ^ {1})


def test_the_first_network_is_the_most_probable_one_and_the_others_are_different():
    torch.manual_seed(0)
    population = staged(population_of(distribution := Distribution(Several())), planted, 2)
    population.begin(2.0)
    assert population.networks[0] == distribution.mode()
    assert len({str(network) for network in population.networks}) == len(population.networks) > 30


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_answer_is_most_probable_behind_noise(seed):
    torch.manual_seed(seed)
    population = population_of(distribution := Distribution(Several()))
    staged(population, lambda network: planted(network) + float(torch.randn(())), 4)
    population.begin(0.2)
    assert planted(distribution.mode()) <= 1  # of 648 networks some 200 were judged; one choice may be open


def test_the_distribution_follows_what_is_judged_and_the_temperature_sharpens_it():
    torch.manual_seed(0)
    population = staged(population_of(distribution := Distribution(Several())), planted, 3)
    population.begin(1.0)
    warm = float(distribution.probs()["layer0"][2])
    population.begin(0.1)
    assert 1 / 3 < warm < float(distribution.probs()["layer0"][2])


def test_the_difference_between_batches_does_not_count():
    results = []
    for offset in (0.0, 100.0):
        torch.manual_seed(0)
        population = population_of(Distribution(Several()))
        population.begin(1.0)
        for batch in range(16):
            population.judge([planted(network) + offset * batch for network in population.next_judged()])
        population.end(lambda mean, network: mean)
        results.append(population.objectives)
    assert results[0] == pytest.approx(results[1])


def test_every_network_of_a_stage_is_trained_and_judged_in_turn():
    torch.manual_seed(0)
    population = population_of(Distribution(Several()))
    population.begin(1.0)
    size = len(population.networks)
    assert [population.network(step) for step in range(size)] == population.networks
    judged = []
    while len(judged) < size:
        judged += population.next_judged()
        population.judge([0.0] * len(population.next_judged()))
    assert judged[:size] == population.networks


def test_what_a_network_costs_is_added_to_what_it_reaches():
    torch.manual_seed(0)
    population = population_of(Distribution(Several()))
    population.begin(1.0)
    for _ in range(8):
        population.judge([1.0] * len(population.next_judged()))
    population.end(lambda mean, network: mean + 0.1 * sum(network[f"layer{i}"] for i in range(4)))
    population.begin(0.2)
    assert sum(population.networks[0][f"layer{i}"] for i in range(4)) <= 1


def test_a_stage_that_was_cut_before_anything_was_judged_does_not_count():
    population = population_of(Distribution(Several()))
    population.begin(1.0)
    population.end(lambda mean, network: mean)
    assert population.judged == []


def test_every_network_is_within_the_budget():
    torch.manual_seed(0)
    space = Sized()
    distribution = Distribution(space)
    limit = Limit("max_params", expected_parameters(space), 60)
    population = population_of(distribution, best=lambda: best_within(space, distribution, [limit]))
    # Without the budget the largest would be best.
    staged(population, lambda network: -count_parameters(Sized().freeze(network)), 2)
    assert all(count_parameters(Sized().freeze(network)) <= 60 for network in population.judged)


@pytest.mark.parametrize(
    ("outer", "inner"),
    # With the first two, HiGHS's presolve ends in a solve error; the others are decided.
    [
        ((-5.0, 5.0), (-2.85, 2.85)),
        ((5.0, -5.0), (0.64, -0.64)),
        ((30.0, -30.0), (30.0, -30.0)),
        ((-30.0, 30.0), (0, 0)),
    ],
)
def test_the_network_that_uses_most_of_a_budget_is_found_whatever_is_decided(outer, inner):
    space = Nested()
    distribution = Distribution(space)
    with torch.no_grad():
        for label, logits in {"outer": outer, "inner": inner}.items():
            distribution.logits[label].copy_(torch.tensor(logits))
    limit = Limit("max_params", expected_parameters(space), 30)
    network = best_spending(space, distribution, [limit])
    sizes = []
    for outer, inner in itertools.product(range(2), repeat=2):
        sizes.append(count_parameters(Nested().freeze({"outer": outer, "inner": inner})))
    within = max(size for size in sizes if size <= 30)
    assert count_parameters(Nested().freeze({"inner": 0, **network})) == within


def test_resumed_in_the_middle_of_a_stage_it_goes_on_as_if_never_interrupted():
    results = []
    for interrupted in (False, True):
        torch.manual_seed(3)
        distribution = Distribution(Several())
        population = staged(population_of(distribution), planted, 2)
        population.begin(0.5)
        population.judge([*map(planted, population.next_judged())])
        if interrupted:
            saved, population = population.state_dict(), population_of(distribution)
            population.load_state_dict(saved)
        population.judge([*map(planted, population.next_judged())])
        population.end(lambda mean, network: mean)
        staged(population, planted, 1)
        results.append((population.judged, population.objectives))
    assert results[0] == results[1]

"""Budgets hold, and cost as little probability as they must: against the enumeration of all networks."""

import itertools
import math
import time

import nni
import numpy as np
import pytest
import torch
import yaml
from generated_spaces import GeneratedSpace, plans
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn

from nni_gumbel.complexity import budget, programme
from nni_gumbel.complexity.budget import (
    Limit,
    best_within,
    check_feasible,
    largest,
    ranked_within,
    smallest,
)
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import ONE, ExpectedSum, Table, elementwise_maximum
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import structure_of
from search_spaces.mnist import MnistSpace

generated = settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=["programme", "bounded programme"])
def way(request, monkeypatch):
    """How the network is found: small spaces would else never need a bound in the programme."""
    if request.param == "bounded programme":
        monkeypatch.setattr(programme, "MOST_CELLS", 3)
    return request.param


def with_random_logits(distribution, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in distribution.logits.values():
            logits.copy_(scale * torch.randn(logits.shape, generator=generator))
    return distribution


def number_of_samples(space):
    return math.prod(law.outcomes for law in Distribution(space).laws.values())


def listed(space, distribution, *costs):
    """Every network once: its sample as a string, its log-probability and costs."""
    outcomes = {}
    for label, law in distribution.laws.items():
        log_probs = law.outcome_probs(distribution.logits[label].detach().double()).log().tolist()
        values = list(distribution.variables[label].values)
        outcomes[label] = []
        for index, members in enumerate(law.sets()):
            value = [values[i] for i in members]
            is_list = hasattr(distribution.variables[label], "n_chosen")
            outcomes[label].append((index, value if is_list else value[0], log_probs[index]))
    structure, networks = structure_of(space), {}
    for chosen in itertools.product(*outcomes.values()):
        everything = dict(zip(outcomes, chosen))
        used = structure.used_at({label: value for label, (_, value, _) in everything.items()})
        network = {label: everything[label] for label in outcomes if label in used}
        key = str({label: value for label, (_, value, _) in network.items()})
        if key not in networks:
            indices = {label: index for label, (index, _, _) in network.items()}
            log_prob = sum(log_prob for _, _, log_prob in network.values())
            networks[key] = (log_prob, *(cost.at(indices) for cost in costs))
    return networks


def uses(structure):
    """By label, 1 in the networks that use it and 0 in the others."""
    ways = {}

    def walk(place, presence):
        for label in place.labels:
            ways.setdefault(label, []).append(presence)
        for condition, inner in place.inner:
            walk(inner, presence * Table.of(condition.labels, np.int64(condition.holds)))

    walk(structure, ONE)
    return {label: elementwise_maximum(found) for label, found in ways.items()}


def random_cost(space, distribution, seed):
    """Random tables of one label and of two, whole numbers below 50, in the networks that use them."""
    random, labels = np.random.default_rng(seed), sorted(distribution.laws)
    used = uses(structure_of(space))
    return ExpectedSum(
        math.prod(
            (used[label] for label in pair),
            start=Table.of(
                pair, random.integers(0, 50, [distribution.laws[label].outcomes for label in pair])
            ),
        )
        for pair in [*((label,) for label in labels), *itertools.pairwise(labels)]
    )


class Everything(ModelSpace):
    """Nested choices, subsets, an expression of two labels as depth, a width, labels shared across branches."""

    def __init__(self):
        super().__init__()
        deep, more = nni.choice("deep", [0, 1]), nni.choice("more", [0, 1])
        self.blocks = Repeat(
            lambda i: LayerChoice(
                {"a": nn.Identity(), "b": LayerChoice([nn.Tanh(), nn.Linear(2, 2)], label="inner")},
                label=f"block{i}",
            ),
            deep + more,
        )
        self.wide = MutableLinear(2, nni.choice("width", [2, 3]))
        inside = [InputChoice(2, n_chosen=None, label="some"), InputChoice(3, n_chosen=2, label="two")]
        self.are_some = LayerChoice([nn.Identity(), nn.Sequential(*inside)], label="are_some")
        self.again = LayerChoice(
            {"a": LayerChoice([nn.Tanh(), nn.Linear(2, 2)], label="inner"), "b": nn.Identity()},
            label="block0",
        )


def check_against_listing(space, distribution, cost, place):
    networks = listed(space, distribution, cost)
    prices = sorted({price for _, price in networks.values()})
    assert smallest(space, distribution, cost)[0] == prices[0]
    assert largest(space, distribution, cost)[0] == prices[-1]
    maximum = prices[place % len(prices)]  # exactly the cost of a network
    limit = Limit("max_params", cost, maximum)
    inside = {network: log_prob for network, (log_prob, price) in networks.items() if price <= maximum}
    check_feasible(space, distribution, [limit])
    best = best_within(space, distribution, [limit])
    assert inside[str(best)] == pytest.approx(max(inside.values()), abs=1e-7)
    ranked = list(itertools.islice(ranked_within(space, distribution, [limit]), 6))
    assert len({str(sample) for sample, _ in ranked}) == min(6, len(inside))
    expected = sorted(inside.values(), reverse=True)[:6]
    assert [log_prob for _, log_prob in ranked] == pytest.approx(expected, abs=1e-7)
    for sample, log_prob in ranked:
        assert inside[str(sample)] == pytest.approx(log_prob, abs=1e-7)


@given(plan=plans, seed=st.integers(0, 3), place=st.integers(0, 20))
@generated
def test_the_best_network_within_a_budget_is_the_one_found_by_listing_all(way, plan, seed, place):
    space = GeneratedSpace(plan)
    assume(number_of_samples(space) <= 60)
    distribution = with_random_logits(Distribution(space), seed, scale=float(seed))
    check_against_listing(space, distribution, expected_parameters(space), place)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_space_with_every_primitive_is_as_if_all_its_networks_were_listed(way, seed):
    space = Everything()
    distribution = with_random_logits(Distribution(space), seed)
    check_against_listing(space, distribution, expected_parameters(space), place=1 + 3 * seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "seed"),
    [("programme", 0), ("programme", 1), ("bounded programme", 0)],
    indirect=["way"],
)
def test_any_sum_of_tables_is_a_cost(way, seed, monkeypatch):
    if way == "bounded programme":
        monkeypatch.setattr(programme, "MOST_CELLS", 15)  # three of the tables are larger
    space = Everything()
    distribution = with_random_logits(Distribution(space), seed)
    check_against_listing(space, distribution, random_cost(space, distribution, seed), place=4 + 3 * seed)


@pytest.mark.parametrize("seed", range(3))
def test_several_limits_hold_together(seed):
    space = Everything()
    distribution = with_random_logits(Distribution(space), seed)
    first, second = (random_cost(space, distribution, s) for s in (seed, seed + 10))
    networks = listed(space, distribution, first, second)
    # Of the networks in the cheaper half by one cost, the cheapest few by the other.
    half = sorted(price for _, price, _ in networks.values())[len(networks) // 2]
    least = sorted(price for _, price, other in networks.values() if price <= half)[3]
    limits = [Limit("max_params", first, half), Limit("max_flops", second, least * 2)]
    inside = {
        key: x for key, (x, *prices) in networks.items() if prices[0] <= half and prices[1] <= least * 2
    }
    check_feasible(space, distribution, limits)
    best = best_within(space, distribution, limits)
    assert inside[str(best)] == pytest.approx(max(inside.values()), abs=1e-7)


def layers(distribution_of, *costs):
    """A space of a few free choices with costs as they are given: one number per candidate and choice."""

    class Layers(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                *(
                    LayerChoice([nn.Identity() for _ in range(n)], label=f"layer{i:02}")
                    for i, n in enumerate(map(len, costs[0]))
                )
            )

    space = Layers()
    sums = [
        ExpectedSum(Table.of((f"layer{i:02}",), np.array(values)) for i, values in enumerate(cost))
        for cost in costs
    ]
    return space, distribution_of(Distribution(space)), *sums


def test_a_budget_that_the_mode_meets_changes_nothing():
    space = MnistSpace()
    distribution = with_random_logits(Distribution(space), 5)
    cost = expected_parameters(space)
    mode, _ = next(ranked_within(space, distribution, []))
    maximum = count_parameters(space.freeze(mode))
    assert best_within(space, distribution, [Limit("max_params", cost, maximum)]) == mode
    assert best_within(space, distribution, []) == mode
    assert best_within(space, distribution, [Limit("max_params", cost, maximum - 1)]) != mode


def test_a_budget_is_kept_to_one_part_in_a_thousand_million():
    # The solver's own tolerance, a millionth, is 3,000 here. All candidates are about as likely.
    random = np.random.default_rng(0)
    costs = random.integers(10**8, 2 * 10**8, [20, 5])
    space, distribution, cost = layers(lambda d: with_random_logits(d, 0, scale=0.01), costs)
    for maximum in random.integers(24 * 10**8, 30 * 10**8, 8).tolist():
        for sample, _ in itertools.islice(
            ranked_within(space, distribution, [Limit("max_flops", cost, maximum)]), 3
        ):
            assert sum(int(costs[i, choice]) for i, choice in enumerate(sample.values())) <= maximum
    exact, network = smallest(space, distribution, cost)
    assert exact == costs.min(1).sum()
    only = best_within(space, distribution, [Limit("max_flops", cost, exact)])
    assert only == network == {f"layer{i:02}": int(k) for i, k in enumerate(costs.argmin(1))}


def test_the_same_network_is_found_at_every_call_also_among_equals():
    space, distribution, cost = layers(lambda d: d, np.ones([12, 3]) * [3, 2, 1])
    limit = Limit("max_params", cost, 20)
    assert len({str(best_within(space, distribution, [limit])) for _ in range(3)}) == 1


@pytest.mark.slow
@given(seed=st.integers(0, 50))
@generated
def test_the_best_network_is_never_less_probable_within_a_larger_budget(seed):
    space = MnistSpace()
    distribution = with_random_logits(Distribution(space), seed)
    cost = expected_parameters(space)
    log_probs = [
        next(ranked_within(space, distribution, [Limit("max_params", cost, maximum)]))[1]
        for maximum in (910, 2_000, 5_000, 9_000, 20_000, 40_000, 79_310)
    ]
    assert log_probs == sorted(log_probs)


@given(seed=st.integers(0, 50))
@generated
def test_with_fixed_losses_of_candidates_the_cost_of_the_optimum_never_rises_with_its_weight(seed):
    random = np.random.default_rng(seed)
    losses, costs = random.normal(size=[6, 5]), random.integers(0, 100, [6, 5])
    found = []
    for weight in (0.0, 0.003, 0.01, 0.03, 0.1, 1.0):

        def decided(distribution, weight=weight):
            with torch.no_grad():
                for i, logits in enumerate(distribution.logits.values()):
                    logits.copy_(torch.from_numpy(-losses[i] - weight * costs[i]))
            return distribution

        space, distribution, cost = layers(decided, costs)
        outcomes = best_within(space, distribution, [])
        found.append(cost.at(outcomes))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_the_mnist_space_takes_well_under_a_second(share):
    space = MnistSpace()
    cost = expected_parameters(space)
    maximum = int(share * largest(space, Distribution(space), cost)[0])
    for seed in range(3):
        distribution = with_random_logits(Distribution(space), seed)
        start = time.process_time()
        network = best_within(space, distribution, [Limit("max_params", cost, maximum)])
        assert time.process_time() - start < 1  # about 0.01 s
        assert count_parameters(space.freeze(network)) <= maximum


def test_a_budget_below_the_smallest_network_is_refused_with_its_cost():
    space = MnistSpace()
    distribution, cost = Distribution(space), expected_parameters(space)
    with pytest.raises(UsageError) as refused:
        check_feasible(space, distribution, [Limit("max_params", cost, 900)])
    assert str(refused.value) == (
        "max_params: 900 is below the smallest network of the space, which has 910 parameters; give at least 910"
    )
    with pytest.raises(UsageError, match="max_params: 900 is below"):
        best_within(space, distribution, [Limit("max_params", cost, 900)])
    assert not list(itertools.islice(ranked_within(space, distribution, [Limit("max_params", cost, 900)]), 1))


def test_limits_that_only_together_are_met_by_no_network_are_refused_together():
    space, distribution, first, second = layers(
        lambda d: d, [[1, 2], [1, 2]], [[1_000.5, 10.123456], [1_000.5, 10.123456]]
    )
    limits = [Limit("max_params", first, 3), Limit("max_latency_ms", second, 1_000)]
    with pytest.raises(UsageError) as refused:
        check_feasible(space, distribution, limits)
    assert str(refused.value) == (
        "max_latency_ms: 1000 is met by no network within max_params: 3, where the smallest has 1011 ms; "
        "give at least 1011 or raise max_params"
    )
    check_feasible(
        space, distribution, [Limit("max_params", first, 3), Limit("max_latency_ms", second, 1011)]
    )


@pytest.fixture
def unknown_to_the_programme(monkeypatch):
    """A cost of 0 in one network, the least probable one, and of more than 10 in all others, and the limit 9.

    The programme sees the table of three choices as one of two, so that 5 networks seem to be within the limit.
    """
    monkeypatch.setattr(programme, "MOST_CELLS", 5)
    logits = torch.arange(5.0)

    def decided(distribution):
        with torch.no_grad():
            for values in distribution.logits.values():
                values.copy_(logits)
        return distribution

    space, distribution, single = layers(decided, [range(5)] * 3)
    together = np.full([5, 5, 5], 10)
    together[0, 0, 0] = 0
    cost = ExpectedSum([*single.tables, Table.of(("layer00", "layer01", "layer02"), together)])
    return space, distribution, Limit("max_params", cost, 9)


def test_a_network_that_the_programme_knows_a_bound_of_is_found_all_the_same(
    unknown_to_the_programme, caplog
):
    space, distribution, limit = unknown_to_the_programme
    assert set(best_within(space, distribution, [limit]).values()) == {0}
    assert smallest(space, distribution, limit.cost)[0] == 0
    assert largest(space, distribution, limit.cost)[0] == 22
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1_000_000, "1000000"),
        (1e22, "10000000000000000000000"),
        (1010.623, "1011"),
        (123_456.7, "123500"),
        (0.000123456, "0.0001235"),
        (0.001, "0.001"),
        (5e-324, None),
        (1.5e300, None),
    ],
)
def test_a_number_in_an_error_can_be_typed_in_yaml_and_is_no_smaller(value, text):
    told = budget._number(value)
    assert text is None or told == text
    typed = yaml.safe_load(f"max_latency_ms: {told}")["max_latency_ms"]
    assert isinstance(typed, (int, float))
    assert typed == value or (0 < value < typed < 1.001 * value)

"""The one-standard-error rule: simple enough, never worse than it may be, and blind to the test part."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.results.choice import Network, TrainedRun, choose

results = st.floats(0, 1)
costs = st.integers(1, 5)
tests = st.none() | st.floats(0, 1)


@st.composite
def networks(draw):
    found = []
    for index in range(draw(st.integers(1, 5))):
        values = draw(st.lists(st.tuples(results, tests), min_size=1, max_size=4))
        runs = tuple(TrainedRun(f"t{index}{seed}", seed, *value) for seed, value in enumerate(values))
        size = draw(st.none() | st.integers(1, 1000))
        found.append(Network(f"network-{index + 1}", {}, {}, draw(costs), draw(costs), runs, size))
    return found


def network(name, validations, parameters=100, flops=100, size=None):
    runs = tuple(TrainedRun(f"{name}-{seed}", seed, value, None) for seed, value in enumerate(validations))
    return Network(name, {}, {}, parameters, flops, runs, size)


modes = st.sampled_from(["maximize", "minimize"])
metrics = st.sampled_from(["acc", "val_accuracy", "loss"])


@given(networks(), metrics, modes)
def test_the_chosen_network_is_never_more_complex_than_the_best(found, metric, mode):
    choice = choose(found, metric, mode)
    assert (choice.network.parameters, choice.network.flops) <= (choice.best.parameters, choice.best.flops)


@given(networks(), metrics, modes)
def test_the_chosen_network_is_the_least_complex_within_one_standard_error(found, metric, mode):
    choice = choose(found, metric, mode)
    best = choice.best.validation_mean
    pick = max if mode == "maximize" else min
    assert best == pick(network.validation_mean for network in found)
    near = [n for n in found if abs(n.validation_mean - best) <= choice.standard_error]
    assert choice.network in near
    assert choice.network.parameters == min(n.parameters for n in near)


@given(networks(), metrics, modes, st.data())
def test_permuted_test_results_leave_the_choice_alone(found, metric, mode, data):
    permuted = data.draw(st.permutations([run.test for network in found for run in network.runs]))
    others = iter(permuted)
    shuffled = [replace(n, runs=tuple(replace(r, test=next(others)) for r in n.runs)) for n in found]
    before, after = choose(found, metric, mode), choose(shuffled, metric, mode)
    assert (before.network.name, before.run.seed, before.reason) == (
        after.network.name,
        after.run.seed,
        after.reason,
    )


@given(networks(), metrics, st.data())
def test_minimizing_is_maximizing_the_negative(found, metric, data):
    negative = [
        replace(n, runs=tuple(replace(r, validation=-r.validation) for r in n.runs), validation_size=None)
        for n in found
    ]
    plain = [replace(n, validation_size=None) for n in found]
    one, other = choose(plain, metric, "maximize"), choose(negative, metric, "minimize")
    assert (one.network.name, one.run.seed) == (other.network.name, other.run.seed)


def test_the_standard_error_is_at_least_that_of_a_proportion():
    choice = choose([network("n", [0.9, 0.9, 0.9], size=1000)], "acc", "maximize")
    assert choice.standard_error == pytest.approx(math.sqrt(0.9 * 0.1 / 1000))


def test_seeds_that_scatter_more_than_a_proportion_decide_the_standard_error():
    choice = choose([network("n", [0.8, 0.9, 1.0], size=1000)], "acc", "maximize")
    assert choice.standard_error == pytest.approx(0.1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("metric", "size", "value"), [("loss", 100, 0.5), ("acc", None, 0.5), ("acc", 100, 1.5)]
)
def test_what_is_no_proportion_of_a_known_part_has_only_its_seeds(metric, size, value):
    assert choose([network("n", [value], size=size)], metric, "maximize").standard_error == 0


def test_ties_in_parameters_are_decided_by_flops():
    found = [network("big", [0.91], flops=300, size=100), network("small", [0.90], flops=200, size=100)]
    choice = choose(found, "acc", "maximize")
    assert choice.network.name == "small"
    assert "200 FLOPs" in choice.reason and "\n" not in choice.reason


def test_ties_in_complexity_are_decided_by_validation():
    found = [network("worse", [0.90], size=100), network("better", [0.91], size=100)]
    assert choose(found, "acc", "maximize").network.name == "better"


@pytest.mark.parametrize(("mode", "seed"), [("maximize", 1), ("minimize", 2)])
def test_the_weights_are_those_of_the_best_seed_on_validation(mode, seed):
    assert choose([network("n", [0.5, 0.7, 0.4, 0.7, 0.4])], "loss", mode).run.seed == seed


def test_a_simpler_network_beyond_one_standard_error_is_not_chosen():
    found = [network("good", [0.99], size=1000), network("tiny", [0.90], parameters=1, size=1000)]
    choice = choose(found, "acc", "maximize")
    assert choice.network.name == "good"
    assert "no simpler network" in choice.reason


def test_a_mean_over_tests_needs_a_test_of_every_seed():
    runs = (TrainedRun("a", 0, 0.5, 0.6), TrainedRun("b", 1, 0.5, None))
    some = replace(network("n", [0.5]), runs=runs)
    assert some.test_mean is None and some.test_std is None
    every = replace(some, runs=tuple(replace(run, test=0.6 + 0.1 * run.seed) for run in runs))
    assert every.test_mean == pytest.approx(0.65)
    assert every.test_std == pytest.approx(0.1 / math.sqrt(2))


def priced(name, **costs):
    return replace(network(name, [0.9], size=100), **costs)


@pytest.mark.parametrize(
    ("price", "cheap", "dear", "words"),
    [
        ("latency", {"table_latency_ms": 2.0, "parameters": 900}, {"table_latency_ms": 9.0}, "2 ms"),
        ("latency", {"latency_ms": 2.0, "parameters": 900}, {"latency_ms": 9.0}, "2 ms"),
        ("flops", {"flops": 200, "parameters": 900}, {"flops": 900}, "200 FLOPs"),
        ("cost", {"own_cost": -1.5, "parameters": 900}, {"own_cost": 7.0}, "a cost of -1.5"),
        ("params", {"parameters": 90, "flops": 900}, {}, "90 parameters"),
    ],
)
def test_of_equal_networks_the_one_wins_that_costs_less_of_what_the_experiment_prices(
    price, cheap, dear, words
):
    found = [replace(priced("dear", **dear), runs=network("dear", [0.91]).runs), priced("cheap", **cheap)]
    choice = choose(found, "acc", "maximize", price)
    assert choice.network.name == "cheap" and choice.best.name == "dear"
    assert f"cheap has {words}" in choice.reason


def test_a_network_whose_price_could_not_be_told_is_the_dearest():
    found = [priced("unknown", parameters=1), priced("known", table_latency_ms=9.0)]
    assert choose(found, "acc", "maximize", "latency").network.name == "known"


def test_equal_prices_are_decided_by_parameters_and_then_by_flops():
    found = [priced("large", own_cost=1.0, parameters=101), priced("small", own_cost=1.0)]
    assert choose(found, "acc", "maximize", "cost").network.name == "small"


def test_sizes_are_those_of_what_is_exported_without_unreachable_layers():
    found = [priced("whole", parameters=90), priced("pruned", pruned_parameters=80, pruned_flops=50)]
    choice = choose(found, "acc", "maximize")
    assert choice.network.name == "pruned" and choice.best.name == "pruned"
    better = replace(found[0], runs=network("whole", [0.91]).runs)
    assert "pruned has 80 parameters" in choose([better, found[1]], "acc", "maximize").reason


def test_no_network_is_an_error():
    with pytest.raises(ValueError, match="no trained network"):
        choose([], "acc", "maximize")


# -- stability, and the decision in words --------------------------------------------------------------------


def stable(name, stability, parameters, validation=0.9):
    found = network(name, [validation] * 2, parameters=parameters, size=100)
    return replace(found, runs=tuple(replace(run, stability=stability) for run in found.runs))


def test_the_cheapest_network_is_not_chosen_if_it_is_less_stable_than_the_median():
    found = [stable("small", 0.4, 10), stable("middle", 0.6, 20), stable("large", 0.7, 30)]
    choice = choose(found, "acc", "maximize")
    assert choice.network.name == "middle"
    assert "Its stability 0.6 is not below the median 0.6" in choice.reason
    assert "that of small is" in choice.reason


def test_of_two_networks_none_is_below_the_lower_median():
    found = [stable("small", 0.4, 10), stable("large", 0.7, 30)]
    assert choose(found, "acc", "maximize").network.name == "small"


def test_the_median_is_of_the_networks_that_are_near_the_best():
    far = [stable(f"far-{n}", 0.9, 5, validation=0.5) for n in range(3)]
    found = [*far, stable("small", 0.4, 10), stable("large", 0.4, 30)]
    assert choose(found, "acc", "maximize").network.name == "small"


def test_a_stability_that_is_not_known_is_not_held_against_a_network():
    found = [stable("unknown", None, 5), stable("small", 0.4, 10), stable("a", 0.6, 20), stable("b", 0.7, 30)]
    assert choose(found, "acc", "maximize").network.name == "unknown"


@pytest.mark.parametrize(
    ("rule", "name"), [("cheapest", "small"), ("best", "best"), ("cheapest-stable", "a")]
)
def test_the_rule_says_what_is_chosen_by(rule, name):
    found = [
        stable("small", 0.4, 10),
        stable("a", 0.6, 20),
        stable("b", 0.7, 30),
        stable("best", 0.8, 40, 0.91),
    ]
    choice = choose(found, "acc", "maximize", rule=rule)
    assert choice.network.name == name and name in choice.reason


def test_the_decision_is_written_out_candidate_by_candidate():
    found = [
        stable("far", 0.9, 5, validation=0.5), stable("small", 0.4, 10), stable("a", 0.6, 20), stable("b", 0.7, 30)
    ]  # fmt: skip
    decisions = choose(found, "acc", "maximize").decisions
    assert [network for network, _ in decisions] == found
    far, small, a, b = (words for _, words in decisions)
    assert far.startswith("out: acc 0.5 is further than one standard error")
    assert small == "out: stability 0.4 is below the median 0.6 of those near the best"
    assert a == "chosen: 20 parameters, the least of those that are left"
    assert b == "not chosen: 30 parameters, not less than a"

"""Every value that NNI's samplers could give is enumerated, or the person is told how to draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nni.algorithms.hpo.random_tuner import suggest
from nni.common.hpo_utils import deformat_parameters, format_search_space

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.combinations import combinations
from nni_gumbel.pipeline.settings import ExperimentSettings

SETTINGS = ExperimentSettings()


def space_of(**specs):
    return {name: {"_type": kind, "_value": value} for name, (kind, value) in specs.items()}


@pytest.mark.parametrize("space", [None, {}])
def test_an_empty_space_is_one_combination(space):
    assert combinations(space, SETTINGS) == [{}]


def test_every_combination_comes_once_in_the_order_written():
    space = space_of(
        learning_rate=("choice", [0.01, 0.1, 0.01]),
        batch_size=("randint", [3, 5]),
        temperature_start=("quniform", [1, 2, 1]),
    )
    found = combinations(space, SETTINGS)
    assert len(found) == 2 * 2 * 2
    assert found[0] == {"learning_rate": 0.01, "batch_size": 3, "temperature_start": 1}
    assert found[1] == {"learning_rate": 0.01, "batch_size": 3, "temperature_start": 2}
    assert found[-1] == {"learning_rate": 0.1, "batch_size": 4, "temperature_start": 2}
    assert found == combinations(space, SETTINGS)


def test_quniform_gives_whole_numbers_to_settings_that_count():
    assert combinations(space_of(train_epochs=("quniform", [5, 15, 5])), SETTINGS) == [
        {"train_epochs": epochs} for epochs in (5, 10, 15)
    ]


positive = st.integers(1, 400).map(lambda value: value / 100)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.tuples(positive, positive)
        .filter(lambda v: v[0] < v[1])
        .map(lambda v: ("randint", [v[0] * 3, v[1] * 3 + 1])),
        st.tuples(positive, positive, positive)
        .filter(lambda v: v[0] < v[1])
        .map(lambda v: ("quniform", list(v))),
    )
)
def test_enumeration_has_exactly_what_the_sampler_of_nni_gives(spec):
    # temperature_start takes ints and floats; with so low an end, every positive value is allowed
    name = "batch_size" if spec[0] == "randint" else "temperature_start"
    enumerated = {
        each[name]
        for each in combinations(space_of(**{name: spec}), SETTINGS.with_values({"temperature_end": 1e-6}))
    }
    space = format_search_space(space_of(**{name: spec}))
    generator = np.random.default_rng(0)
    draws = {float(f"{deformat_parameters(suggest(generator, space), space)[name]:.12g}") for _ in range(200)}
    assert draws <= enumerated
    if len(enumerated) <= 4 and spec[0] == "randint":
        assert draws == enumerated


@pytest.mark.parametrize("kind", ["uniform", "loguniform", "normal", "qloguniform", "qnormal", "strange"])
def test_other_types_are_refused_with_the_remedy(kind):
    with pytest.raises(UsageError, match=rf"searchSpace\.learning_rate: the type '{kind}'.*samples: N"):
        combinations(space_of(learning_rate=(kind, [0.1, 0.2, 0.1])), SETTINGS)


def test_a_budget_is_swept_and_may_be_left_out_of_a_combination():
    space = space_of(max_params=("choice", [None, 1000, 2000]), max_latency_ms=("quniform", [0.5, 1.0, 0.5]))
    settings = ExperimentSettings.from_flat({})
    found = combinations(space, settings)
    assert [each["max_params"] for each in found] == [None, None, 1000, 1000, 2000, 2000]
    budgets = [settings.with_values(each).search for each in found]
    assert [each.max_latency_ms for each in budgets] == [0.5, 1] * 3
    # With a budget, what the structure costs is not priced as well, unless a person asks for it.
    assert {each.cost_weight for each in budgets} == {0.0}
    with pytest.raises(UsageError, match="searchSpace: max_params: 0 is out of range"):
        combinations(space_of(max_params=("choice", [0])), SETTINGS)


def test_samples_draw_distinct_combinations_that_the_seed_decides():
    space = space_of(learning_rate=("loguniform", [1e-4, 1e-1]), train_epochs=("quniform", [5, 50, 5]))
    drawing = SETTINGS.with_values({"samples": 7})
    found = combinations(space, drawing)
    assert len({tuple(each.values()) for each in found}) == 7
    assert all(1e-4 <= each["learning_rate"] <= 1e-1 and each["train_epochs"] % 5 == 0 for each in found)
    assert found == combinations(space, drawing)
    assert found != combinations(space, drawing.with_values({"seed": 1}))


def test_samples_of_a_small_space_are_no_more_than_it_has():
    found = combinations(space_of(batch_size=("choice", [16, 32])), SETTINGS.with_values({"samples": 9}))
    assert sorted(each["batch_size"] for each in found) == [16, 32]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            space_of(learning_rat=("choice", [0.1])),
            ["searchSpace.learning_rat:", "did you mean learning_rate?"],
        ),
        (space_of(seed=("choice", [1])), ["searchSpace.seed:", "no setting that can be varied"]),
        (space_of(metric=("choice", ["loss"])), ["searchSpace.metric:"]),
        ({"learning_rate": [0.1, 0.2]}, ["searchSpace.learning_rate:", "[0.1, 0.2]", "_type and _value"]),
        (["learning_rate"], ["searchSpace:", "mapping"]),
        (space_of(learning_rate=("choice", [])), ["searchSpace.learning_rate:", "[]"]),
        (space_of(learning_rate=("quniform", [1, 2])), ["searchSpace.learning_rate:", "[1, 2]", "quniform"]),
        (
            space_of(learning_rate=("quniform", [0.1, 0.2, 0])),
            ["searchSpace.learning_rate:", "[low, high, step]"],
        ),
        (space_of(batch_size=("randint", [5, 2])), ["searchSpace.batch_size:", "[5, 2]", "lower < upper"]),
        (space_of(batch_size=("randint", ["a", 2])), ["searchSpace.batch_size:", "'a'"]),
        (
            space_of(batch_size=("randint", [1, 10**9])),
            ["searchSpace:", "999999999 combinations", "samples: N"],
        ),
        (space_of(learning_rate=("quniform", [0, 1, 1e-9])), ["searchSpace:", "combinations", "samples: N"]),
        (
            space_of(learning_rate=("choice", [0.1, -1])),
            ["searchSpace: learning_rate:", "-1", "greater than 0"],
        ),
        (
            space_of(learning_rate=("choice", [{"_name": "a"}])),
            ["searchSpace: learning_rate:", "not a number"],
        ),
        (space_of(batch_size=("quniform", [1, 2, 0.5])), ["searchSpace: batch_size:", "1.5", "whole number"]),
    ],
)
def test_a_wrong_space_is_one_line_with_field_value_and_remedy(space, words):
    with pytest.raises(UsageError) as caught:
        combinations(space, SETTINGS)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("value", [["a", "b"], [2, 1], [1], [-1, 1]])
def test_a_space_that_cannot_be_sampled_is_one_line(value):
    with pytest.raises(UsageError, match="searchSpace"):
        combinations(space_of(learning_rate=("loguniform", value)), SETTINGS.with_values({"samples": 2}))

"""Every combination of the values in `searchSpace` is tried once, and what is no choice is told in one line."""

import pytest

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.plan import combinations
from nni_gumbel.pipeline.settings import ExperimentSettings

SETTINGS = ExperimentSettings()


def choices(**values):
    return {name: {"_type": "choice", "_value": value} for name, value in values.items()}


@pytest.mark.parametrize("space", [None, {}])
def test_an_empty_space_is_one_combination(space):
    assert combinations(space, SETTINGS) == [{}]


def test_every_combination_comes_once_in_the_order_written():
    space = choices(learning_rate=[0.01, 0.1, 0.01], batch_size=[3, 4], temperature_start=[1, 1.0, 2])
    found = combinations(space, SETTINGS)
    assert len(found) == 2 * 2 * 2
    assert found[0] == {"learning_rate": 0.01, "batch_size": 3, "temperature_start": 1}
    assert found[1] == {"learning_rate": 0.01, "batch_size": 3, "temperature_start": 2}
    assert found[-1] == {"learning_rate": 0.1, "batch_size": 4, "temperature_start": 2}


def test_a_budget_is_swept_and_may_be_left_out_of_a_combination():
    found = combinations(choices(max_params=[None, 1000, 2000], max_latency_ms=[0.5, 1.0]), SETTINGS)
    assert [each["max_params"] for each in found] == [None, None, 1000, 1000, 2000, 2000]
    budgets = [SETTINGS.with_values(each).search for each in found]
    assert [each.max_latency_ms for each in budgets] == [0.5, 1] * 3
    with pytest.raises(UsageError, match="searchSpace: max_params: 0 is out of range"):
        combinations(choices(max_params=[0]), SETTINGS)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (choices(learning_rat=[0.1]), ["searchSpace.learning_rat:", "did you mean learning_rate?"]),
        (choices(seed=[1]), ["searchSpace.seed:", "no setting that can be varied"]),
        (choices(metric=["loss"]), ["searchSpace.metric:"]),
        ({"learning_rate": [0.1, 0.2]}, ["searchSpace.learning_rate:", "[0.1, 0.2]", "_type: choice"]),
        (["learning_rate"], ["searchSpace:", "mapping"]),
        (choices(learning_rate=[]), ["searchSpace.learning_rate:", "[]"]),
        ({"learning_rate": {"_type": "uniform", "_value": [0, 1]}}, ["'uniform'", "_type: choice"]),
        (choices(batch_size=[*range(1, 1002)]), ["searchSpace:", "1001 combinations", "shorten it"]),
        (choices(learning_rate=[0.1, -1]), ["searchSpace: learning_rate:", "-1", "greater than 0"]),
        (choices(learning_rate=[{"_name": "a"}]), ["searchSpace: learning_rate:", "not a number"]),
    ],
)
def test_a_wrong_space_is_one_line_with_field_value_and_remedy(space, words):
    with pytest.raises(UsageError) as caught:
        combinations(space, SETTINGS)
    assert all(word in str(caught.value) for word in words), str(caught.value)

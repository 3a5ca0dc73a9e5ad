"""Every setting is known by one flat name, has a range, and a wrong one is told in one line."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import VARIED_NAMES, ExperimentSettings, settings_table
from nni_gumbel.pipeline.task import Task
from nni_gumbel.search.settings import BUDGETS, SearchSettings

DEFAULTS = ExperimentSettings()


def test_flat_values_make_the_same_settings_again():
    assert ExperimentSettings.from_flat(DEFAULTS.flat()) == DEFAULTS
    assert ExperimentSettings.from_flat(None) == DEFAULTS


def test_names_of_the_search_reach_the_search():
    settings = ExperimentSettings.from_flat({"temperature_start": 5.0, "train_epochs": 4})
    assert (settings.search.temperature_start, settings.train_epochs) == (5.0, 4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rat": 0.1}, ["learning_rat:", "did you mean learning_rate?"]),
        ({"temprature_start": 1.0}, ["temprature_start:", "did you mean temperature_start?"]),
        ({"xyzzy": 1}, ["xyzzy:", "optimize_mode"]),
        ({"search": {}}, ["search:", "no such setting"]),
        ({"search_epochs": 0}, ["search_epochs:", "0", "at least 1"]),
        ({"search_epochs": 2.5}, ["search_epochs:", "2.5", "whole number"]),
        ({"train_epochs": "ten"}, ["train_epochs:", "'ten'", "whole number"]),
        ({"train_seeds": True}, ["train_seeds:", "True", "whole number"]),
        ({"learning_rate": 0}, ["learning_rate:", "0", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate:", "nan", "greater than 0"]),
        ({"weight_decay": -1e-4}, ["weight_decay:", "-0.0001", "at least 0"]),
        ({"optimize_mode": "max"}, ["optimize_mode:", "'max'", "maximize, minimize"]),
        ({"metric": "val_acc"}, ["metric:", "'val_acc'", "without `val_`"]),
        ({"metric": 3}, ["metric:", "3", "word"]),
        ({"samples": 0}, ["samples:", "0", "at least 1"]),
        ({"attempts": None}, ["attempts:", "None", "whole number"]),
        ({"temperature_end": 0}, ["temperature_end:", "0", "greater than 0"]),
        ({"temperature_start": 0.01}, ["temperature_start:", "0.01", "temperature_end", "0.1"]),
        ({"warmup_epochs": 3, "search_epochs": 3}, ["warmup_epochs:", "3", "at most 2"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_field_value_and_remedy(values, words):
    with pytest.raises(UsageError) as caught:
        ExperimentSettings.from_flat(values)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


@given(
    st.dictionaries(
        st.sampled_from(sorted(DEFAULTS.flat())), st.sampled_from([None, -1, 0, 1, 50, 0.5, "acc", True])
    )
)
def test_whatever_a_person_writes_gives_settings_or_one_line(values):
    try:
        settings = ExperimentSettings.from_flat(values)
    except UsageError as error:
        assert str(error)
    else:
        budget = any(values.get(name) is not None for name in BUDGETS)
        assert settings.flat() == DEFAULTS.flat() | ({"cost_weight": 0.0} if budget else {}) | values


def test_values_of_a_combination_are_checked_as_a_whole():
    assert DEFAULTS.with_values({"train_epochs": 7}).train_values()["train_epochs"] == 7
    with pytest.raises(UsageError, match="warmup_epochs"):
        DEFAULTS.with_values({"warmup_epochs": DEFAULTS.search_epochs})


def test_a_trial_is_told_what_it_needs_and_no_more():
    search, train = DEFAULTS.search_values(), DEFAULTS.train_values()
    assert {spec.name for spec in dataclasses.fields(SearchSettings)} < set(search)
    assert "train_epochs" in train and "train_epochs" not in search
    assert "temperature_start" not in train
    for values in (search, train, DEFAULTS.export_values()):
        assert values["metric"] == "acc" and values["optimize_mode"] == "maximize"
        assert not {"attempts", "samples", "seed", "search_seeds", "train_seeds"} & set(values)


def test_a_search_space_may_vary_neither_seeds_nor_the_judgement():
    assert {"learning_rate", "temperature_start", "train_epochs"} <= set(VARIED_NAMES)
    assert not {"seed", "train_seeds", "metric", "optimize_mode", "samples", "attempts"} & set(VARIED_NAMES)


def test_the_table_has_every_setting_once():
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(DEFAULTS.flat())
    assert all(row.count("|") == 5 for row in rows)


def test_a_preset_that_is_varied_fills_in_its_own_values():
    settings = ExperimentSettings.from_flat({"preset": "gdas", "temperature_end": 0.5})
    varied = settings.with_values({"preset": "darts", "temperature_end": 1.0})
    assert settings.search.estimator == "straight-through-gumbel" and settings.search.temperature_end == 0.5
    assert varied.search.estimator == "probabilities"
    assert ExperimentSettings.from_flat(settings.flat()).search == settings.search


def test_a_prior_by_label_reaches_a_trial_through_json_as_it_was_given():
    prior = {"layer": {3: 0.25, 5: 1}, "inputs": {"0": 2.0}}
    settings = ExperimentSettings().with_values({"prior": prior})
    parameters = Task("search", 0, 1, settings.search_values()).parameters()
    received = Task.from_parameters(json.loads(json.dumps(parameters)))
    assert ExperimentSettings.from_flat(received.settings).search == SearchSettings(prior=prior)

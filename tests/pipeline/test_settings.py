"""Every setting is known by one flat name, has a range, and a wrong one is told in one line."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import (
    VARIED_NAMES,
    ExperimentSettings,
    setting_rows,
    settings_markdown,
)
from nni_gumbel.pipeline.task import Task
from nni_gumbel.search.settings import COUPLINGS, PRESETS, SearchSettings

DEFAULTS = ExperimentSettings()
ROOT = Path(__file__).parent.parent.parent


def settings_or_none(values):
    try:
        return ExperimentSettings.from_flat(values)
    except UsageError:
        return None


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
        ({"attempts": None}, ["attempts:", "None", "whole number"]),
        ({"temperature_end": 0}, ["temperature_end:", "0", "greater than 0"]),
        ({"temperature_start": 0.01}, ["temperature_start:", "0.01", "temperature_end", "0.4"]),
        ({"warmup_epochs": 3, "search_epochs": 3}, ["warmup_epochs:", "3", "at most 2"]),
        ({"optimizer": "lion"}, ["optimizer:", "lion", "adamw"]),
        ({"trainer": "fast"}, ["trainer:", "fast", "accumulate_grad_batches"]),
        ({"trainer": {"callbacks": []}}, ["trainer:", "callbacks", "--evaluator"]),
        ({"trainer": {"max_epochs": 3}}, ["trainer:", "max_epochs", "search_epochs"]),
        ({"trainer": {"logger": False}}, ["trainer:", "logger", "--logger"]),
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
        assert settings.flat() == DEFAULTS.flat() | values


def test_values_of_a_combination_are_checked_as_a_whole():
    assert DEFAULTS.with_values({"train_epochs": 7}).train_values()["train_epochs"] == 7
    with pytest.raises(UsageError, match="warmup_epochs"):
        DEFAULTS.with_values({"warmup_epochs": DEFAULTS.search_epochs})


def test_a_trial_is_told_what_it_needs_and_no_more():
    search, train = DEFAULTS.search_values(), DEFAULTS.train_values()
    assert set(SearchSettings.model_fields) < set(search)
    assert "train_epochs" in train and "train_epochs" not in search
    assert "temperature_start" not in train
    for values in (search, train, DEFAULTS.export_values()):
        assert values["metric"] == "acc" and values["optimize_mode"] == "maximize"
        assert not {"attempts", "seed", "search_seeds", "train_seeds"} & set(values)


def test_a_search_space_may_vary_neither_seeds_nor_the_judgement():
    assert {"learning_rate", "temperature_start", "train_epochs"} <= set(VARIED_NAMES)
    assert not {"seed", "train_seeds", "metric", "optimize_mode", "attempts"} & set(VARIED_NAMES)


def test_every_setting_is_either_basic_or_for_experts():
    names = [row[0] for basic in (True, False) for row in setting_rows(basic)]
    assert sorted(names) == sorted(DEFAULTS.flat())
    assert {"search_epochs", "max_params", "cost_weight"} <= {row[0] for row in setting_rows(basic=True)}


def test_every_row_of_the_markdown_tables_has_as_many_cells_as_its_head():
    rows = [line for line in settings_markdown().splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6, 3}


@pytest.mark.parametrize("path", ["experiment.yml", "examples/mnist.yml", "examples/cifar10.yml"])
def test_what_our_own_experiments_set_is_basic(path):
    config = yaml.safe_load((ROOT / path).read_text())
    given = {*config["tuner"]["classArgs"], *config["searchSpace"]}
    assert given <= {row[0] for row in setting_rows(basic=True)}


def test_settings_that_refuse_each_others_values_share_the_word_of_a_coupling():
    coupled = {
        row[0]: set(row[4].split(", ")) - {""} for basic in (True, False) for row in setting_rows(basic)
    }
    assert set().union(*coupled.values()) == set(COUPLINGS)
    values = ["linear", "probabilities", "gdas", "darts", 0.05, 2, 8, 9]
    alone = [(name, value) for name in coupled for value in values if settings_or_none({name: value})]
    refused = {
        frozenset((one, other))
        for (one, value), (other, other_value) in itertools.combinations(alone, 2)
        if one != other and settings_or_none({one: value, other: other_value}) is None
    }
    assert {"search_epochs", "warmup_epochs"} in refused
    assert [pair for pair in refused if not set.intersection(*(coupled[name] for name in pair))] == []


def test_what_a_preset_fills_in_is_coupled_with_it():
    coupled = {row[0] for basic in (True, False) for row in setting_rows(basic) if "preset" in row[4]}
    assert coupled == {"preset"}.union(*PRESETS.values())


def test_a_preset_that_is_varied_fills_in_its_own_values():
    settings = ExperimentSettings.from_flat({"preset": "gdas", "temperature_end": 1.0})
    varied = settings.with_values({"preset": "darts", "temperature_end": 1.0})
    assert settings.search.estimator == "straight-through-gumbel" and settings.search.temperature_end == 1.0
    assert varied.search.estimator == "probabilities"
    assert ExperimentSettings.from_flat(settings.flat()).search == settings.search


def test_a_prior_by_label_reaches_a_trial_through_json_as_it_was_given():
    prior = {"layer": {3: 0.25, 5: 1}, "inputs": {"0": 2.0}}
    settings = ExperimentSettings().with_values({"prior": prior})
    parameters = Task("search", 0, 1, settings.search_values()).parameters()
    received = Task.from_parameters(json.loads(json.dumps(parameters)))
    assert ExperimentSettings.from_flat(received.settings).search == SearchSettings(prior=prior)

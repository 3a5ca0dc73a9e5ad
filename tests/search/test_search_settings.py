"""Settings of a search: each wrong type or range is one line with field, value and remedy."""

import json

import pytest
from pydantic import ValidationError
from small_searches import OneCandidate

from nni_gumbel.errors import UsageError
from nni_gumbel.search.settings import PRESETS, SearchSettings, without_effect
from nni_gumbel.search.strategy import GumbelSearch


def test_the_defaults_are_valid():
    SearchSettings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature_start", 0, "greater than 0"),
        ("temperature_start", "hot", "not a number"),
        ("arc_learning_rate", "1e-3", "YAML reads 1e-3 as text; write 0.001 instead"),
        ("temperature_end", -1.0, "greater than 0"),
        ("temperature_end", float("nan"), "greater than 0"),
        ("temperature_schedule", "cubic", "one of linear, exponential, cosine"),
        ("warmup_epochs", -1, "at least 0"),
        ("warmup_epochs", 1.5, "not a whole number"),
        ("warmup_epochs", True, "not a whole number"),
        ("arc_learning_rate", 0.0, "greater than 0"),
        ("cost_weight", -0.1, "at least 0"),
        ("entropy_weight_end", float("inf"), "any"),
        ("gradient_clip_val", -1.0, "at least 0"),
        ("preset", "enas", "one of none, gradual, darts, snas, gdas"),
        ("preset", ["darts"], "not a word"),
        ("estimator", "hard", "one of soft, straight-through"),
        ("cost", "time", "one of params, flops, latency"),
        ("max_params", 0, "at least 1"),
        ("max_params", 1e4, "not a whole number"),
        ("max_flops", "many", "not a whole number"),
        ("max_latency_ms", 0.0, "greater than 0"),
        ("max_latency_ms", "1e-1", "YAML reads 1e-1 as text; write 0.1 instead"),
        ("kl_weight", -1.0, "at least 0"),
        ("prior", "flat", "'flat' is no distribution; give uniform, cost, or a mapping"),
        ("prior", 3, "not a word"),
        ("prior", {}, "{} is no distribution; give uniform, cost"),
        ("prior", "[1]", "[1] is no distribution; give uniform, cost"),
        ("prior", {"layer": 0.5}, "'layer', 0.5 is no distribution"),
        ("prior", {"layer": {"conv": -0.5}}, "'layer', 'conv', -0.5 is no distribution"),
        ("prior", {"layer": {"conv": float("nan")}}, "'layer', 'conv', nan is no distribution"),
        ("prior", {"layer": {"conv": 0, "pool": 0}}, "one above 0 for each label"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(name, value, words):
    with pytest.raises(UsageError) as caught:
        SearchSettings(**{name: value})
    line = str(caught.value)
    assert line.startswith(f"{name}: ") and words in line and "\n" not in line


def test_a_temperature_that_would_rise_is_refused():
    with pytest.raises(UsageError, match="temperature_start: 0.5 is below temperature_end"):
        SearchSettings(temperature_start=0.5, temperature_end=1.0)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(
        UsageError, match="temperature_stat: there is no such setting; did you mean temperature_st"
    ):
        SearchSettings(temperature_stat=1.0)


@pytest.mark.parametrize("gone", ["level", "samples_per_step", "batches_per_step", "logits_clip_val"])
def test_a_setting_of_an_earlier_version_is_refused_as_any_unknown_name(gone):
    with pytest.raises(UsageError, match=f"^{gone}: there is no such setting"):
        SearchSettings(**{gone: 1})


def test_a_preset_fills_in_what_is_not_given():
    known = SearchSettings(preset="darts")
    assert known.estimator == "probabilities"
    assert known.temperature_start == known.temperature_end == 1.0
    assert known.entropy_weight_end == 0.0 and known.cost_weight == SearchSettings().cost_weight


def test_what_is_given_wins_over_a_preset_even_where_it_is_the_default():
    values = {
        "temperature_start": 3.0,
        "temperature_end": 3.0,
        "estimator": "soft",
        "entropy_weight_end": 0.1,
    }
    given = SearchSettings(preset="darts", **values)
    assert values.items() <= vars(given).items() and given.stages == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_made_from_all_values_of_others_are_the_same(preset):
    settings = SearchSettings(preset=preset, warmup_epochs=2)
    assert SearchSettings(**vars(settings)) == settings


def test_a_latency_may_be_whole_and_a_budget_may_be_left_out():
    assert SearchSettings(max_latency_ms=2).max_latency_ms == 2
    assert SearchSettings(max_params=None).max_params is None


def test_a_prior_by_label_is_kept_as_text_that_means_the_same_everywhere():
    prior = {"layer": {3: 0.25, 5: 1}, "input": {"0": 1.0}}
    settings = SearchSettings(prior=prior)
    assert json.loads(settings.prior) == {"layer": {"3": 0.25, "5": 1.0}, "input": {"0": 1.0}}
    assert SearchSettings(prior=settings.prior) == settings
    assert SearchSettings(prior=dict(reversed(prior.items()))) == settings


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        SearchSettings().estimator = "probabilities"


@pytest.mark.parametrize(
    ("given", "own", "told"),
    [
        ({"cost": "flops", "max_params": 10}, False, ["cost: 'flops' has no effect"]),
        ({"cost": "latency", "max_latency_ms": 1.0}, False, ["cost: 'latency' has no effect"]),
        ({"cost": "flops", "max_params": 10, "cost_weight": 0.0}, False, ["cost: 'flops' has no effect"]),
        ({"max_params": 10}, True, ["cost: the function has no effect"]),
        ({"max_params": 10}, False, []),  # nobody named a cost
        ({"cost": "flops"}, False, ["cost: 'flops' has no effect"]),
        ({"cost": "flops", "cost_weight": 0.1}, False, []),
        ({"cost": "flops", "max_params": 10, "cost_weight": 0.1}, False, []),
        ({"cost": "flops", "max_params": 10, "prior": "cost", "kl_weight": 0.1}, False, []),
        ({"prior": "cost"}, False, ["prior: 'cost' has no effect"]),
        ({"prior": {"layer": {"a": 1.0}}}, False, ["prior: that by label has no effect"]),
    ],
)
def test_a_setting_that_is_given_and_plays_no_part_is_told(given, own, told):
    lines = without_effect(SearchSettings(**given), own)
    assert [line.partition(" on the search")[0] for line in lines] == told


def test_it_is_told_where_the_search_is_built(caplog):
    with caplog.at_level("WARNING", logger="nni_gumbel"):
        GumbelSearch(cost=lambda sample: 1.0, max_params=100).mutate_model(OneCandidate())
    assert "cost: the function has no effect on the search" in caplog.text
    caplog.clear()
    GumbelSearch(cost=lambda sample: 1.0, max_params=100, cost_weight=1.0).mutate_model(OneCandidate())
    assert "no effect" not in caplog.text

"""Settings of a search: each wrong type or range is one line with field, value and remedy."""

import pytest

from nni_gumbel.errors import UsageError
from nni_gumbel.search.settings import SearchSettings


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
        ("temperature_schedule", "cubic", "one of constant, linear, exponential, cosine"),
        ("warmup_epochs", -1, "at least 0"),
        ("warmup_epochs", 1.5, "not a whole number"),
        ("warmup_epochs", True, "not a whole number"),
        ("arc_learning_rate", 0.0, "greater than 0"),
        ("cost_weight", -0.1, "at least 0"),
        ("entropy_weight_end", float("inf"), "any"),
        ("gradient_clip_val", -1.0, "at least 0"),
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


def test_a_constant_schedule_needs_equal_ends():
    SearchSettings(temperature_schedule="constant", temperature_start=1.0, temperature_end=1.0)
    with pytest.raises(UsageError, match="'constant' needs"):
        SearchSettings(temperature_schedule="constant", temperature_start=2.0, temperature_end=1.0)

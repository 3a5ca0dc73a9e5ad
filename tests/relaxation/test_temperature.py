"""Schedules start and end exactly where they say, and fall in between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import linear, progress_of, temperature_at

FALLING = ["linear", "exponential", "cosine"]


@given(
    steps=st.integers(2, 300),
    end=st.floats(1e-3, 10),
    factor=st.floats(1, 100),
    schedule=st.sampled_from(FALLING),
)
def test_a_schedule_falls_from_its_start_to_its_end_exactly(steps, end, factor, schedule):
    start = end * factor
    path = [temperature_at(progress_of(step, steps), start, end, schedule) for step in range(steps)]
    assert path[0] == start and path[-1] == end
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(path, path[1:]))


def test_a_search_of_one_step_is_at_its_end():
    assert temperature_at(progress_of(0, 1), 3.0, 0.1, "linear") == 0.1


@pytest.mark.parametrize("schedule", FALLING)
def test_between_equal_ends_the_temperature_stays(schedule):
    assert temperature_at(0.7, 0.3, 0.3, schedule) == 0.3


def test_the_exponential_schedule_halves_at_equal_distances():
    path = [temperature_at(progress, 8.0, 1.0, "exponential") for progress in (0, 1 / 3, 2 / 3, 1)]
    assert path == pytest.approx([8, 4, 2, 1])


def test_steps_after_the_last_stay_at_the_end():
    assert progress_of(500, 100) == 1.0


def test_a_weight_may_rise_from_below_zero():
    assert [linear(-1.0, 1.0, p) for p in (0, 0.5, 1)] == [-1.0, 0.0, 1.0]


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(UsageError, match="'cubic' is unknown"):
        temperature_at(0.5, 2.0, 1.0, "cubic")

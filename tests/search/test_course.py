"""The course of a search: stages, then finalists trained alone."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.search.course import SHORTEST, Kind, segments, steps_for, warn_if_short

STEPS = st.integers(1, 20_000)
WANTED = st.tuples(st.integers(1, 20), st.integers(1, 30))  # stages, finalists
ORDER = ["stage", "finalist"]


def kinds(course):
    return [segment.kind.value for segment in course]


@given(STEPS, WANTED)
def test_segments_follow_each_other_from_the_first_step_to_the_last(steps, wanted):
    course = segments(steps, *wanted)
    assert course[0].first == 0 and course[-1].end == steps
    assert all(one.end == following.first for one, following in zip(course, course[1:]))
    assert all(segment.end > segment.first for segment in course)


@given(STEPS, WANTED)
def test_stages_come_before_finalists_and_none_beyond_what_is_wanted(steps, wanted):
    found = kinds(segments(steps, *wanted))
    assert found == sorted(found, key=ORDER.index)
    assert all(found.count(kind) <= most for kind, most in zip(ORDER, wanted))


@given(st.integers(2, 20_000), WANTED)
def test_from_two_steps_on_there_is_one_of_each(steps, wanted):
    assert {*kinds(segments(steps, *wanted))} == {*ORDER}


def test_a_search_of_one_step_is_a_stage():
    assert kinds(segments(1, 7, 8)) == ["stage"]


@given(STEPS, WANTED)
def test_where_there_are_several_of_a_kind_each_is_long_enough_to_say_something(steps, wanted):
    course = segments(steps, *wanted)
    for kind in (Kind.STAGE, Kind.FINALIST):
        lengths = [segment.end - segment.first for segment in course if segment.kind is kind]
        assert len(lengths) < 2 or min(lengths) >= SHORTEST - 1  # boundaries are rounded to whole steps


@given(WANTED)
def test_a_search_of_the_length_that_is_needed_has_all_of_them(wanted):
    found = kinds(segments(steps_for(*wanted) + SHORTEST, *wanted))
    assert tuple(found.count(kind) for kind in ORDER) == wanted


@given(STEPS, WANTED)
def test_every_stage_and_finalist_is_judged_at_its_end(steps, wanted):
    for segment in segments(steps, *wanted):
        assert segment.judges(segment.end - 1)


def test_the_first_steps_of_a_stage_are_the_weights_alone():
    stage, *_ = segments(4000, 3, 4)
    assert not stage.judges(stage.first)
    judged = [stage.judges(step) for step in range(stage.first, stage.end)]
    assert judged == sorted(judged)  # from one step on, to the end


def test_a_search_that_is_too_short_for_all_of_them_says_how_long_it_should_be(caplog):
    wanted = (9, 20)
    found = kinds(short := segments(100, *wanted))
    with caplog.at_level(logging.WARNING):
        warn_if_short(segments(steps_for(*wanted) + SHORTEST, *wanted), *wanted)
        assert not caplog.text
        warn_if_short(short, *wanted)
    told = "so there are {} and {}".format(*(found.count(kind) for kind in ORDER))
    assert f"100 steps are too few for 9 and 20, {told}" in caplog.text
    assert f"about {steps_for(*wanted)} steps" in caplog.text


def test_all_stages_are_one_training_and_each_finalist_is_one():
    course = segments(4000, 3, 2)
    first, second, third = [one for one in course if one.kind is Kind.STAGE]
    assert all((one.begun, one.over) == (one.first, one.end) for one in course if one.kind is not Kind.STAGE)
    assert first.begins_training and not second.begins_training and not third.begins_training
    assert first.trained(first.first) == 0 and third.trained(third.end) == 1
    assert first.trained(first.end) == second.trained(second.first)


def test_the_first_stage_has_twice_the_length_of_another():
    first, second, third = [one for one in segments(4000, 3, 4) if one.kind is Kind.STAGE]
    assert first.end - first.first == pytest.approx(2 * (second.end - second.first), abs=2)
    assert second.end - second.first == pytest.approx(third.end - third.first, abs=1)

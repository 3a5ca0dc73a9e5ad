"""The course of a search: rounds, finalists trained alone, and the network found."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.search.course import SHORTEST, Kind, segments, steps_for, warn_if_short

STEPS, ROUNDS, FINALISTS = st.integers(1, 20_000), st.integers(1, 10), st.integers(1, 30)


def kinds(course):
    return [segment.kind.value for segment in course]


@given(STEPS, ROUNDS, FINALISTS)
def test_segments_follow_each_other_from_the_first_step_to_the_last(steps, rounds, finalists):
    course = segments(steps, rounds, finalists)
    assert course[0].first == 0 and course[-1].end == steps
    assert all(one.end == following.first for one, following in zip(course, course[1:]))
    assert all(segment.end > segment.first for segment in course)


@given(STEPS, ROUNDS, FINALISTS)
def test_rounds_come_first_then_finalists_then_the_network_found_and_none_beyond_what_is_wanted(
    steps, rounds, finalists
):
    found = kinds(segments(steps, rounds, finalists))
    assert found == sorted(found, key=["round", "finalist", "found"].index) and found.count("found") == 1
    assert found.count("round") <= rounds and found.count("finalist") <= finalists


@given(st.integers(3, 20_000), ROUNDS, FINALISTS)
def test_from_three_steps_on_there_is_one_of_each(steps, rounds, finalists):
    assert {*kinds(segments(steps, rounds, finalists))} == {"round", "finalist", "found"}


def test_the_shortest_searches_do_without():
    assert kinds(segments(1, 6, 20)) == ["found"]
    assert kinds(segments(2, 6, 20)) == ["round", "found"]


@given(STEPS, ROUNDS, FINALISTS)
def test_where_there_are_several_rounds_or_finalists_each_is_long_enough_to_say_something(
    steps, rounds, finalists
):
    course = segments(steps, rounds, finalists)
    for kind in (Kind.ROUND, Kind.FINALIST):
        lengths = [segment.end - segment.first for segment in course if segment.kind is kind]
        assert len(lengths) < 2 or min(lengths) >= SHORTEST - 1  # boundaries are rounded to whole steps


@given(ROUNDS, FINALISTS)
def test_a_search_of_the_length_that_is_needed_has_all_of_them(rounds, finalists):
    found = kinds(segments(steps_for(rounds, finalists) + SHORTEST, rounds, finalists))
    assert (found.count("round"), found.count("finalist")) == (rounds, finalists)


@given(STEPS, ROUNDS, FINALISTS)
def test_every_round_gathers_at_its_end_and_every_finalist_is_judged_at_its_end(steps, rounds, finalists):
    for segment in segments(steps, rounds, finalists):
        last = segment.end - 1
        assert segment.gathers(last) is (segment.kind is Kind.ROUND)
        assert segment.judges(last) is (segment.kind is Kind.FINALIST)


def test_the_first_steps_of_a_round_are_the_weights_alone_and_a_finalist_is_judged_when_it_has_learned():
    first, *_, finalist, _ = segments(4000, 2, 3)
    assert not first.gathers(first.first) and not finalist.judges(finalist.first)
    steps = range(first.first, first.end)
    gathered = [first.gathers(step) for step in steps]
    assert gathered == sorted(gathered)  # from one step on, to the end


def test_a_search_that_is_too_short_for_all_of_them_says_how_long_it_should_be(caplog):
    found = kinds(short := segments(100, 6, 20))
    with caplog.at_level(logging.WARNING):
        warn_if_short(segments(steps_for(6, 20), 6, 20), 6, 20)
        assert not caplog.text
        warn_if_short(short, 6, 20)
    told = f"so there are {found.count('round')} and {found.count('finalist')}"
    assert f"100 steps are too few for 6 and 20, {told}" in caplog.text
    assert f"about {steps_for(6, 20)} steps" in caplog.text


@pytest.mark.parametrize("place", [0.0, 0.5])
def test_the_place_in_a_segment_counts_from_its_own_first_step(place):
    segment = segments(4000, 2, 3)[3]
    assert segment.place(segment.first + int(place * (segment.end - segment.first))) == pytest.approx(
        place, abs=1e-3
    )

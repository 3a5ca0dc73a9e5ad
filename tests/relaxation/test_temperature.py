"""Schedules start and end exactly where they say, and fall in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.subset import KSubset
from nni_gumbel.relaxation.temperature import (
    linear,
    progress_of,
    relaxed_entropy,
    temperature_at,
    temperature_following_entropy,
)

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


def test_a_constant_schedule_stays():
    assert temperature_at(0.7, 2.0, 2.0, "constant") == 2.0


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


# -- the schedule that follows a target entropy -----------------------------------------------

UNDECIDED = [(Categorical(3), torch.zeros(3)), (Categorical(5), torch.zeros(5))]
MIXED = [
    (Categorical(4), torch.tensor([1.0, 0.0, -1.0, 0.5])),
    (KSubset(4, 2), torch.tensor([2.0, 1.0, 0.0, -1.0])),
    (OpenSubset(3), torch.tensor([0.3, -0.2, 0.1])),
]


def relaxed_samples_entropy(logits, temperature):
    """By another way: the mean relative entropy of many Gumbel-softmax samples of their own noise."""
    noise = -torch.empty(20_000, len(logits), dtype=torch.float64).exponential_().log()
    sample = torch.softmax((logits.double() + noise) / temperature, -1)
    return float((torch.special.entr(sample).sum(-1) / torch.tensor(len(logits)).log()).mean())


def test_the_entropy_of_relaxed_samples_is_what_the_samples_themselves_have():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    for temperature in (0.3, 1.0, 3.0):
        expected = relaxed_samples_entropy(logits, temperature)
        # 32 noise vectors: a standard error of about 0.25 / sqrt(32).
        assert relaxed_entropy([(Categorical(4), logits)], temperature) == pytest.approx(expected, abs=0.12)


@given(end=st.floats(0.01, 1), factor=st.floats(1, 100), progress=st.floats(0, 1), scale=st.floats(0, 20))
@settings(deadline=None, max_examples=50)
def test_it_stays_between_its_end_and_its_start(end, factor, progress, scale):
    choices = [(law, scale * logits) for law, logits in MIXED]
    assert end <= temperature_following_entropy(progress, end * factor, end, choices) <= end * factor


def test_it_starts_and_ends_exactly_where_it_says_whatever_the_logits():
    for scale in (0, 1, 50):
        choices = [(law, scale * logits) for law, logits in MIXED]
        assert temperature_following_entropy(0.0, 3.0, 0.1, choices) == 3.0
        assert temperature_following_entropy(1.0, 3.0, 0.1, choices) == 0.1


def test_at_undecided_logits_it_falls_and_the_entropy_falls_on_a_line():
    path = [temperature_following_entropy(p, 3.0, 0.1, UNDECIDED) for p in (0, 0.25, 0.5, 0.75, 1)]
    entropies = [relaxed_entropy(UNDECIDED, temperature) for temperature in path]
    assert path == sorted(path, reverse=True)
    steps = [later - earlier for earlier, later in zip(entropies, entropies[1:])]
    assert steps == pytest.approx([steps[0]] * 4, abs=1e-4) and steps[0] < -0.1


def test_it_is_hotter_where_the_logits_have_committed_more():
    temperatures = [
        temperature_following_entropy(0.5, 3.0, 0.1, [(law, scale * logits) for law, logits in MIXED])
        for scale in (0.5, 1.0, 2.0, 4.0)
    ]
    assert temperatures == sorted(temperatures) and temperatures[0] < 0.9 * temperatures[-1]


def test_it_takes_its_highest_temperature_where_no_temperature_is_hot_enough():
    decided = [(Categorical(3), torch.tensor([50.0, 0.0, -50.0]))]
    assert temperature_following_entropy(0.5, 3.0, 0.1, decided) == pytest.approx(3.0, rel=1e-5)


def test_it_is_a_function_of_the_logits_alone():
    first, _, second = (
        temperature_following_entropy(0.4, 3.0, 0.1, MIXED),
        torch.rand(100),
        temperature_following_entropy(0.4, 3.0, 0.1, MIXED),
    )
    state = torch.get_rng_state()
    temperature_following_entropy(0.4, 3.0, 0.1, MIXED)
    assert first == second and torch.equal(state, torch.get_rng_state())

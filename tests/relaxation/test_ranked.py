"""Outcomes come in the order of their probability, each once."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.ranked import ranked_outcomes
from nni_gumbel.relaxation.subset import KSubset


def all_outcomes(law):
    sizes = {Categorical: [1], KSubset: [getattr(law, "k", 0)], OpenSubset: range(1, law.size + 1)}[type(law)]
    return [subset for size in sizes for subset in itertools.combinations(range(law.size), size)]


@st.composite
def laws_and_logits(draw):
    size = draw(st.integers(1, 6))
    law = draw(
        st.sampled_from([Categorical(size), OpenSubset(size), *(KSubset(size, k + 1) for k in range(size))])
    )
    # Some logits are equal, some are 0.
    logits = draw(st.lists(st.sampled_from([-3.5, -1.0, 0.0, 0.25, 1.0, 2.0]), min_size=size, max_size=size))
    return law, torch.tensor(logits)


@given(drawn=laws_and_logits())
@settings(deadline=None, max_examples=200)
def test_every_outcome_comes_once_and_the_more_probable_first(drawn):
    law, logits = drawn
    ranked = list(ranked_outcomes(law, logits))
    assert sorted(ranked) == sorted(all_outcomes(law))
    scores = [math.fsum(float(logits[i]) for i in outcome) for outcome in ranked]
    assert scores == sorted(scores, reverse=True)


@given(drawn=laws_and_logits())
@settings(deadline=None, max_examples=100)
def test_the_first_outcome_is_as_probable_as_the_mode(drawn):
    law, logits = drawn
    first = torch.zeros(law.size)
    first[list(next(ranked_outcomes(law, logits)))] = 1
    assert float(law.log_prob(logits, first)) == pytest.approx(
        float(law.log_prob(logits, law.mode(logits))), abs=1e-5
    )


@pytest.mark.parametrize("law", [KSubset(60, 30), OpenSubset(60)])
def test_the_first_of_more_outcomes_than_can_be_listed_come_at_once(law):
    logits = torch.linspace(-1, 2, 60)
    assert len(set(itertools.islice(ranked_outcomes(law, logits), 100))) == 100

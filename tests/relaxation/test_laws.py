"""Every law agrees with the enumeration of its outcomes: what it reports, and what it draws."""

import math

import pytest
import torch
from enumeration import LAWS, LOGITS, all_outcomes, candidates_in, counts, probabilities, slots
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.subset import KSubset

every_law = pytest.mark.parametrize("law", LAWS, ids=str)
# Sums of up to 15 terms in float64.
EXACT = dict(rtol=1e-12, atol=1e-12)


@st.composite
def laws_with_logits(draw):
    law = draw(st.sampled_from(LAWS))
    return law, torch.tensor(
        draw(st.lists(st.floats(-50, 50), min_size=law.size, max_size=law.size)), dtype=torch.float64
    )


@given(case=laws_with_logits())
@settings(deadline=None, max_examples=100)
def test_marginals_and_log_probabilities_are_those_of_the_enumeration(case):
    law, logits = case
    outcomes, p = all_outcomes(law), probabilities(law, logits)
    assert torch.allclose(law.probs(logits), p @ outcomes, **EXACT)
    assert torch.allclose(law.log_partition(logits), torch.logsumexp(outcomes @ logits, 0), **EXACT)
    assert torch.allclose(law.log_prob(logits, outcomes).exp(), p, **EXACT)


@given(case=laws_with_logits())
@settings(deadline=None, max_examples=100)
def test_the_entropy_is_that_of_the_enumeration(case):
    law, logits = case
    p = probabilities(law, logits)
    # A difference of numbers up to 250: 1e-13 of those is left.
    assert law.entropy(logits).item() == pytest.approx(-torch.special.xlogy(p, p).sum().item(), abs=1e-11)
    assert law.entropy(logits) >= 0


@every_law
def test_at_equal_logits_of_zero_every_outcome_is_equally_likely(law):
    zeros = torch.zeros(law.size)
    assert law.outcomes == len(all_outcomes(law))
    assert law.entropy(zeros).item() == pytest.approx(math.log(law.outcomes), abs=1e-6)


@every_law
def test_the_exact_draw_is_the_mean_of_all_draws(law):
    logits = LOGITS[: law.size]
    p = probabilities(law, logits)
    mean = sum(p[i] * slots(law, outcome) for i, outcome in enumerate(all_outcomes(law)))
    assert torch.allclose(law.exact(logits), mean, **EXACT)
    assert torch.allclose(candidates_in(law, law.exact(logits)), law.probs(logits), **EXACT)


@every_law
def test_a_hard_draw_is_its_outcome(law):
    outcomes = all_outcomes(law)
    assert torch.equal(law.hard(outcomes), torch.stack([slots(law, outcome) for outcome in outcomes]))
    assert torch.equal(candidates_in(law, law.hard(outcomes)), outcomes)


@given(case=laws_with_logits())
@settings(deadline=None, max_examples=100)
def test_the_mode_is_the_most_probable_outcome(case):
    law, logits = case
    assert torch.isclose(
        law.log_prob(logits, law.mode(logits)), law.log_prob(logits, all_outcomes(law)).max(), **EXACT
    )


@pytest.mark.parametrize(
    "law, logits, mode",
    [
        (Categorical(3), [0.0, 1.0, 1.0], [0, 1, 0]),
        (KSubset(4, 2), [1.0, 2.0, 1.0, 1.0], [1, 1, 0, 0]),
        (OpenSubset(3), [-1.0, -1.0, -2.0], [1, 0, 0]),
        (OpenSubset(3), [0.0, 2.0, 0.0], [0, 1, 0]),
    ],
)
def test_ties_go_to_the_lowest_index_and_to_the_closed_gate(law, logits, mode):
    assert law.mode(torch.tensor(logits)).tolist() == mode


@every_law
def test_derivatives_of_all_that_is_reported_are_right(law):
    logits = LOGITS[: law.size].clone().requires_grad_()
    outcome = all_outcomes(law)[-1]
    for function in (
        law.log_partition,
        law.probs,
        law.exact,
        law.entropy,
        lambda theta: law.log_prob(theta, outcome),
    ):
        assert torch.autograd.gradcheck(function, logits)
    # Twice: the entropy may be part of a loss that is differentiated through a step.
    assert torch.autograd.gradgradcheck(law.entropy, logits)


@every_law
def test_draws_follow_the_law(law):
    logits = LOGITS[: law.size]
    drawn = law.draw(logits.expand(100_000, -1), torch.Generator().manual_seed(0))
    expected = probabilities(law, logits) * len(drawn)
    # One set of draws in a thousand would fail by chance; the seed is fixed.
    assert law.outcomes == 1 or chisquare(counts(law, drawn), expected).pvalue > 1e-3


@every_law
def test_relaxed_samples_follow_the_law_once_rounded(law):
    logits = LOGITS[: law.size]
    sample = candidates_in(
        law, law.relaxed(logits.expand(100_000, -1), 0.5, torch.Generator().manual_seed(1))
    )
    rounded = (sample > 0.5).long() if isinstance(law, OpenSubset) else law.mode(sample)
    expected = probabilities(law, logits) * len(sample)
    assert law.outcomes == 1 or chisquare(counts(law, rounded), expected).pvalue > 1e-3


@every_law
def test_a_relaxed_sample_rounds_to_the_outcome_it_was_given(law):
    outcomes = all_outcomes(law).repeat(200, 1)
    for temperature in (1e-3, 1.0, 1e3):
        sample = candidates_in(law, law.soft(LOGITS[: law.size], outcomes, temperature))
        inside = sample.masked_fill(outcomes == 0, torch.inf).amin(-1)
        outside = sample.masked_fill(outcomes == 1, -torch.inf).amax(-1)
        assert (inside >= outside).all()
        if isinstance(law, OpenSubset):
            assert (inside >= 0.5).all() and (outside <= 0.5).all()


@every_law
def test_a_relaxed_sample_tends_to_the_outcome_as_the_temperature_tends_to_zero(law):
    outcomes = all_outcomes(law).repeat(1 + 1000 // law.outcomes, 1)
    gap = (law.soft(LOGITS[: law.size], outcomes, 1e-4) - law.hard(outcomes)).abs().flatten(1).amax(-1)
    # Noise comes within 1e-3 of a tie about once in a thousand draws; there the limit is slower.
    assert gap.median() < 1e-12 and (gap > 1e-4).double().mean() < 0.01


@every_law
def test_a_relaxed_sample_tends_to_even_weights_as_the_temperature_grows(law):
    outcomes = all_outcomes(law).repeat(1 + 100 // law.outcomes, 1)
    even = 0.5 if isinstance(law, OpenSubset) else law.least / law.size
    weights = candidates_in(law, law.soft(LOGITS[: law.size], outcomes, 1e4))
    assert torch.allclose(weights, torch.full_like(weights, even), atol=0.01)


@every_law
def test_a_batch_is_its_rows(law):
    batch = torch.randn(2, 3, law.size, dtype=torch.float64)
    outcomes = all_outcomes(law)[0].expand(2, 3, -1)
    for function in (
        law.log_partition,
        law.probs,
        law.exact,
        law.mode,
        law.entropy,
        lambda theta: law.log_prob(theta, outcomes[0, 0]),
    ):
        assert torch.allclose(function(batch)[1, 2], function(batch[1, 2]), **EXACT)
    assert law.draw(batch).shape == batch.shape
    assert law.relaxed(batch, 1.0).shape == law.exact(batch).shape


@every_law
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_have_the_dtype_of_the_logits(law, dtype):
    logits = LOGITS[: law.size].to(dtype)
    outcome = law.draw(logits)
    results = [
        outcome,
        law.mode(logits),
        law.hard(outcome),
        law.exact(logits),
        law.probs(logits),
        law.entropy(logits),
        law.log_partition(logits),
        law.log_prob(logits, outcome),
        law.relaxed(logits, 1.0),
    ]
    assert {result.dtype for result in results} == {dtype}


@every_law
def test_a_generator_of_its_own_decides_the_draw_and_leaves_the_global_one_alone(law):
    logits, state = LOGITS[: law.size], torch.get_rng_state()
    first, second = (
        law.relaxed(logits.expand(10, -1), 1.0, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Categorical(0), "size: 0 candidates"),
        (lambda: KSubset(3, 0), "k: 0 of 3"),
        (lambda: KSubset(3, 4), "k: 4 of 3 candidates is impossible; give 1 to 3"),
    ],
)
def test_an_impossible_law_is_refused(build, message):
    with pytest.raises(UsageError, match=message):
        build()


@every_law
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(law, temperature):
    logits = LOGITS[: law.size]
    with pytest.raises(UsageError, match=r"temperature: .* is not positive and finite; give"):
        law.relaxed(logits, temperature)


@every_law
def test_the_probabilities_of_all_outcomes_are_those_of_their_sets(law):
    logits = LOGITS[: law.size].clone().requires_grad_()
    listed = [tuple(outcome.nonzero().flatten().tolist()) for outcome in all_outcomes(law)]
    expected = dict(zip(listed, probabilities(law, LOGITS[: law.size]).tolist()))
    found = law.outcome_probs(logits)
    assert dict(zip(law.sets(), found.tolist())) == pytest.approx(expected)
    assert torch.autograd.gradcheck(law.outcome_probs, logits)


@every_law
def test_the_index_of_an_outcome_is_its_position_among_all_sets(law):
    assert [law.index_of(members) for members in law.sets()] == list(range(law.outcomes))

"""k of n: the subset is drawn exactly, weights sum to k at every temperature, slots are in order."""

import pytest
import torch
from enumeration import LOGITS, all_outcomes, candidates_in
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_gumbel.relaxation.subset import KSubset

FOUR = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)


def test_the_marginals_are_those_of_the_exact_law_not_of_gumbel_top_k():
    # Gumbel-top-k would give 0.926, 0.695, 0.273, 0.105.
    assert KSubset(4, 2).probs(FOUR).tolist() == pytest.approx([0.881, 0.694, 0.306, 0.119], abs=5e-4)


@given(
    size=st.integers(1, 8),
    data=st.data(),
    log_temperature=st.floats(-3, 3),
)
@settings(deadline=None, max_examples=150)
def test_at_every_temperature_weights_lie_in_0_1_and_sum_to_k(size, data, log_temperature):
    law = KSubset(size, data.draw(st.integers(1, size)))
    logits = torch.tensor(
        data.draw(st.lists(st.floats(-50, 50), min_size=size, max_size=size)), dtype=torch.float64
    )
    slots = law.relaxed(logits, 10**log_temperature)
    weights = candidates_in(law, slots)
    # Logits over temperature reach 1e5, of which float64 keeps 1e-11.
    assert torch.allclose(slots.sum(-1), torch.ones(law.k, dtype=torch.float64), atol=1e-12)
    assert weights.sum().item() == pytest.approx(law.k, abs=1e-12)
    assert (slots >= 0).all() and (weights <= 1 + 1e-9).all()


def test_a_slot_holds_only_candidates_that_leave_room_for_the_others():
    slots = KSubset(5, 3).exact(LOGITS)
    room = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(slots > 0, room)


def test_one_of_n_is_the_softmax():
    assert torch.allclose(KSubset(4, 1).probs(FOUR), torch.softmax(FOUR, 0), rtol=1e-14)


def test_all_of_n_are_certain_and_their_logits_have_no_gradient():
    logits = FOUR.clone().requires_grad_()
    law = KSubset(4, 4)
    sample = law.relaxed(logits, 0.7)
    assert torch.equal(sample, torch.eye(4, dtype=torch.float64))
    (sample * torch.randn(4, 4)).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(4, dtype=torch.float64))


def test_the_members_of_the_subset_have_the_largest_weights_at_every_temperature():
    law = KSubset(5, 2)
    outcomes = all_outcomes(law).repeat(100, 1)
    for temperature in (0.01, 1.0, 100.0):
        weights = candidates_in(law, law.soft(10 * LOGITS, outcomes, temperature))
        assert torch.equal(law.mode(weights), outcomes)


def test_the_gradient_of_a_relaxed_sample_does_not_die_out_as_the_temperature_falls():
    law, logits = KSubset(4, 2), FOUR.expand(20_000, -1).clone().requires_grad_()
    draw = candidates_in(law, law.relaxed(logits, 0.05))
    (gradient,) = torch.autograd.grad(draw[:, 1].sum(), logits)
    (exact,) = torch.autograd.grad(law.probs(logits)[0, 1], logits)
    # The bias at low temperature is a fraction of the gradient; a constant lift of 1 would leave 1e-7 of it.
    assert gradient.mean(0)[1].item() == pytest.approx(exact[0, 1].item(), rel=0.3)


def test_eighteen_of_twenty_in_one_pass():
    law = KSubset(20, 18)
    logits = torch.linspace(-50, 50, 20, requires_grad=True)
    law.relaxed(logits, 1e-3).square().sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert law.outcomes == 190

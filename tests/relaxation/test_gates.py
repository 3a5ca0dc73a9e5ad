"""Open subsets: gates with logistic noise that agrees with the hard outcome, and never none open."""

import pytest
import torch
from enumeration import LOGITS, all_outcomes
from scipy.special import expit
from scipy.stats import kstest, logistic

from nni_gumbel.relaxation.gates import OpenSubset

COUNT = 100_000


def perturbed(logit: float, is_open: float, count: int = COUNT) -> torch.Tensor:
    """``z`` of a gate, read back from its relaxed value at temperature 50, where none saturates."""
    law, outcome = OpenSubset(1), torch.full((count, 1), is_open, dtype=torch.float64)
    logits = torch.tensor([logit], dtype=torch.float64)
    gate = law.soft(logits, outcome, 50.0, torch.Generator().manual_seed(0))
    return 50 * torch.logit(gate[:, 0])


@pytest.mark.parametrize("logit", [-50.0, -2.0, 0.0, 2.0, 50.0])
def test_the_noise_of_an_open_gate_is_logistic_above_zero(logit):
    # P(z > t | z > 0), written so that it is exact in the far tail as well.
    cdf = lambda t: 1 - expit(logit - t) / expit(logit)  # noqa: E731
    assert kstest(perturbed(logit, 1.0).numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize("logit", [-50.0, -2.0, 0.0, 2.0, 50.0])
def test_the_noise_of_a_closed_gate_is_logistic_below_zero(logit):
    cdf = lambda t: expit(t - logit) / expit(-logit)  # noqa: E731
    assert kstest(perturbed(logit, 0.0).numpy(), cdf).pvalue > 1e-3


def test_without_the_condition_the_noise_is_logistic():
    logit = 0.7
    is_open = torch.rand(COUNT) < expit(logit)
    z = torch.where(is_open, perturbed(logit, 1.0), perturbed(logit, 0.0))
    assert kstest(z.numpy() - logit, logistic.cdf).pvalue > 1e-3


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-53])
def test_gates_are_finite_and_on_their_side_at_the_ends_of_the_uniform_variable(monkeypatch, edge):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, edge, dtype=torch.float64))
    gates = OpenSubset(2).soft(torch.zeros(2), torch.tensor([1.0, 0.0]), 1e-15)
    assert gates[0] > 0.5 > gates[1]


def test_the_derivative_is_that_of_the_gate_with_its_noise_held():
    logits = LOGITS.clone().requires_grad_()
    law, outcome = OpenSubset(5), torch.tensor([1.0, 0, 0, 1, 0])
    gates = law.soft(logits, outcome, 0.5)
    gates.sum().backward()
    value = gates.detach()
    assert torch.allclose(logits.grad, value * (1 - value) / 0.5, rtol=1e-12)


@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
def test_the_mean_over_gates_is_finite_at_every_temperature(logit):
    law, outcomes = OpenSubset(4), all_outcomes(OpenSubset(4))
    values = torch.randn(4, dtype=torch.float64)
    for temperature in (1e-3, 1.0, 1e3):
        logits = torch.full((len(outcomes), 4), logit, dtype=torch.float32, requires_grad=True)
        gates = law.soft(logits, outcomes, temperature)
        assert (gates.sum(-1) >= 0.5).all()
        mean = (gates * values).sum(-1) / gates.sum(-1)
        mean.sum().backward()
        assert torch.isfinite(mean).all() and torch.isfinite(logits.grad).all()


def test_improbable_gates_still_open_one_at_a_time():
    logits = torch.tensor([-800.0, -800.0, -801.0], dtype=torch.float64)
    expected = torch.softmax(logits, 0)
    assert torch.allclose(OpenSubset(3).probs(logits), expected, rtol=1e-12)
    assert (OpenSubset(3).draw(logits.expand(1000, -1)).sum(-1) == 1).all()

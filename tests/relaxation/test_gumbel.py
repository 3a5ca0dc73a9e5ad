"""Gumbel noise, plain and given the winner: both ways to a Gumbel-softmax sample have one law."""

import torch
from enumeration import LOGITS
from scipy.stats import gumbel_r, ks_2samp, kstest, logistic

from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gumbel import gumbel_noise, perturbed_given_top, relaxed_categorical

COUNT = 100_000


def test_gumbel_noise_is_gumbel():
    noise = gumbel_noise(torch.empty(COUNT), torch.Generator().manual_seed(0))
    assert kstest(noise.numpy(), gumbel_r.cdf).pvalue > 1e-3


def test_gumbel_noise_is_finite_where_an_exponential_variable_is_zero(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator=None: self.zero_())
    noise = gumbel_noise(torch.empty(3, dtype=torch.bfloat16))
    assert torch.isfinite(noise).all() and noise.dtype == torch.bfloat16


def test_of_two_candidates_the_log_ratio_is_logistic():
    logits = torch.tensor([0.8, 0.0], dtype=torch.float64).expand(COUNT, -1)
    sample = relaxed_categorical(logits, 2.0, torch.Generator().manual_seed(0))
    ratio = 2.0 * (sample[:, 0].log() - sample[:, 1].log())
    assert kstest(ratio.numpy() - 0.8, logistic.cdf).pvalue > 1e-3


def test_noise_given_the_winner_is_independent_gumbel_noise_once_the_winner_is_drawn():
    generator = torch.Generator().manual_seed(0)
    logits = LOGITS[:3].expand(COUNT, -1)
    noise = perturbed_given_top(logits, Categorical(3).draw(logits, generator), 1, generator) - logits
    for candidate in range(3):
        assert kstest(noise[:, candidate].numpy(), gumbel_r.cdf).pvalue > 1e-3
    # Independent: correlations of 1e5 pairs have a standard error of 0.0032.
    assert (torch.corrcoef(noise.T) - torch.eye(3)).abs().max() < 4 * 0.0032


def test_given_both_that_come_first_they_are_above_the_rest():
    outcome = torch.tensor([0.0, 1, 0, 1])
    z = perturbed_given_top(torch.tensor([50.0, -50, 0, 3]).expand(1000, -1), outcome, 2)
    assert (z[:, [1, 3]].amin(-1) > z[:, [0, 2]].amax(-1)).all()


def test_given_the_order_of_arrival_noise_is_that_of_rejection():
    # Independent Gumbel noise, kept where the first two are the winners, in either order.
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(COUNT, 4, dtype=torch.float64)
    plain = gumbel_noise(logits, generator)
    kept = plain[plain[:, :2].amin(-1) > plain[:, 2:].amax(-1)]
    # With equal logits both orders are equally likely, so the order drawn among the two is exact as well.
    z = perturbed_given_top(logits, torch.tensor([1.0, 1, 0, 0]), 2, generator)
    for statistic in (lambda a: a[:, 0], lambda a: a[:, 2], lambda a: a[:, :2].amin(-1) - a[:, 2:].amax(-1)):
        assert ks_2samp(statistic(kept), statistic(z)).pvalue > 1e-3


def test_noise_is_held_in_derivatives():
    logits = LOGITS.clone().requires_grad_()
    z = perturbed_given_top(logits, torch.tensor([0.0, 1, 0, 0, 0]), 1)
    (z * torch.arange(5)).sum().backward()
    assert logits.grad.tolist() == [0, 1, 2, 3, 4]

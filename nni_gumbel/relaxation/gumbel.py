"""Gumbel noise, alone and given which perturbed logits are the largest.

The Gumbel-max trick turns a draw from ``softmax(logits)`` into an argmax over perturbed logits; the
Gumbel-softmax replaces that argmax by a softmax at a temperature, through which gradients flow. It can be
read as a race: ``exp(-(theta_i + g_i))`` is the arrival time of a runner, exponential with rate
``exp(theta_i)``, and the first to arrive is drawn. Since exponential times have no memory, arrivals can be
drawn one after the other, whoever is known to come first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nni_gumbel.relaxation.law import check_temperature


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise, ``-log(E)`` with ``E ~ Exponential(1)``; finite.

    Args:
        like: any shape, float; gives shape, dtype and device.
        generator: source of randomness; the global one if omitted.
    """
    return -_log_exponential(like, generator).to(like.dtype)


def relaxed_categorical(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one Gumbel-softmax sample per row.

    ``y_i = softmax((logits_i + g_i) / temperature)``, ``g_i ~ Gumbel(0, 1)`` independent.

    Args:
        logits: ``(..., n)``, float; unnormalised log-probabilities.
        temperature: > 0, dimensionless.
        generator: source of randomness; the global one if omitted.

    Returns:
        ``(..., n)``, same dtype; each row on the simplex. Its argmax follows ``softmax(logits)`` at
        every temperature; it tends to one-hot as the temperature tends to 0, to uniform as it grows.

    Raises:
        UsageError: ``temperature`` is not a positive number.

    Source: Jang, Gu, Poole (arXiv 1611.01144), equation 2; Maddison, Mnih, Teh (arXiv 1611.00712).
    """
    check_temperature(temperature)
    perturbed = logits.double() - _log_exponential(logits, generator)
    return torch.softmax(perturbed / temperature, dim=-1).to(logits.dtype)


def perturbed_given_top(
    logits: Tensor, outcome: Tensor, k: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw perturbed logits ``z_i = logits_i + g_i``, given that ``outcome`` marks the ``k`` largest.

    With rates ``r_i = exp(logits_i)``, the marked ones arrive first, in the order ``p`` of a race of their
    own, at times ``t_1 < ... < t_k`` with ``t_j - t_(j-1) ~ Exponential(sum of the rates of all who have not
    arrived)``; every other at ``t_k + Exponential(r_i)``; and ``z = -log(time)``.

    So this is Gumbel noise given the order of arrival. For k = 1 there is nothing to order: with ``outcome``
    drawn from ``softmax(logits)``, the noise is plain Gumbel noise again. For larger k the subset does not
    tell the order, and the noise is a choice of ours, with the exact subset put in by hand.

    Args:
        logits: ``(..., n)``, float.
        outcome: ``(..., n)``, ``k`` entries 1, the others 0.
        k: in [1, n].
        generator: source of randomness; the global one if omitted.

    Returns:
        ``(..., n)``, float64; every entry where ``outcome`` is 1 is above every other. Its derivative is
        that of ``logits + g`` with the noise ``g`` held: the identity.

    Source: for k = 1, Paulus, Maddison, Krause (arXiv 2010.04838), after Maddison, Tarlow, Minka (arXiv
    1411.0030).
    """
    theta, outcome = torch.broadcast_tensors(logits.double(), outcome)
    fixed, chosen = theta.detach(), outcome.bool()
    log_noise = _log_exponential(fixed, generator)
    order = (fixed - log_noise).masked_fill(~chosen, -math.inf).topk(k).indices
    # Log-rate of all who have not arrived when the j-th does: summed from the last to arrive backwards.
    others = torch.logsumexp(fixed.masked_fill(chosen, -math.inf), -1, keepdim=True)
    log_rates = torch.cat((others, fixed.gather(-1, order).flip(-1)), -1).logcumsumexp(-1)[..., 1:].flip(-1)
    log_times = (_log_exponential(log_rates, generator) - log_rates).logcumsumexp(-1)
    late = torch.logaddexp(log_times[..., -1:], log_noise - fixed)
    # The difference is exactly 0, so the order of the entries survives; it carries the derivative.
    return -late.scatter(-1, order, log_times) + (theta - fixed)


def _log_exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    # In float64: in bfloat16 an exponential variable is exactly 0 too often.
    exponential = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    return exponential.exponential_(generator=generator).clamp_min_(torch.finfo(torch.float64).tiny).log_()

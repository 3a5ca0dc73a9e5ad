"""Draws in which only some of the candidates take part, so that only these have to be computed.

For one of n candidates a step can do with all of them, with two, or with one:

- A *network* is a hard draw of one outcome. To train weights along networks that are drawn from the law alone
  starves those candidates that the law does not favour yet, and it is the weights of the favoured that get better:
  the search collapses, as a rule onto candidates without parameters. So the law is :func:`tempered`: near uniform
  while the temperature is high, the law itself from temperature 1 on. (A warm-up of 40 % of a search takes the default
  temperatures, 3 to 0.1, below 1: what is fair is then the warm-up, whose networks are all equally likely.)
- A *pair* (:func:`draw_pair`, :func:`weights_of_pair`) tells two candidates apart and leaves the others as they are.
- The *sampled* one alone, a hard draw with the derivative of a straight-through estimator, costs what a network costs.
  What the others would have contributed to the derivative counts as 0. With ``g_k`` the derivative of the loss with
  respect to the weight of candidate k, the estimate is ``g_d dw_d/dtheta`` and not ``sum_k g_k dw_k/dtheta``: biased
  also for a linear loss, and exactly 0 where scaling the candidate's output does not change the loss, as in front of a
  batch norm (``g_d = 0``).

Sources: two paths, renormalised: ProxylessNAS (Cai, Zhu, Han, arXiv 1812.00332, section 3.2.2). The sampled one
alone: GDAS (Dong, Yang, arXiv 1910.04465, section 3.2 and its code). What unfair training of weights does: FairNAS
(Chu et al., arXiv 1907.01845).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nni_gumbel.relaxation.gumbel import gumbel_noise
from nni_gumbel.relaxation.law import check_temperature


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """``logits / max(temperature, 1)``: of a law that is closer to uniform while the temperature is above 1.

    Raises:
        UsageError: ``temperature`` is not a positive number.
    """
    check_temperature(temperature)
    return logits / max(temperature, 1.0)


def draw_pair(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Two distinct candidates, drawn without replacement from the tempered law.

    They are the two largest of ``tempered(theta) + g``, ``g`` Gumbel noise.

    Args:
        logits: ``(..., n)``, float.
        temperature: > 0, dimensionless.
        generator: source of randomness; the global one if omitted.

    Returns:
        ``(..., n)`` of 0 and 1, the pair (one candidate, where there is only one), and ``g``; float64, no gradient.

    Raises:
        UsageError: ``temperature`` is not a positive number.
    """
    theta = logits.detach().double()
    noise = gumbel_noise(theta, generator)
    chosen = (tempered(theta, temperature) + noise).topk(min(2, theta.shape[-1])).indices
    return torch.zeros_like(theta).scatter_(-1, chosen, 1), noise


def weights_of_pair(logits: Tensor, temperature: float, pair: Tensor, noise: Tensor) -> Tensor:
    """A Gumbel-softmax sample restricted to a pair of candidates.

    ``y = softmax((theta + g) / temperature)`` is a relaxed sample; the weights are ``y_i / (y_i + y_j)``.

    Args:
        logits: ``(..., n)``, float.
        temperature: > 0, dimensionless.
        pair, noise: from :func:`draw_pair`.

    Returns:
        ``(..., n)`` in the dtype of the logits, 0 outside of the pair, sum 1; differentiable.
    """
    perturbed = (logits.double() + noise) / temperature
    return torch.softmax(perturbed.masked_fill(pair == 0, -math.inf), -1).to(logits.dtype)

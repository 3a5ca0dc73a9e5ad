"""Relaxed samples of a categorical variable.

The Gumbel-max trick turns a draw from ``softmax(logits)`` into an argmax over perturbed logits; the
Gumbel-softmax replaces that argmax by a softmax at a temperature, through which gradients flow.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise, ``-log(E)`` with ``E ~ Exponential(1)``.

    Args:
        like: any shape, float; gives shape, dtype and device.
        generator: source of randomness; the global one if omitted.

    Returns:
        Same shape, dtype and device as ``like``; finite.
    """
    # Drawn in float32 at least: in bfloat16 an exponential variable is exactly 0 too often.
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponential = torch.empty(like.shape, dtype=dtype, device=like.device).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(dtype).tiny).log().to(like.dtype)


def relaxed_categorical(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one Gumbel-softmax sample per row.

    ``y_k = softmax((logits_k + g_k) / temperature)``, ``g_k ~ Gumbel(0, 1)`` independent.

    Args:
        logits: ``(..., K)``, float; unnormalised log-probabilities.
        temperature: > 0, dimensionless.
        generator: source of randomness; the global one if omitted.

    Returns:
        ``(..., K)``, same dtype; each row on the simplex. Its argmax follows ``softmax(logits)`` at
        every temperature; it tends to one-hot as the temperature tends to 0, to uniform as it grows.

    Raises:
        ValueError: ``temperature`` is not positive.

    Source: Jang, Gu, Poole (arXiv 1611.01144), equation 2.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    perturbed = logits + gumbel_noise(logits, generator)
    # Shifted before the division, so that a small temperature cannot overflow the largest entry.
    shifted = perturbed - perturbed.amax(dim=-1, keepdim=True)
    return torch.softmax(shifted / temperature, dim=-1)

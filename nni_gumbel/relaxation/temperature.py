"""How the temperature falls: pure functions of the progress of a search.

Progress is 0 at the first step and 1 at the last, so every schedule starts and ends exactly where it
says, whatever the number of steps. All schedules but one depend on the progress alone; ``target-entropy``
also looks at the logits (:func:`temperature_following_entropy`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.law import Law

# Noise vectors behind an expected entropy; always the same ones, so that a schedule is deterministic.
_NOISES = 32
# Halvings of the interval of log-temperatures: (log 100) / 2^22 is a relative error of 1e-6.
_HALVINGS = 22


def progress_of(step: int, total_steps: int) -> float:
    """Fraction of a search that lies behind ``step``, in [0, 1]: 0 at step 0, 1 at ``total_steps - 1``.

    A search of a single step is at its end at once.
    """
    if total_steps <= 1:
        return 1.0
    return min(step / (total_steps - 1), 1.0)


def linear(start: float, end: float, progress: float) -> float:
    """``start + (end - start) * progress``; exactly ``end`` at progress 1."""
    return end if progress >= 1 else start + (end - start) * progress


def temperature_at(
    progress: float,
    start: float,
    end: float,
    schedule: str,
    choices: Sequence[tuple[Law, Tensor]] = (),
) -> float:
    """The temperature at a point of a search.

    Args:
        progress: in [0, 1], see :func:`progress_of`.
        start: > 0, the temperature at progress 0.
        end: > 0, the temperature at progress 1.
        schedule: with ``t`` the progress, ``constant``: ``start``; ``linear``:
            ``start + (end - start) t``; ``exponential`` (equal ratios per step):
            ``start (end / start)^t``; ``cosine`` (slow at both ends):
            ``end + (start - end) (1 + cos(pi t)) / 2``; ``target-entropy``:
            see :func:`temperature_following_entropy`.
        choices: every choice's law and its logits; only ``target-entropy`` looks at them.

    Returns:
        The temperature; but for ``constant`` exactly ``start`` and ``end`` at the two ends, between them
        otherwise.

    Raises:
        UsageError: the schedule is unknown.
    """
    if schedule == "constant":
        return start
    if progress <= 0:
        return start
    if progress >= 1:
        return end
    if schedule == "linear":
        return linear(start, end, progress)
    if schedule == "exponential":
        return start * (end / start) ** progress
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "target-entropy":
        if not choices:
            raise UsageError(
                "temperature_schedule: 'target-entropy' follows the choices; give them, or another schedule"
            )
        return temperature_following_entropy(progress, start, end, choices)
    raise UsageError(
        f"temperature_schedule: {schedule!r} is unknown; give constant, linear, exponential, cosine "
        "or target-entropy"
    )


def temperature_following_entropy(
    progress: float, start: float, end: float, choices: Sequence[tuple[Law, Tensor]]
) -> float:
    """The temperature at which relaxed samples are as undecided as a line prescribes.

    The line is ``h(t) = (1 - t) h0(start) + t h0(end)``: ``h0`` is :func:`relaxed_entropy` at logits 0, so
    the target is fixed before the search. The temperature solves ``relaxed_entropy(tau) = h(t)`` at the
    current logits: logits that commit early are answered by a higher temperature. ``tau`` never leaves
    [end, start]; the last step takes ``end`` itself.

    Args:
        progress: in [0, 1], see :func:`progress_of`.
        start: > 0, the highest temperature, that of progress 0.
        end: in (0, start], the lowest one, that of progress 1.
        choices: every choice's law and its logits ``(n,)``.

    Returns:
        The temperature, dimensionless; the same numbers give the same result.
    """
    if progress <= 0 or progress >= 1 or start == end:
        return end if progress >= 1 else start
    groups = _grouped(choices)
    zeros = [(law, torch.zeros_like(logits)) for law, logits in groups]
    target = linear(_entropy(zeros, start), _entropy(zeros, end), progress)
    low, high = math.log(end), math.log(start)
    # The entropy rises with the temperature, for every fixed noise and so for their mean.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _entropy(groups, math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    return min(max(math.exp((low + high) / 2), end), start)


def relaxed_entropy(choices: Sequence[tuple[Law, Tensor]], temperature: float) -> float:
    """How undecided a relaxed sample is expected to be: 0 is one-hot, 1 is uniform.

    ``mean_choices mean_g H((theta + g) / tau) / log outcomes`` with ``H`` the entropy of the law at those
    logits, and ``g`` fixed vectors of Gumbel noise. For a categorical choice it is the entropy of its
    Gumbel-softmax sample. Rises with ``tau``; a choice with a single outcome counts as 0.

    Args:
        choices: every choice's law and its logits ``(n,)``; at least one.
        temperature: > 0, dimensionless.
    """
    return _entropy(_grouped(choices), temperature)


def _grouped(choices: Sequence[tuple[Law, Tensor]]) -> list[tuple[Law, Tensor]]:
    """Choices of one law together, ``(choices, n)`` in float64: one operation serves all of them."""
    groups: dict[Law, list[Tensor]] = {}
    for law, logits in choices:
        groups.setdefault(law, []).append(logits.detach().double().cpu())
    return [(law, torch.stack(logits)) for law, logits in groups.items()]


def _entropy(groups: Sequence[tuple[Law, Tensor]], temperature: float) -> float:
    total = sum(
        float(law.entropy((logits.unsqueeze(1) + _noise(law.size)) / temperature).mean(1).sum())
        / math.log(max(law.outcomes, 2))
        for law, logits in groups
    )
    return total / sum(len(logits) for _, logits in groups)


@cache
def _noise(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    exponential = torch.empty(_NOISES, size, dtype=torch.float64).exponential_(generator=generator)
    return -exponential.log()

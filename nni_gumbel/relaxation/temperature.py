"""How the temperature falls: pure functions of the progress of a search.

Progress is 0 at the first step and 1 at the last, so every schedule starts and ends exactly where it
says, whatever the number of steps.
"""

from __future__ import annotations

import math

from nni_gumbel.errors import UsageError


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


def temperature_at(progress: float, start: float, end: float, schedule: str) -> float:
    """The temperature at a point of a search.

    Args:
        progress: ``t`` in [0, 1], see :func:`progress_of`.
        start, end: > 0, the temperatures at 0 and 1, taken exactly.
        schedule: ``linear``: ``start + (end - start) t``; ``exponential`` (equal ratios per step):
            ``start (end / start)^t``; ``cosine`` (slow at both ends): ``end + (start - end) (1 + cos(pi t)) / 2``.

    Raises:
        UsageError: the schedule is unknown.
    """
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
    raise UsageError(f"temperature_schedule: {schedule!r} is unknown; give linear, exponential or cosine")

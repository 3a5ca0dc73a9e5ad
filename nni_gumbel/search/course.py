"""The course of a search: rounds of all candidates, stages of networks with shared weights, finalists trained alone.

====================  ======================================================================================
segments              what happens in each
====================  ======================================================================================
``rounds``            the supernet is trained, evidence is gathered, the worst candidates are rejected
``stages``            networks of those left are trained by turns, with shared weights, and judged; the
                      logits follow, the temperature falls
``finalists``         one network is trained alone, and judged
the last one          the network found is trained
====================  ======================================================================================

Every round, all stages together, every finalist and the last segment are trainings of their own, from the first
weights. The rounds have a sixteenth of the steps of a long search, in which all candidates run: about a fifth of its
time. In the first stage nothing is known of the networks, and the weights have to learn first: it has twice the length
of the others.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum

# The part of the steps that the rounds have in a long search; the steps that a round should have, and the largest part
# of all that the rounds have for that: the evidence of fewer is noise.
_ROUNDS, _ROUND, _MOST_ROUNDS = 0.06, 100, 0.3
# Steps of a segment; a training of fewer says nothing.
SHORTEST = 25
# The part of a round in which the weights learn alone: gradients of its first steps say what suits random weights.
_GATHERS_FROM = 0.25
# The part of the other steps that the stages have, and the length of the first one, relative to another.
_STAGES, _FIRST_STAGE = 0.5, 2
# The part of a stage, and of a finalist's training, behind which networks are judged.
_JUDGED_FROM = 0.75

_logger = logging.getLogger(__name__)


class Kind(Enum):
    """What a segment is for."""

    ROUND = "round"
    STAGE = "stage"
    FINALIST = "finalist"
    FOUND = "found"


@dataclass(frozen=True)
class Segment:
    """Steps ``[first, end)`` of a search, counted without its warm-up, in the training ``[begun, over)``."""

    kind: Kind
    first: int
    end: int
    begun: int
    over: int

    @property
    def begins_training(self) -> bool:
        """Whether the weights start anew with the segment."""
        return self.first == self.begun

    def trained(self, step: int) -> float:
        """How much of the training is done before a step, in [0, 1]."""
        return (step - self.begun) / (self.over - self.begun)

    def gathers(self, step: int) -> bool:
        """Whether the gradient of the structure counts at a step."""
        return self.kind is Kind.ROUND and self._is_behind(_GATHERS_FROM, step)

    def judges(self, step: int) -> bool:
        """Whether networks are judged at a step."""
        return self.kind in (Kind.STAGE, Kind.FINALIST) and self._is_behind(_JUDGED_FROM, step)

    def _is_behind(self, part: float, step: int) -> bool:
        return (step - self.first) / (self.end - self.first) >= part or step == self.end - 1


def segments(steps: int, rounds: int, stages: int, finalists: int) -> tuple[Segment, ...]:
    """Divide a search; where it is too short there are fewer rounds, stages and finalists.

    From four steps on there is at least one of each.

    Args:
        steps: of the search, without its warm-up; at least 1.
        rounds: how many are wanted, at least 1.
        stages: likewise.
        finalists: likewise.

    >>> [(segment.kind.value, segment.end) for segment in segments(250, 2, 2, 1)]
    [('round', 38), ('round', 75), ('stage', 134), ('stage', 163), ('finalist', 206), ('found', 250)]
    """
    of_rounds = round(max(_ROUNDS * steps, min(rounds * _ROUND, _MOST_ROUNDS * steps)))
    of_rounds = min(max(of_rounds, 1), max(steps - 3, 1))
    rest = steps - of_rounds
    of_stages = min(max(round(_STAGES * rest), 1), max(rest - 2, 1))
    alone = rest - of_stages
    rounds = max(min(rounds, of_rounds // SHORTEST), 1)
    stages = max(min(stages, of_stages // SHORTEST + 1 - _FIRST_STAGE), 1)
    finalists = max(min(finalists, alone // SHORTEST - 1), 1)
    unit = of_stages / (_FIRST_STAGE + stages - 1)
    lengths = [
        *((Kind.ROUND, of_rounds * (i + 1) / rounds) for i in range(rounds)),
        *((Kind.STAGE, of_rounds + unit * (_FIRST_STAGE + i)) for i in range(stages)),
        *(
            (Kind.FINALIST, of_rounds + of_stages + alone * (i + 1) / (finalists + 1))
            for i in range(finalists)
        ),
        (Kind.FOUND, steps),
    ]
    ends = [min(round(end), steps) for _, end in lengths]
    course = []
    for (kind, _), first, end in zip(lengths, [0, *ends], ends):
        begun, over = (of_rounds, of_rounds + of_stages) if kind is Kind.STAGE else (first, end)
        if end > first:
            course.append(Segment(kind, first, end, begun, over))
    return tuple(course)


def warn_if_short(course: tuple[Segment, ...], rounds: int, stages: int, finalists: int) -> None:
    """Say that a search is too short for all of its rounds, stages and finalists.

    Args:
        course: from :func:`segments`.
        rounds: how many are wanted.
        stages: likewise.
        finalists: likewise.
    """
    kinds = [segment.kind for segment in course]
    wanted = (rounds, stages, finalists)
    had = tuple(kinds.count(kind) for kind in (Kind.ROUND, Kind.STAGE, Kind.FINALIST))
    if had != wanted:
        _logger.warning(
            "rounds, stages, finalists: %d steps are too few for %d, %d and %d, so there are %d, %d and %d; raise "
            "search_epochs (or max_epochs), for about %d steps", course[-1].end, *wanted, *had, steps_for(*wanted),
        )  # fmt: skip


def steps_for(rounds: int, stages: int, finalists: int) -> int:
    """How many steps a search with so many rounds, stages and finalists needs."""
    of_stages = (_FIRST_STAGE + stages - 1) * SHORTEST
    rest = max(of_stages / _STAGES, (finalists + 1) * SHORTEST / (1 - _STAGES))
    with_rounds = min(rest / (1 - _MOST_ROUNDS), max(rest + rounds * _ROUND, rest / (1 - _ROUNDS)))
    return math.ceil(max(with_rounds, rounds * SHORTEST / _MOST_ROUNDS))

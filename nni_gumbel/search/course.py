"""The course of a search: short trainings, each from the first weights; candidates are compared, then networks.

====================  ======================================================================================
segments              what happens in each
====================  ======================================================================================
``rounds``            the supernet is trained, evidence is gathered, the worst candidates are rejected
``finalists``         one network of those that are left is trained alone, and judged
the last one          the network found is trained
====================  ======================================================================================

The rounds have a sixteenth of the steps of a long search, in which all candidates run: about a third of its time.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum

# The part of the steps that the rounds have in a search that is long enough, and the largest that they have in a short
# one: without evidence the finalists would be drawn at random.
_ROUNDS, _MOST_ROUNDS = 0.06, 0.5
# Steps of a segment; a training of fewer says nothing.
SHORTEST = 25
# The part of a round in which the weights learn alone: gradients of its first steps say what suits random weights.
_GATHERS_FROM = 0.25
# The part of a finalist's training behind which it is judged.
_JUDGED_FROM = 0.75

_logger = logging.getLogger(__name__)


class Kind(Enum):
    """What a segment is for."""

    ROUND = "round"
    FINALIST = "finalist"
    FOUND = "found"


@dataclass(frozen=True)
class Segment:
    """Steps ``[first, end)`` of a search, counted without its warm-up."""

    kind: Kind
    first: int
    end: int

    def place(self, step: int) -> float:
        """How much of the segment is done before a step, in [0, 1)."""
        return (step - self.first) / (self.end - self.first)

    def gathers(self, step: int) -> bool:
        """Whether the gradient of the structure counts at a step."""
        return self.kind is Kind.ROUND and (self.place(step) >= _GATHERS_FROM or step == self.end - 1)

    def judges(self, step: int) -> bool:
        """Whether the loss of the network counts at a step."""
        return self.kind is Kind.FINALIST and (self.place(step) >= _JUDGED_FROM or step == self.end - 1)


def segments(steps: int, rounds: int, finalists: int, shortest: int = SHORTEST) -> tuple[Segment, ...]:
    """Divide a search; where it is too short there are fewer rounds and finalists.

    At least one of each: of 2 steps there is no finalist, and of a single step no round either.

    Args:
        steps: of the search, without its warm-up; at least 1.
        rounds: how many are wanted, at least 1.
        finalists: likewise.
        shortest: steps that a segment should have.

    >>> [(segment.kind.value, segment.end) for segment in segments(250, 2, 3)]
    [('round', 25), ('round', 50), ('finalist', 100), ('finalist', 150), ('finalist', 200), ('found', 250)]
    """
    wanted = max(_ROUNDS * steps, min(rounds * shortest, _MOST_ROUNDS * steps))
    of_rounds = min(max(round(wanted), 1), max(steps - 2, 1), steps - 1)
    rounds = max(min(rounds, of_rounds // shortest), 1)
    finalists = max(min(finalists, (steps - of_rounds) // shortest - 1), 1)
    kinds = [Kind.ROUND] * rounds + [Kind.FINALIST] * finalists + [Kind.FOUND]
    ends = [round(of_rounds * (i + 1) / rounds) for i in range(rounds)]
    ends += [of_rounds + round((steps - of_rounds) * (i + 1) / (finalists + 1)) for i in range(finalists + 1)]
    return tuple(
        Segment(kind, first, end) for kind, first, end in zip(kinds, [0, *ends], ends) if end > first
    )


def warn_if_short(course: tuple[Segment, ...], rounds: int, finalists: int) -> None:
    """Say that a search is too short for all of its rounds and finalists.

    Args:
        course: from :func:`segments`.
        rounds: how many are wanted.
        finalists: likewise.
    """
    kinds = [segment.kind for segment in course]
    had = kinds.count(Kind.ROUND), kinds.count(Kind.FINALIST)
    if had != (rounds, finalists):
        _logger.warning(
            "rounds, finalists: %d steps are too few for %d and %d, so there are %d and %d; raise search_epochs (or "
            "max_epochs), for about %d steps", course[-1].end, rounds, finalists, *had, steps_for(rounds, finalists),
        )  # fmt: skip


def steps_for(rounds: int, finalists: int, shortest: int = SHORTEST) -> int:
    """How many steps a search with so many rounds and finalists needs."""
    of_finalists = (finalists + 1) * shortest
    return math.ceil(
        max(rounds * shortest + of_finalists, of_finalists / (1 - _ROUNDS), rounds * shortest / _MOST_ROUNDS)
    )

"""The course of a search: how many steps it has, and how they are divided.

By default there are *stages*, in which networks are trained by turns, with shared weights, and judged, and then
*finalists*, each of them one network that is trained alone, and judged. All stages together are one training, and every
finalist is another, from the same first weights. In the first stage nothing is known of the networks, and the weights
have to learn first: it has twice the length of the others.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum

from pytorch_lightning import Trainer

from nni_gumbel.errors import UsageError

# Steps of a segment; a training of fewer says nothing.
SHORTEST = 25
# The part of the steps that the stages have, and the length of the first one, relative to another.
_STAGES, _FIRST_STAGE = 0.4, 2

_logger = logging.getLogger(__name__)


def check_duration(trainer: Trainer, warmup_epochs: int) -> None:
    """Refuse a search that would never end, or whose warm-up takes all of it."""
    epochs = last_epoch(trainer) + 1
    if epochs <= warmup_epochs:
        raise UsageError(
            f"warmup_epochs: {warmup_epochs} leaves no epoch of {epochs} in which the structure learns; "
            "give less, or more epochs"
        )


def total_batches(trainer: Trainer) -> int:
    """The number of training batches until ``max_epochs`` or ``max_steps``, whichever comes first.

    ``max_steps`` counts updates of the weights: one in ``accumulate_grad_batches`` batches, and one at the end of an
    epoch.

    Raises:
        UsageError: the search would never end.
    """
    batches, together = trainer.num_training_batches, trainer.accumulate_grad_batches
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits.append(batches * trainer.max_epochs)
    if trainer.max_steps > 0:
        if math.isinf(batches):
            limits.append(trainer.max_steps * together)
        else:
            epochs, updates = divmod(trainer.max_steps, math.ceil(batches / together))
            limits.append(epochs * batches + min(updates * together, batches))
    if limits and math.isinf(min(limits)):
        raise UsageError(
            "limit_train_batches: the training data does not say how many batches it has, and the temperature "
            "needs an end; give the Trainer limit_train_batches, or max_steps"
        )
    if not limits:
        raise UsageError("max_epochs: a search needs an end for its temperature; give the Trainer max_epochs")
    return int(min(limits))


def last_epoch(trainer: Trainer) -> int:
    """The epoch in which the search ends, counted from 0, unless it is stopped early."""
    batches = trainer.num_training_batches
    return 0 if math.isinf(batches) else math.ceil(total_batches(trainer) / batches) - 1


class Kind(Enum):
    """What a segment is for."""

    STAGE = "stage"
    FINALIST = "finalist"


# The part of a stage, and of a finalist's training, behind which networks are judged: several at a step of a stage, one
# at that of a finalist, whose judgement is to be as sharp.
_JUDGED_FROM = {Kind.STAGE: 0.85, Kind.FINALIST: 0.5}


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

    def judges(self, step: int) -> bool:
        """Whether networks are judged at a step."""
        done = (step - self.first) / (self.end - self.first)
        return done >= _JUDGED_FROM[self.kind] or step == self.end - 1


def segments(steps: int, stages: int, finalists: int) -> tuple[Segment, ...]:
    """Divide a search; where it is too short there are fewer stages and finalists, from two steps on one of each.

    Args:
        steps: of the search, without its warm-up; at least 1.
        stages, finalists: how many are wanted, at least 1.

    >>> [(segment.kind.value, segment.end) for segment in segments(300, 2, 2)]
    [('stage', 80), ('stage', 120), ('finalist', 210), ('finalist', 300)]
    """
    of_stages = max(round(_STAGES * steps), 1)
    alone = steps - of_stages
    stages = max(min(stages, of_stages // SHORTEST + 1 - _FIRST_STAGE), 1)
    finalists = max(min(finalists, alone // SHORTEST), 1)
    unit = of_stages / (_FIRST_STAGE + stages - 1)
    lengths = [
        *((Kind.STAGE, unit * (_FIRST_STAGE + i)) for i in range(stages)),
        *((Kind.FINALIST, of_stages + alone * (i + 1) / finalists) for i in range(finalists)),
    ]
    ends = [min(round(end), steps) for _, end in lengths]
    course = []
    for (kind, _), first, end in zip(lengths, [0, *ends], ends):
        begun, over = (0, of_stages) if kind is Kind.STAGE else (first, end)
        if end > first:
            course.append(Segment(kind, first, end, begun, over))
    return tuple(course)


def warn_if_short(course: tuple[Segment, ...], stages: int, finalists: int) -> None:
    """Say that a search is too short for as many stages and finalists as are wanted."""
    kinds = [segment.kind for segment in course]
    had = tuple(kinds.count(kind) for kind in (Kind.STAGE, Kind.FINALIST))
    if had != (stages, finalists):
        _logger.warning(
            "stages, finalists: %d steps are too few for %d and %d, so there are %d and %d; raise search_epochs (or "
            "max_epochs), for about %d steps",
            course[-1].end, stages, finalists, *had, steps_for(stages, finalists),
        )  # fmt: skip


def steps_for(stages: int, finalists: int) -> int:
    """How many steps a search with so many stages and finalists needs."""
    of_stages = (_FIRST_STAGE + stages - 1) * SHORTEST
    return math.ceil(max(of_stages / _STAGES, finalists * SHORTEST / (1 - _STAGES)))

"""Weights that go back to where the first of several short trainings began, or to the end of the best one.

The schedules of the evaluator run through once in each of these trainings, in so many larger strides.

Weights do not go back to fresh random numbers: a person may have started from trained weights, and only the evaluator
knows how its network is initialised.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from pytorch_lightning import LightningModule

from nni_gumbel.search.course import last_epoch, total_batches
from nni_gumbel.search.state import Resumable


class ShortTrainings(Resumable):
    """The weights and buffers, the optimiser and the schedulers as they were when the first training began.

    After a warm-up that is what the warm-up has led to.
    """

    _kept = ("_first", "_best", "_strides")

    def __init__(self, search: LightningModule) -> None:
        self._search = search
        self._first: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None  # the weights at the end of the best training
        self._strides: list[int] = []  # of each schedule, in the current training

    def advance(self, place: float) -> None:
        """Let every schedule of the weights be as far as the current training is: ``place``, in [0, 1]."""
        trainer = self._search.trainer
        updates = total_batches(trainer) / trainer.accumulate_grad_batches
        for index, config in enumerate(trainer.lr_scheduler_configs):
            whole = updates if config.interval == "step" else last_epoch(trainer) + 1
            due = math.floor(place * whole / config.frequency + 1e-9)
            for _ in range(due - self._strides[index]):
                self._search.training_module.lr_scheduler_step(config.scheduler, None)
            self._strides[index] = max(due, self._strides[index])

    def begin(self) -> None:
        """Begin a training: the first time remember all of it, later put it back."""
        module, optimizer = self._search.training_module, self._search.trainer.optimizers[0]
        schedulers = [config.scheduler for config in self._search.trainer.lr_scheduler_configs]
        if self._first is None:
            self._first = copy.deepcopy({
                "weights": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedulers": [scheduler.state_dict() for scheduler in schedulers],
            })  # fmt: skip
        self._strides = [0] * len(schedulers)
        module.load_state_dict(self._first["weights"])
        # A state that is loaded becomes the optimiser's own, and would be changed by its next step.
        optimizer.load_state_dict(copy.deepcopy(self._first["optimizer"]))
        optimizer.zero_grad()  # of batches whose update, with others, is still to come
        for scheduler, state in zip(schedulers, self._first["schedulers"]):
            scheduler.load_state_dict(copy.deepcopy(state))

    def keep(self) -> None:
        """Remember the weights and buffers, instead of what was kept before."""
        self._best = copy.deepcopy(self._search.training_module.state_dict())

    def put_back(self) -> None:
        """Put back what was kept, if anything was."""
        if self._best is not None:
            self._search.training_module.load_state_dict(self._best)

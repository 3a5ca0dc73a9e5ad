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

from nni_gumbel.search.duration import last_epoch, total_batches


class ShortTrainings:
    """The weights and buffers, the optimiser and the schedulers as they were when the first training began.

    After a warm-up that is what the warm-up has led to.

    Args:
        search: with a Trainer whose optimisers are set up; its ``training_module`` holds the weights.
    """

    def __init__(self, search: LightningModule) -> None:
        self._search = search
        self._saved: dict[str, Any] | None = None
        self._kept: dict[str, Any] | None = None  # the weights at the end of the best training
        self._strides: list[int] = []  # of each schedule, in the current training

    def advance(self, place: float) -> None:
        """Let every schedule of the weights be as far as the current training is.

        Args:
            place: how much of the training is done, in [0, 1].
        """
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
        if self._saved is None:
            self._saved = copy.deepcopy(self._current())
        self._strides = [0] * len(self._saved["schedulers"])
        self._search.training_module.load_state_dict(self._saved["weights"])
        # A state that is loaded becomes the optimiser's own, and would be changed by its next step.
        self._optimizer().load_state_dict(copy.deepcopy(self._saved["optimizer"]))
        self._optimizer().zero_grad()  # of batches whose update, with others, is still to come
        for config, state in zip(self._search.trainer.lr_scheduler_configs, self._saved["schedulers"]):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    def keep(self) -> None:
        """Remember the weights and buffers, instead of what was kept before."""
        self._kept = copy.deepcopy(self._search.training_module.state_dict())

    def put_back(self) -> None:
        """Put back what was kept, if anything was."""
        if self._kept is not None:
            self._search.training_module.load_state_dict(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {"saved": self._saved, "kept": self._kept, "strides": list(self._strides)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with :meth:`state_dict`."""
        self._saved, self._kept, self._strides = state["saved"], state["kept"], list(state["strides"])

    def _current(self) -> dict[str, Any]:
        return {
            "weights": self._search.training_module.state_dict(),
            "optimizer": self._optimizer().state_dict(),
            "schedulers": [
                config.scheduler.state_dict() for config in self._search.trainer.lr_scheduler_configs
            ],
        }

    def _optimizer(self) -> Any:
        return self._search.trainer.optimizers[0]

"""How long a search will be: its number of batches, known before the first of them."""

from __future__ import annotations

import math

from pytorch_lightning import Trainer

from nni_gumbel.errors import UsageError


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

    ``max_steps`` counts updates of the weights: one in ``accumulate_grad_batches`` batches, and one at the
    end of an epoch.

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

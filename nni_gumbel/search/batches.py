"""Hooks on batches, for the pairs of batches that a search trains on.

An evaluator or a data module may change batches on their way to the device (``on_after_batch_transfer``,
for example: augmentation on a GPU). In a search such a hook would be handed a pair of batches; here it is
handed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def pass_on_batch_hooks(owner: LightningModule | LightningDataModule, search: Any) -> None:
    """Let ``search`` call those hooks of ``owner`` that are its own, for each batch of a pair.

    Args:
        owner: the evaluator's module, or a data module.
        search: what takes its place in a search, which may be itself; asked for its ``trainer`` when a hook is called.
    """
    kind = LightningDataModule if isinstance(owner, LightningDataModule) else LightningModule
    for name in _HOOKS:
        if is_overridden(name, owner, kind):
            setattr(search, name, _for_each_batch(getattr(owner, name), search))


def _for_each_batch(hook: Callable[..., Any], search: Any) -> Callable[..., Any]:
    def applied(batch: Any, *args: Any, **kwargs: Any) -> Any:
        if search.trainer.training:
            return {name: hook(part, *args, **kwargs) for name, part in batch.items()}
        return hook(batch, *args, **kwargs)

    return applied

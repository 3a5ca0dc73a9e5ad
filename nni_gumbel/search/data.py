"""The data of a search: loaders in pairs, for a step needs a training batch and a batch for the structure.

The latter comes from the validation data; where an evaluator has none, its training set is split. NNI's
``OneShotStrategy.mutate_evaluator`` does the pairing alone, changes the data module that it is given, and refuses an
evaluator without validation data. Hooks on batches (``on_after_batch_transfer``, for example: augmentation on a GPU)
are handed the batches of a pair one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import pytorch_lightning as pl
import torch
from nni.mutable import Mutable
from nni.nas.evaluator.pytorch import Lightning, LightningModule
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from nni_gumbel.copies import instance
from nni_gumbel.errors import UsageError

_logger = logging.getLogger(__name__)

# What a part of a loader's data is loaded by, besides its batch size and order.
_KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "multiprocessing_context",
    "prefetch_factor", "persistent_workers",
)  # fmt: skip
_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def take_over(evaluator: Lightning, wrap: Callable[[LightningModule], LightningModule]) -> Lightning:
    """The evaluator of a search: the same training, of structure and weights together.

    A data module may have a ``structure_dataloader``: the validation data as the structure step takes it,
    shuffled and in batches of the training's size. Else the structure step takes ``val_dataloader``. Without
    any validation data half of the training set becomes that, and the log says so.

    Args:
        evaluator: a person's; left as it is, and usable for a training afterwards.
        wrap: makes the module of the search from the evaluator's module.

    Returns:
        A new evaluator with the same Trainer and ``fit_kwargs``.

    Raises:
        UsageError: a search cannot use the evaluator.
    """
    if not isinstance(evaluator, Lightning):
        raise UsageError(
            f"evaluator: {type(evaluator).__name__} is no Lightning evaluator; "
            "give Classification, Regression or Lightning of nni.nas.evaluator.pytorch"
        )
    if isinstance(evaluator, Mutable) and evaluator.simplify():
        labels = ", ".join(map(repr, evaluator.simplify()))
        raise UsageError(f"evaluator: it has choices of its own ({labels}); give it fixed values")
    if getattr(evaluator.trainer.strategy, "_layer_sync", None) is not None:
        raise UsageError(
            "sync_batchnorm: it replaces every BatchNorm of the supernet by one that knows no choices; leave it out"
        )
    if evaluator.datamodule is not None:
        data = instance(type(evaluator.datamodule), vars(evaluator.datamodule))  # whose loaders are replaced
        has_own = is_overridden("val_dataloader", data, LightningDataModule)
        validation = data.val_dataloader if has_own else None
        structure = getattr(data, "structure_dataloader", None)
        pass_on_batch_hooks(data, data)
        data.train_dataloader, data.val_dataloader = _paired(data.train_dataloader, validation, structure)
        loaders = {"datamodule": data}
    else:
        train, given = evaluator.train_dataloaders, evaluator.val_dataloaders
        if train is None:
            raise UsageError("evaluator: it has no training data; give train_dataloaders or a datamodule")
        pairs, validation = _paired(lambda: train, None if given is None else lambda: given, None)
        loaders = {"train_dataloaders": pairs(), "val_dataloaders": validation()}
    return Lightning(wrap(evaluator.module), evaluator.trainer, fit_kwargs=evaluator.fit_kwargs, **loaders)


def _paired(
    train: Callable[[], Any],
    validation: Callable[[], Any] | None,
    structure: Callable[[], Any] | None,
) -> tuple[Callable[[], CombinedLoader], Callable[[], Any]]:
    """What makes the loaders of a search, of its training and of its validation, from what makes an evaluator's."""
    if structure is None and validation is None:
        parts = cache(lambda: split_training_data(train()))
        train_part, structure, validation = (lambda part=part: parts()[part] for part in range(3))
    else:
        train_part = train
        structure = structure or (lambda: _first(validation()))

    def pairs() -> CombinedLoader:  # the shorter loader starts again
        return CombinedLoader({"train": train_part(), "val": structure()}, "max_size_cycle")

    return pairs, validation or (lambda: [])


def _first(loaders: Any) -> Any:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)):
        return loaders
    if not loaders:
        raise UsageError(
            "val_dataloaders: there is none in the list; give one, or none at all: the training set is split then"
        )
    if len(loaders) > 1:
        _logger.info("of %d validation loaders the structure learns on the first", len(loaders))
    return loaders[0]


def split_training_data(loader: Any) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Halve the data of a loader at random, always in the same way; a loader that cannot be split is refused.

    Returns:
        Loaders like the given one: of what is not validation data for the weights, of the validation part for the
        structure (in the training's order or shuffled), and of that part in a fixed order for the validation.
    """
    remedy = "give the evaluator validation data (val_dataloaders)"
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise UsageError(f"train_dataloaders: {type(loader).__name__} cannot be split in two; {remedy}")
    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)) or loader.batch_size is None:
        raise UsageError(
            f"train_dataloaders: {type(loader.sampler).__name__} chooses among all examples and cannot be "
            f"split in two; {remedy}"
        )
    count = len(loader.dataset)
    held_out = round(count / 2)
    if not 0 < held_out < count:
        raise UsageError(f"train_dataloaders: {count} examples cannot be split in two; {remedy}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    _logger.info(
        "the evaluator has no validation data: %d of its %d training examples become validation data, "
        "the weights are trained on the other %d", held_out, count, count - held_out,
    )  # fmt: skip

    def part(indices: list[int], shuffle: bool, drop_last: bool) -> DataLoader:
        kept = {name: getattr(loader, name) for name in _KEPT}
        data = Subset(loader.dataset, sorted(indices))
        return DataLoader(data, loader.batch_size, shuffle=shuffle, drop_last=drop_last, **kept)

    shuffled = isinstance(loader.sampler, RandomSampler)
    return (
        part(order[held_out:], shuffled, loader.drop_last),
        part(order[:held_out], shuffled, loader.drop_last and held_out >= loader.batch_size),
        part(order[:held_out], False, False),
    )


def pass_on_batch_hooks(owner: LightningModule | LightningDataModule, search: Any) -> None:
    """Let what takes the owner's place in a search call the hooks on batches that it has, for each batch of a pair."""
    kind = LightningDataModule if isinstance(owner, LightningDataModule) else pl.LightningModule

    def for_each(hook: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        if search.trainer.training:
            return {name: hook(part, *args, **kwargs) for name, part in batch.items()}
        return hook(batch, *args, **kwargs)

    for name in _BATCH_HOOKS:
        if is_overridden(name, owner, kind):
            setattr(search, name, partial(for_each, getattr(owner, name)))

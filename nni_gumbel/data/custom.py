"""A person's own data: ``module:function`` that returns a LightningDataModule.

What the pipeline needs and the module does not offer is read off its loaders, once.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nni_gumbel.data import FIELD
from nni_gumbel.errors import user_code
from nni_gumbel.names import call_named


def build_custom(reference: str, **arguments: Any) -> LightningDataModule:
    """Call the function with those of ``arguments`` that it has parameters for.

    Returns:
        Its data module; attributes that it lacks are added (see :func:`nni_gumbel.data.build_data`).

    Raises:
        UsageError: it is not found, fails, or returns something else.
    """
    data = call_named(FIELD, reference, arguments, LightningDataModule)
    with user_code(f"{FIELD}: {reference} fails", "correct that function"):
        _complete(data, arguments["batch_size"], arguments["seed"])
    return data


def _complete(data: LightningDataModule, batch_size: int, seed: int) -> None:
    """Add what is missing; only the training and validation loaders are looked at."""
    data.prepare_data()
    data.setup("fit")
    if not hasattr(data, "input_shape"):
        x = _first(next(iter(data.train_dataloader())))
        data.input_shape = tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else None
    if not hasattr(data, "validation_size"):
        data.validation_size = _size(data.val_dataloader())
    for name in ("num_classes", "test_size"):
        if not hasattr(data, name):
            setattr(data, name, None)
    if not hasattr(data, "structure_dataloader"):
        # Taken now: NNI's one-shot strategies put another function in its place.
        validation = data.val_dataloader
        data.structure_dataloader = lambda: _reshuffled(validation(), batch_size, seed)


def _reshuffled(loader: Any, batch_size: int, seed: int) -> Any:
    """The same data in random order, where the loader is one that can be opened."""
    size = _size(loader)
    if size is None:
        return loader
    return DataLoader(
        loader.dataset, batch_size, shuffle=True, collate_fn=loader.collate_fn, num_workers=loader.num_workers,
        generator=torch.Generator().manual_seed(seed), drop_last=size >= batch_size,
    )  # fmt: skip


def _size(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return len(loader.dataset)


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) and batch else batch

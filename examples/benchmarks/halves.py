"""Images of a search: some train the weights, others the structure, in epochs that may be shorter than they are.

The loaders are the package's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from nni_gumbel.data.images import Augmentation, ImageData
from nni_gumbel.data.sources import Parts


class HalvedImages(ImageData):
    """Training images and as many others, for a search.

    NNI's strategies take the batches of the structure from ``val_dataloader``: here they are shuffled, and as large as
    those of the weights, as this plugin has them from ``structure_dataloader``.

    Args:
        parts: the halves in ``train`` and ``validation``.
        augmentation: of the training half.
        batch_size: images a batch.
        seed: of order and augmentation.
        batches: in an epoch of either half; all, if left out.
    """

    def __init__(
        self,
        parts: Parts,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        batches: int | None = None,
    ) -> None:
        super().__init__(parts, augmentation, batch_size=batch_size, seed=seed)
        self.batches = batches

    def train_dataloader(self) -> Any:
        return _shortened(super().train_dataloader(), self.batches)

    def structure_dataloader(self) -> Any:
        return _shortened(super().structure_dataloader(), self.batches)

    def val_dataloader(self) -> Any:
        return self.structure_dataloader()

    def in_order(self) -> Any:
        """The other half once, not shuffled: what a network is judged on."""
        return super().val_dataloader()


class _First:
    """The first batches of a loader, whose order is drawn anew in every epoch."""

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader, self._batches = loader, batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._batches)


def _shortened(loader: Any, batches: int | None) -> Any:
    return loader if batches is None or batches >= len(loader) else _First(loader, batches)

"""The images of the instruments: CIFAR-10 from an ``.npz``, made smaller, a part of them, in two halves.

One half trains the weights, augmented; the other one trains the structure, or judges a cell that was trained alone.
The loaders are the package's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nni_gumbel.data.images import Augmentation, ImageData
from nni_gumbel.data.sources import Images, Parts, read_parts
from nni_gumbel.errors import UsageError

SIDE = 32
_HOW_TO_GET = (
    "an .npz of CIFAR-10: x_train (50000, 32, 32, 3) uint8, y_train, x_test, y_test, as torchvision's "
    "CIFAR10(download=True) has them in .data and .targets"
)


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


def read(path: Path, *, images: int, resolution: int, batch_size: int, seed: int) -> HalvedImages:
    """Read the images.

    Args:
        path: the ``.npz``.
        images: in each half; drawn by ``seed``.
        resolution: height and width in pixels, a divisor of 32; pixels are averaged.
        batch_size: images a batch.
        seed: of the draw, of the order and of the augmentation.

    Raises:
        UsageError: the file is missing or something else, there are too few images, or the resolution is no divisor.
    """
    if not path.is_file():
        raise UsageError(f"--images: {path} does not exist; give {_HOW_TO_GET}")
    parts = read_parts(f"npz:{path}", "")
    pixels = np.concatenate([parts.train.pixels, parts.validation.pixels])
    labels = np.concatenate([parts.train.labels, parts.validation.labels])
    if 2 * images > len(labels):
        raise UsageError(
            f"--half: {images} and as many others are more than the {len(labels)} training images of {path}; "
            f"give at most {len(labels) // 2}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    train, validation = (
        Images(smaller(pixels[part], resolution), labels[part])
        for part in (order[:images], order[images : 2 * images])
    )
    return HalvedImages(
        Parts(train, validation, parts.test.part(np.arange(0))),
        Augmentation(resolution // 8, flip=True),
        batch_size=batch_size,
        seed=seed,
    )


def smaller(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Average squares of pixels.

    Args:
        pixels: ``(N, C, H, H)`` uint8.
        resolution: height and width of the result, a divisor of ``H``.

    Returns:
        ``(N, C, resolution, resolution)`` uint8, rounded.
    """
    count, channels, side, _ = pixels.shape
    if not 0 < resolution <= side or side % resolution:
        raise UsageError(f"--resolution: {resolution} does not divide {side}; give 32, 16 or 8")
    factor = side // resolution
    if factor == 1:
        return pixels
    squares = pixels.reshape(count, channels, resolution, factor, resolution, factor)
    return np.rint(squares.mean((3, 5), dtype=np.float32)).astype(np.uint8)

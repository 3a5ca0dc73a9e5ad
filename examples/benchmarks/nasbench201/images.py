"""The images of the instruments: CIFAR-10 from an ``.npz``, made smaller, a part of them, in two halves.

One half trains the weights, augmented; the other one trains the structure, or judges a cell that was trained alone.
The loaders are the package's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from halves import HalvedImages

from nni_gumbel.data.images import Augmentation
from nni_gumbel.data.sources import Images, Parts, read_parts
from nni_gumbel.errors import UsageError

_HOW_TO_GET = (
    "an .npz of CIFAR-10: x_train (50000, 32, 32, 3) uint8, y_train, x_test, y_test, as torchvision's "
    "CIFAR10(download=True) has them in .data and .targets"
)


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
    pixels, labels = _training_images(path)
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
        Parts(train, validation, validation.part(np.arange(0))),  # the test images are the table's
        Augmentation(resolution // 8, flip=True),
        batch_size=batch_size,
        seed=seed,
    )


@cache
def _training_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Once a process, which may do many jobs."""
    parts = read_parts(f"npz:{path}", "")
    return tuple(
        np.concatenate(two) for two in zip(*((p.pixels, p.labels) for p in (parts.train, parts.validation)))
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

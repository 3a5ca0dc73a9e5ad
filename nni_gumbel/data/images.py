"""Loaders over images in memory: whole batches at a time, reproducible from one seed.

Images stay uint8; a batch is gathered, augmented and normalised in a few tensor operations, because
an item at a time costs more than a small network's training step. Augmentation sits in the training
loader, not in a hook of the data module: a one-shot search hands its module training and validation
batches in one dict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pytorch_lightning import LightningDataModule
from torch.nn.functional import affine_grid, grid_sample, pad
from torch.utils.data import DataLoader, Dataset

from nni_gumbel.data.sources import Images, Parts

# Batches that are only evaluated have no gradients to hold, and fewer of them save time.
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, each by an amount of its own.

    ``padding``: crop out of a black border of so many pixels; ``flip``: mirror half of them;
    ``degrees``: turn by up to so many either way; ``zoom``: enlarge or shrink by up to that fraction.
    """

    padding: int
    flip: bool
    degrees: float = 0.0
    zoom: float = 0.0


_DIGITS = Augmentation(2, flip=False, degrees=12, zoom=0.1)
_STANDARD = {
    "mnist5k": _DIGITS, "mnist": _DIGITS, "kmnist": _DIGITS, "fashion-mnist": Augmentation(2, flip=True),
    "cifar10": Augmentation(4, flip=True), "cifar100": Augmentation(4, flip=True),
}  # fmt: skip


def augmentation_of(name: str, parts: Parts) -> Augmentation:
    """The set's usual augmentation; of unknown images a crop that moves them by 1/14 (28 pixels: 2)."""
    if name in _STANDARD:
        return _STANDARD[name]
    return Augmentation(min(parts.train.pixels.shape[2:]) // 14, flip=False)


class ImageData(LightningDataModule):
    """Three loaders, a fourth for the structure steps of a search, and the facts about the images."""

    def __init__(self, parts: Parts, augmentation: Augmentation, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.num_classes = int(parts.train.labels.max()) + 1
        self.input_shape: tuple[int, int, int] = tuple(parts.train.pixels.shape[1:])
        self.validation_size, self.test_size = len(parts.validation), len(parts.test)
        self._parts, self._augmentation = parts, augmentation
        self._batch_size, self._seed = batch_size, seed
        self._mean, self._std = _moments(parts.train)

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented; a last batch that is not full is left out, batch norm needs many."""
        return self._shuffled(self._parts.train, self._augmentation)

    def structure_dataloader(self) -> DataLoader:
        """The validation part as a search trains the structure on it: shuffled, not augmented."""
        return self._shuffled(self._parts.validation, None)

    def val_dataloader(self) -> DataLoader:
        """The validation part in its order."""
        return self._evaluated(self._parts.validation)

    def test_dataloader(self) -> DataLoader:
        """The test part in its order."""
        return self._evaluated(self._parts.test)

    def _shuffled(self, images: Images, augmentation: Augmentation | None) -> DataLoader:
        # One stream for order and augmentation, started anew with each loader.
        generator = torch.Generator().manual_seed(self._seed)
        batches = _Batches(images, self._mean, self._std, augmentation, generator)
        return DataLoader(
            batches, self._batch_size, shuffle=True, generator=generator, collate_fn=_as_it_is,
            drop_last=len(images) >= self._batch_size,
        )  # fmt: skip

    def _evaluated(self, images: Images) -> DataLoader:
        batches = _Batches(images, self._mean, self._std)
        return DataLoader(
            batches, max(self._batch_size, _EVALUATION_BATCH), collate_fn=_as_it_is,
            # A loader without a generator of its own draws from the global one.
            generator=torch.Generator().manual_seed(self._seed),
        )  # fmt: skip


class _Batches(Dataset):
    """Hands a loader whole batches: normalised images ``(B, C, H, W)`` float32, labels ``(B,)``."""

    def __init__(
        self,
        images: Images,
        mean: torch.Tensor,
        std: torch.Tensor,
        augmentation: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        # The strides of a single channel may be any, and from them a convolution tells the layout of its outputs.
        self._pixels = torch.from_numpy(images.pixels).flatten().view(images.pixels.shape)
        self._labels = torch.from_numpy(images.labels)
        self._mean, self._std = mean, std
        self._augmentation, self._generator = augmentation, generator

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = self.__getitems__([index])
        return pixels[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.tensor(indices)
        pixels = self._pixels[chosen]
        if self._augmentation is not None:
            pixels = augment(pixels, self._augmentation, self._generator)
        return pixels.float().sub_(self._mean).div_(self._std), self._labels[chosen]


def augment(
    pixels: torch.Tensor, augmentation: Augmentation, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mirror, crop, turn and zoom a batch of images, each by an amount of its own.

    Args:
        pixels: ``(B, C, H, W)``, any type; 0 is black.
        augmentation: what happens, and how much of it.
        generator: source of randomness; the global one if omitted.

    Returns:
        ``(B, C, H, W)``; same type, float32 if the images are turned or zoomed.
    """
    count, _, height, width = pixels.shape
    if augmentation.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    border = augmentation.padding
    if border:
        windows = pad(pixels, [border] * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(2 * border + 1, (2, count), generator=generator)
        pixels = windows[torch.arange(count), :, top, left]
    if augmentation.degrees or augmentation.zoom:
        pixels = _turned(pixels.float(), augmentation, generator)
    return pixels


def _turned(
    images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator | None
) -> torch.Tensor:
    turn, zoom = 2 * torch.rand(2, len(images), generator=generator) - 1
    angle, scale = turn * math.radians(augmentation.degrees), 1 + zoom * augmentation.zoom
    cosine, sine, none = angle.cos() * scale, angle.sin() * scale, torch.zeros_like(angle)
    rows = [torch.stack(row, dim=-1) for row in ((cosine, -sine, none), (sine, cosine, none))]
    grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def _moments(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, ``(C, 1, 1)`` each, in units of a pixel value.

    Counted, not added up in floating point: the same on any number of threads, and without a copy of
    all images as floats.
    """
    channels = torch.from_numpy(images.pixels).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    shares, values = counts / counts.sum(1, keepdim=True), torch.arange(256).double()
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std = torch.where(std > 0, std, 1.0)  # a channel that is constant becomes 0
    return mean.float()[:, None, None], std.float()[:, None, None]


def _as_it_is(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch

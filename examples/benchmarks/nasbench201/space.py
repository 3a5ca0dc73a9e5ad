"""The size of an experiment on NNI's ``NasBench201``, as arguments of every instrument: network and images."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import images
from halves import HalvedImages
from nni.nas.hub.pytorch import NasBench201


@dataclass(frozen=True)
class Size:
    """What a search or a training runs on.

    Attributes:
        channels: of the stem; doubled at each of two reductions.
        cells: in each of three stages.
        half: images that train the weights; as many others train the structure, or judge.
        resolution: of the images, in pixels.
        batch_size: images a batch.
    """

    channels: int = 8
    cells: int = 1
    half: int = 4000
    resolution: int = 32
    batch_size: int = 64

    @classmethod
    def of(cls, arguments: Namespace) -> Size:
        """From the arguments that :func:`add_arguments` added; ``--quick`` makes it small."""
        if arguments.quick:
            return cls(channels=4, cells=1, half=256, resolution=8, batch_size=32)
        return cls(**{name: getattr(arguments, name) for name in asdict(cls())})

    def space(self) -> NasBench201:
        return NasBench201(stem_out_channels=self.channels, num_modules_per_stack=self.cells)

    def read(self, path: Path, seed: int) -> HalvedImages:
        return images.read(
            path, images=self.half, resolution=self.resolution, batch_size=self.batch_size, seed=seed
        )

    def job(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.channels} channels, {self.cells} cells a stage, {self.half:,} + {self.half:,} images of "
            f"{self.resolution} x {self.resolution}, batches of {self.batch_size}"
        )


def add_arguments(parser: ArgumentParser, reads_images: bool = True) -> None:
    """The arguments that all instruments have."""
    parser.add_argument("--table", type=Path, required=True, help="NAS-Bench-201 for CIFAR-10: CSV, also .xz")
    if reads_images:
        size = Size()
        parser.add_argument("--images", type=Path, required=True, help="CIFAR-10: .npz")
        parser.add_argument("--channels", type=int, default=size.channels, help="of the stem")
        parser.add_argument("--cells", type=int, default=size.cells, help="in each of three stages")
        parser.add_argument(
            "--half", type=int, default=size.half, help="images for weights, and for structure"
        )
        parser.add_argument(
            "--resolution", type=int, default=size.resolution, help="of the images: 32, 16, 8"
        )
        parser.add_argument("--batch-size", type=int, default=size.batch_size)
    parser.add_argument("--quick", action="store_true", help="tiny, whatever is given: does it run?")
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time, each on one thread unless it says more"
    )
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="CSV and picture")

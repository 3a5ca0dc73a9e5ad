"""Data sets: where images come from, how they are split, and the loaders over them.

This file knows the words that ``--data`` takes and nothing heavy, so that they can be checked before
anything starts; ``sources.py`` reads images into memory and splits them, ``images.py`` makes loaders
of them, ``custom.py`` takes a person's own data module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.names import split_name

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule

FIELD, DIRECTORY_FIELD = "--data", "--data-dir"

PACKAGED = "mnist5k"
# What torchvision downloads, and the shape of its images, channels first.
DOWNLOADED = {
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist"), (1, 28, 28)),
    **dict.fromkeys(("cifar10", "cifar100"), (3, 32, 32)),
}
FILE_PREFIX = "npz:"


def is_function(name: str) -> bool:
    """Whether the word after ``--data`` names a function, ``module:function``."""
    return ":" in name and not name.startswith(FILE_PREFIX)


def check_name(name: str) -> None:
    """Check the word after ``--data`` without reading or importing what it names.

    Raises:
        UsageError: it is no known word and has neither of the two forms.
    """
    if is_function(name):
        split_name(FIELD, name)
    elif name == FILE_PREFIX:
        raise UsageError(f"{FIELD}: {name!r} names no file; give npz:FILE")
    elif not name.startswith(FILE_PREFIX) and name not in (PACKAGED, *DOWNLOADED):
        words = (PACKAGED, *DOWNLOADED, "npz:FILE", "module:function")
        raise UsageError(f"{FIELD}: {name!r} is no data set{nearest(name, words)}")


def build_data(name: str, *, data_dir: str, batch_size: int, seed: int) -> LightningDataModule:
    """Read a data set and make its loaders.

    Args:
        name: ``mnist5k``, a torchvision set, ``npz:FILE`` or ``module:function``.
        data_dir: where torchvision's files are, or are downloaded to.
        batch_size: images a batch, in training and in the structure steps of a search.
        seed: of the order and the augmentation of training batches. Splits do not depend on it.

    Returns:
        A data module with the attributes ``num_classes``, ``input_shape`` (channels, height, width),
        ``validation_size``, ``test_size``, and with ``structure_dataloader()``: shuffled batches of
        the validation part, for the structure steps of a search. Of a person's own module the first
        four are ``None`` where they cannot be told.

    Raises:
        UsageError: the name, the files or the data directory are wrong.
    """
    check_name(name)
    if is_function(name):
        from nni_gumbel.data.custom import build_custom

        return build_custom(name, data_dir=data_dir, batch_size=batch_size, seed=seed)

    from nni_gumbel.data.images import ImageData, augmentation_of
    from nni_gumbel.data.sources import read_parts

    parts = read_parts(name, data_dir)
    return ImageData(parts, augmentation_of(name, parts), batch_size=batch_size, seed=seed)

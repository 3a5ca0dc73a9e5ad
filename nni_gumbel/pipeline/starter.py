"""What `nni-gumbel init` writes: the files of the clone, for people without one.

`experiment.yml` and the space in it are templates and the project's own main job at once, so they
cannot fall apart. An installed package carries them as data files.
"""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from nni_gumbel.errors import UsageError

DISTRIBUTION = "nni-gumbel"
STARTER_FILES = ("experiment.yml", "experiment.schema.json", ".nniignore", "search_spaces/mnist.py")

# Where data files are under the installation's prefix (setup.cfg, options.data_files).
_SHARE = "share/nni-gumbel/"


def write_starter(directory: str | Path) -> list[Path]:
    """Copy the starter files into a directory, which is made if it is not there.

    Returns:
        The files written.

    Raises:
        UsageError: one of them exists there already, or the directory cannot be written.
    """
    directory = Path(directory)
    targets = [directory / name for name in STARTER_FILES]
    sources = [_source(name) for name in STARTER_FILES]
    for target in targets:
        if target.exists():
            raise UsageError(
                f"DIR: {target} exists and is not overwritten; give another directory or move it away"
            )
    try:
        for source, target in zip(sources, targets):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(
            f"DIR: {directory} cannot be written ({error.strerror}); give a directory that can"
        ) from error
    return targets


def _source(name: str) -> Path:
    # A clone comes first: beside an editable installation lie copies of the day it was made.
    beside = Path(__file__).parents[2] / name
    if beside.is_file() and (Path(__file__).parents[2] / "setup.cfg").is_file():
        return beside
    try:
        installed = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        installed = []
    for entry in installed:
        if entry.as_posix().endswith(_SHARE + name) and Path(entry.locate()).is_file():
            return Path(entry.locate())
    raise UsageError(
        f"{name}: it is missing from this installation; run `pip install --force-reinstall --no-deps` again"
    )

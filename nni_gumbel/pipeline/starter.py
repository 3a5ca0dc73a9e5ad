"""What `nni-gumbel init` writes: the files of the clone, for people without one.

`experiment.yml` and the space in it are templates and the project's own main job at once, so they
cannot fall apart. An installed package carries them as data files.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from nni_gumbel.errors import UsageError

DISTRIBUTION = "nni-gumbel"
STARTER_FILES = ("experiment.yml", "examples/experiment.schema.json", ".nniignore", "search_spaces/mnist.py")


def write_starter(directory: str | Path) -> list[Path]:
    """Copy the starter files into a directory, which is made if it is not there.

    Returns:
        The files written.

    Raises:
        UsageError: one of them exists there already, or the directory cannot be written.
    """
    directory = Path(directory)
    targets = {directory / name: _source(name) for name in STARTER_FILES}
    for target in targets:
        if target.exists():
            raise UsageError(
                f"DIR: {target} exists and is not overwritten; give another directory or move it away"
            )
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(
            f"DIR: {directory} cannot be written ({error.strerror}); give a directory that can"
        ) from error
    return list(targets)


def _source(name: str) -> Path:
    clone = Path(__file__).parents[2]
    if (clone / "setup.cfg").is_file():  # beside an editable installation lie copies of the day it was made
        return clone / name
    # Where data files are under the installation's prefix: setup.cfg, options.data_files.
    files = metadata.files(DISTRIBUTION) or []
    return Path(next(file for file in files if str(file).endswith(f"share/nni-gumbel/{name}")).locate())

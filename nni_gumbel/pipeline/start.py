"""How a person starts an experiment: files to start from, and `nnictl` with a portal that nobody else reaches.

The files are those of the clone, templates and the project's own main job at once, so they cannot fall apart; an
installed package carries them as data files.

Whoever reaches NNI's port starts commands and reads files as the person who started the experiment: NNI has no login,
and 3.0 no setting for where it listens. Its manager is a program of Node, and is made to load a script of ours first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

import psutil

from nni_gumbel.errors import UsageError

DISTRIBUTION = "nni-gumbel"
STARTER_FILES = ("experiment.yml", "examples/experiment.schema.json", ".nniignore", "search_spaces/mnist.py")

# The commands of `nnictl` that start a manager.
COMMANDS = {
    "create": "check and start an experiment, its portal on this machine alone; the words are those of `nnictl create`",
    "resume": "go on with an experiment that was stopped, likewise",
    "view": "show an experiment that was stopped, likewise",
}

_SCRIPT = Path(__file__).with_name("loopback.cjs")


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
            line = f"DIR: {target} exists and is not overwritten; give another directory or move it away"
            raise UsageError(line)
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        line = f"DIR: {directory} cannot be written ({error.strerror}); give a directory that can"
        raise UsageError(line) from error
    return list(targets)


def _source(name: str) -> Path:
    clone = Path(__file__).parents[2]
    if (clone / "setup.cfg").is_file():  # beside an editable installation lie copies of the day it was made
        return clone / name
    # Where data files are under the installation's prefix: setup.cfg, options.data_files.
    files = metadata.files(DISTRIBUTION) or []
    return Path(next(file for file in files if str(file).endswith(f"share/nni-gumbel/{name}")).locate())


def nnictl(words: Sequence[str]) -> int:
    """Run `nnictl` with a manager that listens on the loopback interface alone.

    Args:
        words: one of :data:`COMMANDS` and what `nnictl` takes behind it.

    Returns:
        The exit code of `nnictl`.

    Raises:
        UsageError: the experiment to be created would end at its start, see
            :func:`~nni_gumbel.pipeline.doctor.check_before_start`.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-c", "--config", nargs="?")  # one that is missing is nnictl's to tell
    config = parser.parse_known_args(words)[0].config if words[0] == "create" else None
    if config is not None:
        from nni_gumbel.pipeline.doctor import check_before_start

        check_before_start(config)
    script = str(_SCRIPT).replace("\\", r"\\").replace('"', r"\"")
    options = f'{os.environ.get("NODE_OPTIONS", "")} --require "{script}"'.strip()
    # The one of this environment, whatever the shell finds first, and without modules of the working directory.
    program = "import sys; sys.path.pop(0); from nni.tools.nnictl.nnictl import parse_args; parse_args()"
    environment = {**os.environ, "NODE_OPTIONS": options}
    running = subprocess.Popen([sys.executable, "-c", program, *words], env=environment)
    # Ctrl-C reaches `nnictl`, too, which ends a manager in the foreground.
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return running.wait()
    finally:
        signal.signal(signal.SIGINT, own)


def is_open_to_others(port: int) -> bool:
    """Whether a program on this machine is seen to listen at a port on more than the loopback interface."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # a machine that does not show its connections
        return False
    listening = (each.laddr for each in found if each.status == psutil.CONN_LISTEN)
    addresses = (ip_address(address.ip) for address in listening if address.port == port)
    return any(not (getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)

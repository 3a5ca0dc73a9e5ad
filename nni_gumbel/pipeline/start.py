"""How a person starts an experiment: files to start from, and `nnictl` with a portal that nobody else reaches.

The files are those of the clone, templates and the project's own main job at once, so they cannot fall apart; an
installed package carries them as data files.

Whoever reaches NNI's port starts commands and reads files as the person who started the experiment: NNI has no login,
and 3.0 no setting for where it listens. Its manager is a program of Node, and is made to load a script of ours first.
The manager of an experiment on other hosts listens at ``nniManagerIp``, too, and there answers these hosts alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Any

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

# NNI's trial keepers try for 15 s to reach their manager again, and would take the place of those of the next one.
_ORPHANS_LIVE = 20

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
            :func:`~nni_gumbel.pipeline.doctor.check_before_start`, or a host of it has no address.
    """
    params = _params(words)
    hosts = _hosts(params) if params is not None else None
    # The one of this environment, whatever the shell finds first, and without modules of the working directory.
    program = (
        "import sys; sys.path.pop(0); from nni_gumbel.pipeline.start import private_portal; private_portal(); "
        "from nni.tools.nnictl.nnictl import parse_args; parse_args()"
    )
    environment = {**os.environ, "NNI_GUMBEL_HOSTS": json.dumps(hosts)}
    running = subprocess.Popen([sys.executable, "-c", program, *words], env=environment)
    # Ctrl-C reaches `nnictl`, too, which ends a manager in the foreground.
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return running.wait()
    finally:
        signal.signal(signal.SIGINT, own)


def private_portal() -> None:
    """Let the managers, and all Node programs, that this process starts listen on the loopback interface alone.

    NNI's portal has no login.

    Before ``NasExperiment.run``. They also get 20 s to start, of which NNI gives them 3, too few on a busy machine.
    """
    from nni.experiment import launcher

    script = str(_SCRIPT).replace("\\", r"\\").replace('"', r"\"")
    option, given = f'--require "{script}"', os.environ.get("NODE_OPTIONS", "")
    if option not in given:
        os.environ["NODE_OPTIONS"] = f"{given} {option}".strip()
    launcher._check_rest_server.__defaults__ = (20, None)


def _params(words: Sequence[str]) -> Mapping[str, Any] | None:
    """Of the experiment that is to run; what is missing or unknown is nnictl's to tell."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("id", nargs="?")
    for names in (("-c", "--config"), ("-p", "--port"), ("-e", "--experiment_dir")):
        parser.add_argument(*names, nargs="?")
    given, _ = parser.parse_known_args(words[1:])
    if words[0] == "create" and given.config is not None:
        from nni_gumbel.pipeline.doctor import check_before_start

        return check_before_start(given.config)
    if words[0] == "resume":
        from nni_gumbel.pipeline.manager import find_experiment, is_remote
        from nni_gumbel.pipeline.records import Records

        folder = Path(given.experiment_dir, given.id) if given.experiment_dir and given.id else given.id
        try:
            params = Records.of(folder).profile["params"]
            if is_remote(params) and not find_experiment(given.id).is_stopped:
                print(
                    f"the manager was killed; what it left on its hosts ends within {_ORPHANS_LIVE} s",
                    flush=True,
                )
                time.sleep(_ORPHANS_LIVE)
            return params
        except UsageError:
            return None
    return None


def _hosts(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the manager listens besides, and the addresses from which it takes connections there."""
    from nni_gumbel.pipeline.manager import check_params, is_remote

    if not is_remote(params):
        return None
    check_params(params)
    service, addresses = params["trainingService"], set()
    try:
        socket.create_server((service["nniManagerIp"], 0)).close()
    except OSError:
        raise UsageError(
            f"nniManagerIp: nothing here can listen at {service['nniManagerIp']!r}; give an address of this machine "
            "that its hosts reach"
        ) from None
    for machine in service["machineList"]:
        try:
            addresses |= {found[4][0] for found in socket.getaddrinfo(machine["host"], None)}
        except OSError as error:
            raise UsageError(
                f"machineList: host {machine['host']!r} has no address here ({error.strerror}); correct it"
            ) from None
    return {"address": service["nniManagerIp"], "admitted": sorted(addresses)}


def is_open_to_others(port: int) -> bool:
    """Whether a program on this machine is seen to listen at a port for everybody, on all network interfaces."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # a machine that does not show its connections
        return False
    listening = (each.laddr for each in found if each.status == psutil.CONN_LISTEN)
    addresses = (ip_address(address.ip) for address in listening if address.port == port)
    return any((getattr(each, "ipv4_mapped", None) or each).is_unspecified for each in addresses)

"""An experiment that nobody else reaches: `nnictl`, with a manager that listens on this machine alone.

Whoever reaches NNI's port starts commands and reads files as the person who started the experiment: NNI has no login,
and 3.0 no setting for where it listens. Its manager is a program of Node, and is made to load a script of ours first.
The manager of an experiment on other hosts listens at ``nniManagerIp``, too, and there answers these hosts alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nni_gumbel.errors import UsageError

# The commands of `nnictl` that start a manager.
COMMANDS = {
    "create": "start an experiment, its portal on this machine alone; the words are those of `nnictl create`",
    "resume": "go on with an experiment that was stopped, likewise",
    "view": "show an experiment that was stopped, likewise",
}

# NNI's trial keepers try for 15 s to reach their manager again, and would take the place of those of the next one.
_ORPHANS_LIVE = 20

_SCRIPT = Path(__file__).with_name("loopback.cjs")


def nnictl(words: Sequence[str]) -> int:
    """Run `nnictl` with a manager that listens on the loopback interface alone.

    Args:
        words: one of :data:`COMMANDS` and what `nnictl` takes behind it.

    Returns:
        The exit code of `nnictl`.

    Raises:
        UsageError: the YAML of the experiment to be created is none that NNI accepts, or a host of it has no address.
    """
    params = _params(words)
    hosts = _hosts(params) if params is not None else None
    script = str(_SCRIPT).replace("\\", r"\\").replace('"', r"\"")
    options = f'{os.environ.get("NODE_OPTIONS", "")} --require "{script}"'.strip()
    # The one of this environment, whatever the shell finds first, and without modules of the working directory.
    # It gives a manager 3 s to start, which a busy machine exceeds: it tries as often as the first number says.
    program = (
        "import sys; sys.path.pop(0); from nni.experiment.launcher import _check_rest_server as check; "
        "check.__defaults__ = (20, None); from nni.tools.nnictl.nnictl import parse_args; parse_args()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "NODE_OPTIONS": options, "NNI_GUMBEL_HOSTS": json.dumps(hosts)},
    )
    # Ctrl-C reaches `nnictl`, too, which ends a manager in the foreground.
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return running.wait()
    finally:
        signal.signal(signal.SIGINT, own)


def _params(words: Sequence[str]) -> Mapping[str, Any] | None:
    """Of the experiment that is to run; what is missing or unknown is nnictl's to tell."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("id", nargs="?")
    for names in (("-c", "--config"), ("-p", "--port"), ("-e", "--experiment_dir")):
        parser.add_argument(*names, nargs="?")
    given, _ = parser.parse_known_args(words[1:])
    if words[0] == "create" and given.config is not None:
        from nni_gumbel.pipeline.doctor import read_config

        return read_config(given.config)
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
    import psutil

    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # a machine that does not show its connections
        return False
    addresses = (
        ip_address(each.laddr.ip)
        for each in found
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    )
    return any((getattr(each, "ipv4_mapped", None) or each).is_unspecified for each in addresses)

"""An experiment that nobody else reaches: `nnictl`, with a manager that listens on this machine alone.

Whoever reaches NNI's port starts commands and reads files as the person who started the experiment: NNI has no login,
and 3.0 no setting for where it listens. Its manager is a program of Node, and is made to load a script of ours first.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

# The commands of `nnictl` that start a manager.
COMMANDS = {
    "create": "start an experiment, its portal on this machine alone; the words are those of `nnictl create`",
    "resume": "go on with an experiment that was stopped, likewise",
    "view": "show an experiment that was stopped, likewise",
}

_SCRIPT = Path(__file__).with_name("loopback.cjs")


def nnictl(words: Sequence[str]) -> int:
    """Run `nnictl` with a manager that listens on the loopback interface alone.

    Args:
        words: one of :data:`COMMANDS` and what `nnictl` takes behind it.

    Returns:
        The exit code of `nnictl`.

    Raises:
        UsageError: the YAML of the experiment to be created is none that NNI accepts.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-c", "--config", nargs="?")  # one that is missing is nnictl's to tell
    config = parser.parse_known_args(words)[0].config if words[0] == "create" else None
    if config is not None:
        from nni_gumbel.pipeline.doctor import read_config

        read_config(config)
    script = str(_SCRIPT).replace("\\", r"\\").replace('"', r"\"")
    options = f'{os.environ.get("NODE_OPTIONS", "")} --require "{script}"'.strip()
    # The one of this environment, whatever the shell finds first, and without modules of the working directory.
    program = "import sys; sys.path.pop(0); from nni.tools.nnictl.nnictl import parse_args; parse_args()"
    running = subprocess.Popen(
        [sys.executable, "-c", program, *words], env={**os.environ, "NODE_OPTIONS": options}
    )
    # Ctrl-C reaches `nnictl`, too, which ends a manager in the foreground.
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return running.wait()
    finally:
        signal.signal(signal.SIGINT, own)


def is_open_to_others(port: int) -> bool:
    """Whether a program on this machine is seen to listen at a port on more than the loopback interface."""
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
    return any(not (getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)

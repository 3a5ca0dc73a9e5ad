"""The manager's process, without which its tuner and its trials have nothing to do.

After `kill -9` of a manager NNI's processes live on: a tuner connects by itself to whatever manager listens on that
port next, which drops its own tuner for it; a trial works until its next report. Both end here, within a second.
"""

from __future__ import annotations

import logging
import os
import threading

import psutil

_LOOK_EVERY = 0.5
_PROGRAM = "nni_node"

_logger = logging.getLogger(__name__)


def manager_process() -> psutil.Process | None:
    """The manager among this process's ancestors; ``None`` where there is none, as for a trial on another host."""
    for process in psutil.Process().parents():
        try:
            if any(_PROGRAM in word for word in process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. One that ended, but waits to be reaped, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with(process: psutil.Process | None) -> None:
    """Let this process end, with code 1, as soon as another one is gone."""
    if process is None:
        return

    def watch() -> None:
        pause = threading.Event()
        while not pause.wait(_LOOK_EVERY):
            if not is_alive(process):
                try:
                    _logger.error("NNI's manager (process %d) is gone, and so this process ends", process.pid)
                finally:
                    os._exit(1)

    threading.Thread(target=watch, name="gumbel-lifeline", daemon=True).start()

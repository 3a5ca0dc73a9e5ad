"""NNI's list of the experiments on this machine, and what an experiment leaves in its log directory.

`nnictl` and the managers keep the list (`~/nni-experiments/.experiment`); it says where an experiment's
manager listens, but not truthfully whether it still runs: a killed one stays `RUNNING` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.manager import ERROR_FILE
from nni_gumbel.pipeline.task import EXPORT_FOLDER


@dataclass(frozen=True)
class Experiment:
    """One experiment of NNI's list on this machine."""

    id: str
    portal: str
    directory: Path
    pid: int
    started: float

    @property
    def api(self) -> str:
        return f"{self.portal}/api/v1/nni"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    @property
    def exported(self) -> bool:
        """Whether one of its trials has written an export."""
        return any(self.directory.glob(f"environments/*/trials/*/{EXPORT_FOLDER}/architecture.json"))


def running_experiments() -> dict[int, str]:
    """The experiments on this machine whose managers live: port -> id."""
    return {
        entry["port"]: name for name, entry in _listed().items() if entry.get("port") and _is_alive(entry)
    }


def find_experiment(experiment_id: str | None = None) -> Experiment:
    """Look an experiment up in NNI's list; the newest one if no id is given.

    Raises:
        UsageError: there is none, or none with this id.
    """
    known = _listed()
    if not known:
        raise UsageError(
            "no experiment was started on this machine; run `nnictl create --config experiment.yml`"
        )
    newest_first = sorted(known, key=lambda name: known[name]["startTime"], reverse=True)
    name = experiment_id or newest_first[0]
    if name not in known:
        some = ", ".join(newest_first[:3])
        raise UsageError(
            f"ID: there is no experiment {name!r}; the newest are {some} (`nnictl experiment list --all`)"
        )
    entry = known[name]
    prefix = f"/{entry['prefixUrl'].strip('/')}" if entry.get("prefixUrl") else ""
    return Experiment(
        id=name,
        # A manager that ended has no port any more.
        portal=f"http://127.0.0.1:{entry.get('port', 0)}{prefix}",
        directory=Path(entry["logDir"]).expanduser() / name,
        pid=entry["pid"],
        started=entry["startTime"] / 1000,
    )


def has_ended(experiment: Experiment) -> bool:
    """Whether the manager is gone, by itself or because it was stopped."""
    return is_marked_stopped(experiment) or not _is_alive(_listed().get(experiment.id, {}))


def is_marked_stopped(experiment: Experiment) -> bool:
    """Whether NNI's list says that the experiment was stopped."""
    return _listed().get(experiment.id, {}).get("status") == "STOPPED"


def tuners_line(experiment: Experiment) -> str | None:
    """The line with which this run's tuner ended."""
    path = experiment.logs / ERROR_FILE
    try:
        # One from before a resume stays until the new tuner removes it.
        is_ours = path.stat().st_mtime >= experiment.started
        return path.read_text(encoding="utf8").strip() or None if is_ours else None
    except OSError:
        return None


def why_it_shut_down(experiment: Experiment) -> str | None:
    """The manager's last error, if it shut down for a reason of its own."""
    try:
        log = (experiment.logs / "nnimanager.log").read_text(encoding="utf8", errors="replace")
    except OSError:
        return None
    last_run = log[log.rfind("Start NNI manager") :]
    by_itself = re.search(r"Initiate shutdown: (?!SIG|REST)|Critical error", last_run)
    found = re.findall(r"(?:ERROR|CRITICAL) \(\w[^)]*\) (.+)", last_run)
    return found[-1].strip() if by_itself and found else None


def _listed() -> dict[str, dict[str, Any]]:
    from nni.tools.nnictl.config_utils import Experiments

    return {
        name: entry for name, entry in Experiments().get_all_experiments().items() if isinstance(entry, dict)
    }


def _is_alive(entry: Mapping[str, Any]) -> bool:
    """Whether an experiment's manager runs. One that ended, but waits to be reaped, does not."""
    try:
        return psutil.Process(entry["pid"]).status() != psutil.STATUS_ZOMBIE
    except (KeyError, TypeError, psutil.Error):
        return False

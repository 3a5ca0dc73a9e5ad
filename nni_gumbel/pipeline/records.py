"""What an experiment has done, read from the files that NNI keeps of it, whether its manager runs or not.

NNI writes every event and every metric into ``<experiment>/db/nni.sqlite`` at once, and its REST interface answers from
there; so does :class:`Records`, without a manager: of an experiment that runs, was stopped, failed or was killed, and
from a copy of its folder. The trials' output directories lie in the same folder.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.manager import check_tuner, find_experiment, plan_of, trial_of
from nni_gumbel.pipeline.task import CHOICE_PREFIX, Trial

if TYPE_CHECKING:
    from pandas import DataFrame

_DATABASE = Path("db", "nni.sqlite")


@dataclass(frozen=True)
class Records:
    """An experiment as it was when its files were read.

    Args:
        directory: the experiment's folder, ``nni-experiments/<id>``.
        profile: as :meth:`~nni_gumbel.pipeline.manager.Manager.experiment` tells it.
        trials: all of them, in the order in which they were submitted.
    """

    directory: Path
    profile: Mapping[str, Any]
    trials: list[Trial]

    @property
    def outputs(self) -> Path:
        """The folder with the output directories of the trials."""
        return self.directory / "environments" / "local-env" / "trials"

    @classmethod
    def of(cls, experiment: str | Path | None = None) -> Records:
        """Read the records of an experiment.

        Args:
            experiment: its id on this machine, or its folder, which may be a copy; the newest experiment if omitted.

        Raises:
            UsageError: there is none, it is not one of this package's tuner, or its files cannot be read.
        """
        folder = Path(experiment).expanduser() if experiment is not None else None
        if folder is None or not (folder / _DATABASE).is_file():
            if folder is not None and (folder.is_dir() or len(folder.parts) > 1):
                raise UsageError(
                    f"{str(experiment)!r} holds no {_DATABASE}; give an id or the folder nni-experiments/ID"
                )
            folder = find_experiment(None if experiment is None else str(experiment)).directory
        path = folder / _DATABASE
        try:
            # Not read-only: what a killed manager left half written is rolled back by whoever opens it next.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
                profile = database.execute(
                    "select id, params, startTime, endTime, execDuration from ExperimentProfile"
                    " order by revision desc limit 1"
                ).fetchone()
                events = database.execute(
                    "select trialJobId, event, timestamp, data, sequenceId from TrialJobEvent order by rowid"
                ).fetchall()
                metrics = database.execute(
                    "select trialJobId, data from MetricData where type = 'FINAL' order by rowid desc"
                ).fetchall()
        except sqlite3.Error as error:
            raise UsageError(
                f"{path} cannot be read: {first_line(error)}; give the folder of an experiment of NNI"
            ) from None
        if profile is None:
            raise UsageError(f"{path} holds no experiment yet; wait until NNI has started it")
        found = dict(zip(("id", "params", "startTime", "endTime", "execDuration"), profile))
        found["params"] = json.loads(found["params"])
        check_tuner(found)
        return cls(folder, found, _trials(events, dict(metrics)))


def results(experiment: str | Path | None = None) -> DataFrame:
    """All trials of an experiment as a table, also while it runs or after it was stopped.

    Args:
        experiment: its id on this machine, or its folder, which may be a copy; the newest experiment if omitted.

    Returns:
        One row a trial, in the order of the portal, by trial id. Columns: ``sequence``, ``stage``, ``state``
        (``pending``, ``succeeded``, ``failed``), ``seed``, ``attempt``, ``network`` (its name, of trainings), ``start``
        (UTC), ``seconds``; the settings of the trial by name; ``choice/<label>``, of a search those that it found;
        what it reported last by name, with ``validation_<metric>`` and ``test_<metric>``. Missing where a trial has no
        such value.

    Raises:
        UsageError: see :meth:`Records.of`.
    """
    import pandas

    records = Records.of(experiment)
    plan = plan_of(records.profile)
    metric, names = plan.settings.metric, {}
    for network in plan.networks(records.trials):
        for each in (network, *network.baseline):
            names |= {run.trial_id: each.name for run in each.runs}
    rows = []
    for trial in sorted(records.trials, key=lambda trial: trial.sequence):
        given, reported = dict(trial.parameters or {}), dict(trial.result or {})
        architecture = trial.report.architecture if trial.report is not None else None
        renamed = {"default": f"validation_{metric}", "test": f"test_{metric}"}
        given.pop("stage", None), given.pop("key", None)
        rows.append({
            "trial": trial.id,
            "sequence": trial.sequence,
            "stage": trial.stage,
            "state": trial.state,
            "seed": given.pop("seed", None),
            "attempt": given.pop("attempt", None),
            "network": names.get(trial.id, reported.get("network")),
            "start": None if trial.start is None else pandas.Timestamp(trial.start, unit="s", tz="UTC"),
            "seconds": None if None in (trial.start, trial.end) else trial.end - trial.start,
            **given,
            **{CHOICE_PREFIX + label: value for label, value in (architecture or {}).items()},
            **{
                renamed.get(name, name): value
                for name, value in reported.items()
                if name not in ("key", "architecture", "network")
            },
        })  # fmt: skip
    return pandas.DataFrame(rows).set_index("trial") if rows else pandas.DataFrame()


def _trials(events: list[tuple[Any, ...]], finals: Mapping[str, str]) -> list[Trial]:
    """The trials that NNI's events lead to, by NNI's own rules (``getTrialJobsByReplayEvents``)."""
    records: dict[str, dict[str, Any]] = {}
    for name, event, timestamp, data, sequence in events:
        if not name:
            continue  # imported data, of no trial
        record = records.setdefault(name, {"trialJobId": name, "status": "UNKNOWN", "hyperParameters": []})
        if event == "RUNNING" or event == "WAITING" and "startTime" not in record:
            record["startTime"] = timestamp
        elif event in ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"):
            record["endTime"] = timestamp
        if event != "ADD_HYPERPARAMETER":
            renamed = {"USER_TO_CANCEL": "USER_CANCELED", "ADD_CUSTOMIZED": "WAITING"}
            record["status"] = renamed.get(event, event)
        if data:
            record["hyperParameters"].append(data)
        if sequence is not None:
            record.setdefault("sequenceId", sequence)
    for name, record in records.items():
        if record["status"] == "SUCCEEDED" and name in finals:
            record["finalMetricData"] = [{"data": finals[name]}]
    return [trial_of(record) for record in records.values()]

"""What an experiment has done: its trials, what they left in their output directories, and what follows from both.

NNI writes every event and every metric into ``<experiment>/db/nni.sqlite`` at once, and its REST interface answers from
there; so does :meth:`Records.of`, without a manager: of an experiment that runs, was stopped, failed or was killed, and
from a copy of its folder. Output directories lie in the same folder: they have TensorBoard's events of a search, the
bundle and the stability of a training.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import yaml

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.names import inside
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.manager import (
    check_tuner,
    find_experiment,
    is_remote,
    plan_of,
    trial_command_of,
    trial_of,
)
from nni_gumbel.pipeline.plan import Plan, finished
from nni_gumbel.pipeline.task import BUNDLE, CHOICE_PREFIX, RANDOM, TENSORBOARD, TRAIN, Task, Trial
from nni_gumbel.results.agreement import Sampled, choice_of
from nni_gumbel.results.choice import Choice, Network, TrainedRun, choose
from nni_gumbel.results.front import Front
from nni_gumbel.results.neighbours import Neighbours
from nni_gumbel.results.pictures import SearchHistory
from nni_gumbel.results.report import chosen_value
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import Stability

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger(__name__)

_DATABASE = Path("db", "nni.sqlite")
# Of an experiment on other hosts: in the place of one of NNI's environments.
FETCHED = "fetched"
# Of every table of results.
_COLUMNS = ["trial", "sequence", "stage", "state", "seed", "attempt", "network", "start", "seconds"]


def with_weights_of(choice: Choice, run: TrainedRun, why: str) -> Choice:
    """The choice of a network with the weights of a run; where it is not the best one, its reason says so and why."""
    if run == choice.run:
        return choice
    told = f"The weights are of seed {run.seed}, not of the best one, {choice.run.seed}: {why}."
    return replace(choice, run=run, reason=f"{choice.reason} {told}")


@dataclass(frozen=True)
class Records:
    """An experiment as it was when its records were read; what follows from them is computed when it is asked for.

    Args:
        profile: as :meth:`~nni_gumbel.pipeline.manager.Manager.experiment` tells it.
        trials: all of them.
        outputs: the folder with their output directories, or with what :mod:`~nni_gumbel.pipeline.remote` brought of
            them from other hosts.
        command: the trial command.
        export: the output directory of the export; ``None`` if there is none yet.
    """

    profile: Mapping[str, Any]
    trials: Sequence[Trial]
    outputs: Path
    command: TrialCommand
    export: Path | None = None

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
            # One word is an id, also where a folder of that name is here.
            if folder is not None and len(folder.parts) != 1:
                raise UsageError(
                    f"{str(experiment)!r} holds no {_DATABASE}; give an id or the folder nni-experiments/ID"
                )
            folder = find_experiment(None if experiment is None else str(experiment)).directory
        folder = folder.absolute()
        path = folder / _DATABASE
        try:
            # Not read-only: what a killed manager left half written is rolled back by whoever opens it next.
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
                profile = database.execute(
                    "select id, params, startTime, endTime, execDuration from ExperimentProfile"
                    " order by revision desc limit 1"
                ).fetchone()
                events = database.execute(
                    "select trialJobId, event, timestamp, data, sequenceId, logPath from TrialJobEvent order by rowid"
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
        command, _ = trial_command_of(found["params"])
        environment = FETCHED if is_remote(found["params"]) else "local-env"
        trials, outputs = _trials(events, dict(metrics)), folder / "environments" / environment / "trials"
        export = finished(trials)
        return cls(found, trials, outputs, command, None if export is None else outputs / export.id)

    def in_code_directory(self) -> AbstractContextManager[None]:
        """Work where the trials do, if that folder is there: without it, the space cannot be built."""
        _, directory = trial_command_of(self.profile["params"])
        return inside(directory) if directory.is_dir() else nullcontext()

    @property
    def id(self) -> str:
        return self.profile["id"]

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.profile)

    @property
    def metric(self) -> str:
        return self.plan.settings.metric

    # -- networks -------------------------------------------------------------------------------------------

    @cached_property
    def networks(self) -> list[Network]:
        """Those that were found and trained, each with its random ones."""

        def known(network: Network) -> Network:
            runs = tuple(
                replace(run, stability=each.index) if (each := self.stability.get(run.trial_id)) else run
                for run in network.runs
            )
            return replace(network, runs=runs, baseline=tuple(map(known, network.baseline)))

        return list(map(known, self.plan.networks(self.trials)))

    @property
    def trained(self) -> list[Network]:
        """All that were trained: those that were found, each followed by its random ones."""
        return [each for network in self.networks for each in (network, *network.baseline)]

    @property
    def trainings(self) -> list[Trial]:
        """The trials that have trained a network, random ones among them."""
        return [trial for trial in self.trials if trial.report is not None and trial.stage in (TRAIN, RANDOM)]

    def trainings_of(self, run: TrainedRun) -> list[Trial]:
        """The trial of a run."""
        return [trial for trial in self.trainings if trial.id == run.trial_id]

    @cached_property
    def stability(self) -> dict[str, Stability]:
        """What trainings kept of the stability of their networks, by trial."""
        found = {trial.id: Stability.read(self.outputs / trial.id) for trial in self.trials if trial.report}
        return {trial: stability for trial, stability in found.items() if stability is not None}

    @cached_property
    def test_stability(self) -> Stability | None:
        """Of the exported network, on the test part."""
        return None if self.export is None else Stability.read(self.export)

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Of the exported network."""
        return None if self.export is None else Neighbours.read(self.export)

    @cached_property
    def priced(self) -> str:
        """What the searches price; parameters, where some price one cost and some another."""
        words = {variant.search.cost for variant in self.plan.variants}
        if self.command.cost is not None:
            return "cost"
        return words.pop() if len(words) == 1 else "params"

    @cached_property
    def choice(self) -> Choice:
        """By the rule of the experiment.

        Raises:
            UsageError: no training has finished.
        """
        if not self.networks:
            told = f"ID: experiment {self.id} has"
            if any(trial.stage == TRAIN and trial.report is not None for trial in self.trials):
                raise UsageError(
                    f"{told} trainings, but not with the settings that its experiment.yml means to this version of "
                    "nni_gumbel; use the version that ran it"
                )
            raise UsageError(f"{told} no finished training yet; `nni-gumbel wait {self.id}` follows it")
        return self.choice_among(self.networks)

    def choice_among(self, networks: Sequence[Network]) -> Choice:
        """By the rule of the experiment, among some of its networks (at least one).

        Of the chosen one the run is taken whose weights could be written, if there is one; which of them other hosts
        have, is not known here.
        """
        settings = self.plan.settings
        choice = choose(networks, self.metric, settings.optimize_mode, self.priced, settings.choice_rule)
        if is_remote(self.profile["params"]):
            return choice
        there = (run for run in self.runs_of(choice) if (self.outputs / run.trial_id / BUNDLE).is_dir())
        return with_weights_of(choice, next(there, choice.run), "its bundle could not be written")

    def runs_of(self, choice: Choice) -> list[TrainedRun]:
        """The trainings of the chosen network: the chosen one, and the others behind it, best first."""
        sign = 1 if self.plan.settings.optimize_mode == "maximize" else -1
        others = (run for run in choice.network.runs if run != choice.run)
        return [choice.run, *sorted(others, key=lambda run: (-sign * run.validation, run.seed))]

    @property
    def front(self) -> Front:
        """All networks found, by what the experiment prices; of the name that people know it by."""
        name, settings = self.profile["params"].get("experimentName"), self.plan.settings
        name = f"{name} ({self.id})" if name else self.id
        return Front(
            self.networks, self.choice.network, self.metric, settings.optimize_mode, self.priced, name
        )

    # -- searches -------------------------------------------------------------------------------------------

    @cached_property
    def searches(self) -> list[tuple[dict[str, Any], Task, Trial]]:
        """See :meth:`~nni_gumbel.pipeline.plan.Plan.searches`."""
        return self.plan.searches(self.trials)

    @cached_property
    def groups(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The settings that were varied, and the networks that their searches found, one a seed."""
        groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for combination, _, trial in self.searches:
            _, found = groups.setdefault(canonical(combination), (combination, []))
            found.append(trial.report.architecture)
        return list(groups.values())

    @cached_property
    def sampled(self) -> list[tuple[dict[str, Any], float]]:
        """Networks of the supernets, and what each reached: in standard deviations, from the mean of its search."""
        found = []
        for _, _, trial in self.searches:
            kept = Sampled.read(self.outputs / trial.id)
            values = [value for _, value in kept.networks] if kept is not None else []
            if len({*values}) > 1:
                mean, spread = fmean(values), pstdev(values)
                found += [(network, (value - mean) / spread) for network, value in kept.networks]
        return found

    @cached_property
    def history(self) -> dict[str, SearchHistory]:
        """What each search reported, by its trial."""
        return {
            trial.id: _history_of(
                f"search {trial.id}, seed {task.seed}", self.outputs / trial.id / TENSORBOARD
            )
            for _, task, trial in self.searches
        }

    @cached_property
    def candidates(self) -> dict[str, tuple[list[str], int]]:
        """The candidates of every label of the space, and how many outcomes it has.

        Where the space cannot be built, they are those that searches have found.
        """
        from nni_gumbel.supernet.distribution import law_of  # imports torch, as the space does

        try:
            variables = self.command.reference.build().simplify()
        except UsageError as error:
            logger.warning("the candidates are those that searches have found: %s", first_line(error))
            found: dict[str, dict[str, None]] = {}
            for _, _, trial in self.searches:
                for label in trial.report.architecture:
                    found.setdefault(label, {})[choice_of(trial.report.architecture, label)] = None
            return {label: (list(words), len(words)) for label, words in found.items()}
        return {
            label: (list(map(chosen_value, variable.values)), law_of(label, variable).outcomes)
            for label, variable in variables.items()
        }

    @cached_property
    def experiment(self) -> str:
        """The experiment as a file that starts it again."""
        params = self.profile["params"]
        names = (
            "experimentName",
            "searchSpace",
            "trialConcurrency",
            "maxTrialNumber",
            "maxExperimentDuration",
        )
        text = {name: params[name] for name in names if params.get(name) is not None}
        service = params.get("trainingService") or {}
        text["trialCommand"] = service.get("trialCommand") or params.get("trialCommand")
        # Where the space lies; the person who reads this may have it elsewhere.
        text["trialCodeDirectory"] = "."
        text["tuner"] = params["tuner"]
        text["trainingService"] = {"platform": "local"}
        return yaml.safe_dump(text, sort_keys=False)

    @property
    def table(self) -> DataFrame:
        """See :func:`results`."""
        import pandas

        names = {run.trial_id: network.name for network in self.trained for run in network.runs}
        rows = []
        for trial in sorted(self.trials, key=lambda trial: trial.sequence):
            given, reported = dict(trial.parameters or {}), dict(trial.result or {})
            architecture = trial.report.architecture if trial.report is not None else None
            renamed = {"default": f"validation_{self.metric}", "test": f"test_{self.metric}"}
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
        # Of an experiment that has just begun, the table is empty, and has the columns that every table has.
        return pandas.DataFrame(rows, columns=None if rows else _COLUMNS).set_index("trial")


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
    return Records.of(experiment).table


# -- files ---------------------------------------------------------------------------------------------------


def _trials(events: list[tuple[Any, ...]], finals: Mapping[str, str]) -> list[Trial]:
    """The trials that NNI's events lead to, by NNI's own rules (``getTrialJobsByReplayEvents``)."""
    records: dict[str, dict[str, Any]] = {}
    for name, event, timestamp, data, sequence, place in events:
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
        if place is not None:
            record["logPath"] = place
    for name, record in records.items():
        # Of a failed trial, its mistake.
        if record["status"] in ("SUCCEEDED", "FAILED") and name in finals:
            record["finalMetricData"] = [{"data": finals[name]}]
    return [trial_of(record) for record in records.values()]


def _history_of(name: str, events: Path) -> SearchHistory:
    """What a search wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list[float]] = {}
    probabilities: dict[str, dict[str, list[float]]] = {}
    if events.is_dir():
        found = EventAccumulator(str(events), size_guidance={"scalars": 0})
        found.Reload()
        for tag in found.Tags()["scalars"]:
            values = [event.value for event in found.Scalars(tag)]
            kind, _, rest = tag.partition("/")
            if kind == "probability":
                # A label may hold slashes, the word of a candidate not.
                label, _, candidate = rest.rpartition("/")
                probabilities.setdefault(label, {})[candidate] = values
            else:
                curves[tag] = values
    return SearchHistory(name, curves, probabilities)

"""The plan of an experiment: what has been done, what comes next, and which networks there are.

Searches come first, one for every combination of settings and every seed. Each distinct network that they find is
trained from scratch, with several seeds, as soon as its own search has ended. Then, if asked for, come random networks
of its size, each trained once: a baseline, without which the export comes as well. When nothing of this is left, one
last trial chooses a network and exports it.

All of it are pure functions of the settings and of the trials so far (:mod:`nni_gumbel.pipeline.task` reads which
trial did what): a stopped and resumed experiment goes on where it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.pipeline.settings import VARIED_NAMES, ExperimentSettings
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, TRAIN, Report, Task, Trial
from nni_gumbel.results.choice import Network, TrainedRun
from nni_gumbel.results.space import canonical

# Every combination is at least one search; nobody means more than this many.
MOST_COMBINATIONS = 1000


@dataclass(frozen=True)
class Failure:
    """Why no export can come any more: a line, and the trial that failed last."""

    line: str
    last_trial: str


@dataclass(frozen=True)
class _Found:
    """A distinct pair of a network and the training settings it was found for, and the combinations that found it."""

    report: Report
    settings: dict[str, Any]
    combinations: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What an experiment is to do.

    Args:
        settings: those that all trials share.
        combinations: what `searchSpace` varies: each is tried on top of the settings.
    """

    settings: ExperimentSettings
    combinations: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, settings: ExperimentSettings, search_space: Mapping[str, Any] | None) -> Plan:
        """The plan of settings and a `searchSpace`, as NNI hands it over.

        Raises:
            UsageError: see :func:`combinations`.
        """
        return cls(settings, combinations(search_space, settings))

    @cached_property
    def variants(self) -> list[ExperimentSettings]:
        """The settings of each combination."""
        return [self.settings.with_values(combination) for combination in self.combinations]

    @property
    def trial_count(self) -> int:
        """How many trials it takes if nothing fails and no two networks are alike."""
        settings = self.settings
        of_a_network = 1 + settings.train_seeds + settings.random_baseline
        return len(self.combinations) * settings.search_seeds * of_a_network + 1

    def check_trial_limit(self, limit: int | None) -> None:
        """See that ``maxTrialNumber`` leaves room for the export.

        Raises:
            UsageError: it may not.
        """
        if limit is not None and limit < self.trial_count:
            raise UsageError(
                f"maxTrialNumber: {limit} may be too few for the whole plan; give at least {self.trial_count} "
                "(combinations x search_seeds x (1 + train_seeds + random_baseline) + 1) or leave it out"
            )

    def next_tasks(self, trials: Sequence[Trial], limit: int | None = None) -> list[Task]:
        """All tasks that may start now, in the order in which they should.

        Args:
            trials: those so far.
            limit: ``maxTrialNumber``; the last trial is kept for an export of what there is by then.

        Returns:
            Tasks that are neither pending nor done nor given up; empty when all of the rest is pending,
            and when the experiment is over.
        """
        ledger = _Ledger(trials, self.settings.attempts)
        if EXPORT in ledger.done:
            return []
        work, room = self._work(ledger), None if limit is None else max(limit - 1 - len(trials), 0)
        if room == 0 and not ledger.pending or all(ledger.is_over(task) for task in work):
            room = None
            trained = any(task.stage == TRAIN and task.identity in ledger.done for task in work)
            work = [Task(EXPORT, self.settings.seed, 1, self.settings.export_values())] if trained else []
        return [
            replace(task, attempt=ledger.next_attempt(task))
            for task in work
            if task.identity not in ledger.pending and not ledger.is_over(task)
        ][:room]

    def failure(self, trials: Sequence[Trial], limit: int | None = None) -> Failure | None:
        """Why no export can come any more; ``None`` as long as one can. Arguments: see :meth:`next_tasks`."""
        ledger = _Ledger(trials, self.settings.attempts)
        if EXPORT in ledger.done or ledger.pending or self.next_tasks(trials, limit):
            return None
        trainings = [task for found in self._found(ledger) for task in self._trainings(found)]
        if not trainings:
            stage, what = SEARCH, "every search failed, so there is no network to train"
        elif not ledger.done_of(trainings):
            stage, what = TRAIN, "every training failed, so there is no network to export"
        else:
            stage, what = EXPORT, "the export failed"
        failed = [trial for each in ledger.failed.values() for trial in each]
        if not any(trial.task.stage == stage for trial in failed):
            what = "maxTrialNumber or maxExperimentDuration is used up, and no network has been trained"
        failed = [trial for trial in failed if trial.task.stage == stage] or failed
        if not failed:
            return None  # NNI's status tells it
        last = max(failed, key=lambda trial: (trial.end or 0, trial.sequence))
        return Failure(f"{what} (attempts: {last.task.attempt})", last.id)

    def networks(self, trials: Sequence[Trial]) -> list[Network]:
        """The distinct networks with at least one finished training, named in the order of their searches.

        The order is that of the plan, not of the clock: two equal experiments name their networks alike.
        Each has its baseline with it; networks of equal size, trained alike, have the same one.
        """
        ledger, seeds = _Ledger(trials, self.settings.attempts), self.settings.baseline_seeds
        named = []
        for number, found in enumerate(self._found(ledger), start=1):
            if done := ledger.done_of(self._trainings(found)):
                name = f"network-{number}"
                baseline = tuple(
                    _network(f"{name}-random-{seeds.index(task.seed) + 1}", [(task, trial)])
                    for task, trial in ledger.done_of(self._baseline(found))
                )
                varied = tuple(map(dict, found.combinations))
                named.append(replace(_network(name, done), found_with=varied, baseline=baseline))
        return named

    def searches(self, trials: Sequence[Trial]) -> list[tuple[dict[str, Any], Task, Trial]]:
        """The finished searches in the order of the plan: the combination, the task, the trial that did it.

        Combinations that differ in the training alone share their searches, which stand with the first of them.
        """
        ledger, found = _Ledger(trials, self.settings.attempts), {}
        for combination, (tasks, _) in zip(self.combinations, self._by_variant):
            for task, trial in ledger.done_of(tasks):
                found.setdefault(task.identity, (dict(combination), task, trial))
        return list(found.values())

    def _work(self, ledger: _Ledger) -> list[Task]:
        """Everything that comes before the export, as far as it is known.

        Each task once: combinations that differ in the training alone share their searches, networks of equal
        size their baseline. A network that nobody could train needs none.
        """
        found = self._found(ledger)
        searches = [task for tasks, _ in self._by_variant for task in tasks]
        trainings = [task for network in found for task in self._trainings(network)]
        trained = [network for network in found if ledger.done_of(self._trainings(network))]
        baseline = [task for network in trained for task in self._baseline(network)]
        return list({task.identity: task for task in (*searches, *trainings, *baseline)}.values())

    def _found(self, ledger: _Ledger) -> list[_Found]:
        """What the finished searches have found, in the order of the plan."""
        found: dict[str, _Found] = {}
        for combination, (searches, values) in zip(self.combinations, self._by_variant):
            for _, trial in ledger.done_of(searches):
                key = canonical([trial.report.architecture, values])
                network = found.setdefault(key, _Found(trial.report, values, []))
                if combination not in network.combinations:
                    network.combinations.append(combination)
        return list(found.values())

    @cached_property
    def _by_variant(self) -> list[tuple[list[Task], dict[str, Any]]]:
        """The searches of each variant, and the settings of its trainings."""
        seeds = range(self.settings.seed, self.settings.seed + self.settings.search_seeds)
        return [
            ([Task(SEARCH, seed, 1, values) for seed in seeds], variant.train_values())
            for variant in self.variants
            for values in [variant.search_values()]
        ]

    def _trainings(self, found: _Found) -> list[Task]:
        seeds = range(self.settings.seed, self.settings.seed + self.settings.train_seeds)
        return [Task(TRAIN, seed, 1, found.settings, found.report.architecture) for seed in seeds]

    def _baseline(self, found: _Found) -> list[Task]:
        size = found.report.parameters
        return [Task(RANDOM, seed, 1, found.settings, None, size) for seed in self.settings.baseline_seeds]


class _Ledger:
    """The trials so far by the identity of their tasks: the one that did it, failed attempts, running ones."""

    def __init__(self, trials: Sequence[Trial], attempts: int) -> None:
        self.done: dict[str, Trial] = {}
        self.failed: dict[str, list[Trial]] = {}
        self.pending: set[str] = set()
        self._attempts = attempts
        for trial in trials:
            if trial.report is not None:
                self.done.setdefault(trial.report.identity, trial)
            if trial.task is None:
                continue
            if trial.state == "pending":
                self.pending.add(trial.task.identity)
            elif trial.report is None or trial.report.identity != trial.task.identity:
                # Also a success that reports another task: that attempt of its own task is lost.
                self.failed.setdefault(trial.task.identity, []).append(trial)

    def done_of(self, tasks: Sequence[Task]) -> list[tuple[Task, Trial]]:
        """Those of the tasks that are done, each with the trial that did it."""
        return [(task, self.done[task.identity]) for task in tasks if task.identity in self.done]

    def is_over(self, task: Task) -> bool:
        """Whether the task is done or given up."""
        failed = self.failed.get(task.identity, [])
        in_vain = self.next_attempt(task) > self._attempts or any(trial.mistake for trial in failed)
        used_up = task.identity not in self.pending and in_vain
        return used_up or task.identity in self.done

    def next_attempt(self, task: Task) -> int:
        failed = self.failed.get(task.identity, [])
        return max((trial.task.attempt for trial in failed), default=0) + 1


def finished(trials: Sequence[Trial]) -> Trial | None:
    """The trial whose export has succeeded; ``None`` before."""
    return next((trial for trial in trials if trial.report is not None and trial.stage == EXPORT), None)


def _network(name: str, done: Sequence[tuple[Task, Trial]]) -> Network:
    """The record of a network from its finished trainings."""
    (task, first), reports = done[0], [trial.report for _, trial in done]

    def middle(field: str) -> float | None:
        known = [value for report in reports if (value := getattr(report, field)) is not None]
        return median(known) if known else None

    alike = ("parameters", "flops", "validation_size", "pruned_parameters", "pruned_flops")
    measured = ("latency_ms", "table_latency_ms", "own_cost")
    return Network(
        name=name,
        architecture=task.architecture or first.report.architecture,
        settings=task.settings,
        runs=tuple(
            TrainedRun(trial.id, task.seed, trial.report.default, trial.report.test) for task, trial in done
        ),
        **{field: getattr(first.report, field) for field in alike},
        **{field: middle(field) for field in measured},
    )


def combinations(
    search_space: Mapping[str, Any] | None, settings: ExperimentSettings
) -> list[dict[str, Any]]:
    """The distinct combinations of a search space, each ``{name: value}``, in the order written.

    Args:
        search_space: ``{name: {"_type": "choice", "_value": [...]}}`` as NNI hands it over; empty for none.
        settings: each combination is checked on top of them.

    Raises:
        UsageError: a name is not a setting that can be varied, a specification is no choice, or a combination is not
            allowed.
    """
    if not isinstance(search_space or {}, Mapping):
        raise UsageError(
            f"searchSpace: {search_space!r} is not a mapping; give names of settings with _type and _value"
        )
    values: dict[str, list[Any]] = {}
    for name, spec in (search_space or {}).items():
        if name not in VARIED_NAMES:
            raise UsageError(
                f"searchSpace.{name}: this is no setting that can be varied{nearest(name, VARIED_NAMES)}"
            )
        kind, value = (spec.get("_type"), spec.get("_value")) if isinstance(spec, Mapping) else (None, None)
        if kind != "choice" or not isinstance(value, list) or not value:
            raise UsageError(
                f"searchSpace.{name}: {spec!r} is no choice; give _type: choice and a list as _value"
            )
        values[name] = list({canonical(each): each for each in value}.values())
    if (count := math.prod(map(len, values.values()))) > MOST_COMBINATIONS:
        raise UsageError(f"searchSpace: {count} combinations are more than {MOST_COMBINATIONS}; shorten it")
    found = [dict(zip(values, row)) for row in itertools.product(*values.values())]
    for combination in found:
        try:
            settings.with_values(combination)
        except UsageError as error:
            raise UsageError(f"searchSpace: {error}") from None
    return found

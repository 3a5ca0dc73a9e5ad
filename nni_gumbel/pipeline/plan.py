"""The plan of an experiment: what has been done, what comes next, and which networks there are.

Searches come first, one for every combination of settings and every seed. Each distinct network that they find is
trained from scratch, with several seeds, as soon as its own search has ended. Then, if asked for, come random networks
of its size, each trained once: a baseline, without which the export comes as well. When nothing of this is left, one
last trial chooses a network and exports it.

All of it are pure functions of the settings and of the trials so far (:mod:`nni_gumbel.pipeline.task` reads which
trial did what): a stopped and resumed experiment goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.combinations import combinations
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, TRAIN, Ledger, Task, Trial, canonical
from nni_gumbel.results.choice import Network, TrainedRun


@dataclass(frozen=True)
class Failure:
    """Why no export can come any more: a line, and the trial that failed last."""

    line: str
    last_trial: str


@dataclass(frozen=True)
class _Found:
    """A distinct pair of a network and the training settings it was found for, and the combinations that found it."""

    architecture: dict[str, Any]
    settings: dict[str, Any]
    parameters: int
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
            UsageError: see :func:`~nni_gumbel.pipeline.combinations.combinations`.
        """
        return cls(settings, combinations(search_space, settings))

    @cached_property
    def variants(self) -> list[ExperimentSettings]:
        """The settings of each combination."""
        return [self.settings.with_values(combination) for combination in self.combinations]

    @property
    def largest_trial_count(self) -> int:
        """How many trials it takes if every task needs all its attempts and no two networks are alike."""
        settings = self.settings
        of_a_network = 1 + settings.train_seeds + settings.random_baseline
        return len(self.combinations) * settings.search_seeds * of_a_network * settings.attempts + 1

    def check_trial_limit(self, limit: int | None) -> None:
        """See that ``maxTrialNumber`` leaves room for the export.

        Raises:
            UsageError: it may not.
        """
        if limit is not None and limit < self.largest_trial_count:
            raise UsageError(
                f"maxTrialNumber: {limit} may be too few, the export would never come; give at least "
                f"{self.largest_trial_count} (combinations x search_seeds x (1 + train_seeds + random_baseline) x "
                "attempts + 1) or leave it out"
            )

    def next_tasks(self, trials: Sequence[Trial]) -> list[Task]:
        """All tasks that may start now, in the order in which they should.

        Returns:
            Tasks that are neither pending nor done nor given up; empty when all of the rest is pending,
            and when the experiment is over.
        """
        ledger, attempts = Ledger.of(trials), self.settings.attempts
        if EXPORT in ledger.done:
            return []
        work = self._work(ledger)
        if all(ledger.is_over(task, attempts) for task in work):
            trained = any(task.stage == TRAIN and task.identity in ledger.done for task in work)
            export = Task(EXPORT, self.settings.seed, 1, self.settings.export_values())
            work = [export] if trained else []
        return [ledger.next_attempt(task) for task in work if ledger.may_start(task, attempts)]

    def failure(self, trials: Sequence[Trial]) -> Failure | None:
        """Why no export can come any more; ``None`` as long as one can."""
        ledger = Ledger.of(trials)
        if EXPORT in ledger.done or ledger.pending or self.next_tasks(trials):
            return None
        trainings = [task for found in self._found(ledger) for task in self._trainings(found)]
        if not trainings:
            stage, what = SEARCH, "every search failed, so there is no network to train"
        elif not ledger.done_of(trainings):
            stage, what = TRAIN, "every training failed, so there is no network to export"
        else:
            stage, what = EXPORT, "the export failed"
        failed = [trial for each in ledger.failed.values() for task, trial in each if task.stage == stage]
        last = max(failed, key=lambda trial: (trial.end or 0, trial.sequence))
        return Failure(f"{what} (attempts: {self.settings.attempts})", last.id)

    def given_up(self, trials: Sequence[Trial]) -> list[str]:
        """One warning for each task before the export that is left out because all its attempts failed."""
        ledger = Ledger.of(trials)
        return [
            f"{task.identity} is left out, its attempts failed: trials "
            f"{', '.join(trial.id for _, trial in ledger.failed[task.identity])}"
            for task in self._work(ledger)
            if task.identity not in ledger.done and ledger.is_over(task, self.settings.attempts)
        ]

    def networks(self, trials: Sequence[Trial]) -> list[Network]:
        """The distinct networks with at least one finished training, named in the order of their searches.

        The order is that of the plan, not of the clock: two equal experiments name their networks alike.
        Each has its baseline with it; networks of equal size, trained alike, have the same one.
        """
        ledger, seeds = Ledger.of(trials), self.settings.baseline_seeds
        named = []
        for number, found in enumerate(self._found(ledger), start=1):
            done = ledger.done_of(self._trainings(found))
            if done:
                name = f"network-{number}"
                baseline = tuple(
                    _network(f"{name}-random-{seeds.index(task.seed) + 1}", [(task, trial)])
                    for task, trial in ledger.done_of(self._baseline(found))
                )
                varied = tuple(dict(combination) for combination in found.combinations)
                named.append(replace(_network(name, done), found_with=varied, baseline=baseline))
        return named

    def _work(self, ledger: Ledger) -> list[Task]:
        """Everything that comes before the export, as far as it is known.

        Each task once: combinations that differ in the training alone share their searches, networks of equal
        size their baseline. A network that nobody could train needs none.
        """
        found = self._found(ledger)
        searches = [task for variant in self.variants for task in self._searches(variant)]
        trainings = [task for network in found for task in self._trainings(network)]
        trained = [network for network in found if ledger.done_of(self._trainings(network))]
        baseline = [task for network in trained for task in self._baseline(network)]
        return list({task.identity: task for task in (*searches, *trainings, *baseline)}.values())

    def _found(self, ledger: Ledger) -> list[_Found]:
        """What the finished searches have found, in the order of the plan."""
        found: dict[str, _Found] = {}
        for combination, variant in zip(self.combinations, self.variants):
            values = variant.train_values()
            for _, trial in ledger.done_of(self._searches(variant)):
                report = trial.report
                network = found.setdefault(
                    canonical([report.architecture, values]),
                    _Found(report.architecture, values, report.parameters, []),
                )
                if combination not in network.combinations:
                    network.combinations.append(combination)
        return list(found.values())

    def _searches(self, variant: ExperimentSettings) -> list[Task]:
        seeds = range(self.settings.seed, self.settings.seed + self.settings.search_seeds)
        return [Task(SEARCH, seed, 1, variant.search_values()) for seed in seeds]

    def _trainings(self, found: _Found) -> list[Task]:
        seeds = range(self.settings.seed, self.settings.seed + self.settings.train_seeds)
        return [Task(TRAIN, seed, 1, found.settings, found.architecture) for seed in seeds]

    def _baseline(self, found: _Found) -> list[Task]:
        return [
            Task(RANDOM, seed, 1, found.settings, target_parameters=found.parameters)
            for seed in self.settings.baseline_seeds
        ]


def finished(trials: Sequence[Trial]) -> bool:
    """Whether an export has succeeded."""
    return EXPORT in Ledger.of(trials).done


def _network(name: str, done: Sequence[tuple[Task, Trial]]) -> Network:
    """The record of a network from its finished trainings."""
    (task, trial), reports = done[0], [trial.report for _, trial in done]
    first = trial.report

    def middle(field: str) -> float | None:
        known = [value for report in reports if (value := getattr(report, field)) is not None]
        return median(known) if known else None

    return Network(
        name=name,
        architecture=task.architecture or first.architecture,
        settings=task.settings,
        parameters=first.parameters,
        flops=first.flops,
        runs=tuple(
            TrainedRun(trial.id, task.seed, trial.report.default, trial.report.test) for task, trial in done
        ),
        validation_size=first.validation_size,
        pruned_parameters=first.pruned_parameters,
        pruned_flops=first.pruned_flops,
        latency_ms=middle("latency_ms"),
        table_latency_ms=middle("table_latency_ms"),
        own_cost=middle("own_cost"),
    )

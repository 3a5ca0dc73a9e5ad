"""The plan of an experiment: what has been done, what comes next, and which networks there are.

Pure functions of the settings and of the trials so far. Searches come first, one for every combination of settings
and every seed. Each distinct network that they find is trained from scratch, with several seeds, as soon as its own
search has ended. Then, if asked for, come random networks of its size, each trained once: a baseline, without which
the export comes as well. When nothing of this is left, one last trial chooses a network and exports it.

Which trial did what is read by :mod:`nni_gumbel.pipeline.task`. Nothing is remembered between two calls, so a stopped
and resumed experiment goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, TRAIN, Ledger, Task, Trial, canonical
from nni_gumbel.results.choice import Network, TrainedRun


def next_tasks(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[Task]:
    """All tasks that may start now, in the order in which they should.

    Returns:
        Tasks that are neither pending nor done nor given up; empty when all of the rest is pending,
        and when the experiment is over.
    """
    ledger = Ledger.of(trials)
    if EXPORT in ledger.done:
        return []
    work = _work(settings, combinations, ledger)
    if all(ledger.is_over(task, settings.attempts) for task in work):
        trained = any(task.stage == TRAIN and task.identity in ledger.done for task in work)
        work = [_export(settings)] if trained else []
    return [ledger.next_attempt(task) for task in work if ledger.may_start(task, settings.attempts)]


@dataclass(frozen=True)
class Failure:
    """Why no export can come any more: a line, and the trial that failed last."""

    line: str
    last_trial: str


def failure(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> Failure | None:
    """Why no export can come any more; ``None`` as long as one can."""
    ledger = Ledger.of(trials)
    if EXPORT in ledger.done or ledger.pending or next_tasks(settings, combinations, trials):
        return None
    trainings = [
        task for network in _found(settings, combinations, ledger) for task in network.trainings(settings)
    ]
    stage, what = (
        (SEARCH, "every search failed, so there is no network to train")
        if not trainings
        else (TRAIN, "every training failed, so there is no network to export")
        if not any(task.identity in ledger.done for task in trainings)
        else (EXPORT, "the export failed")
    )
    failed = [
        trial for trials_of in ledger.failed.values() for task, trial in trials_of if task.stage == stage
    ]
    last = max(failed, key=lambda trial: (trial.end or 0, trial.sequence))
    return Failure(f"{what} (attempts: {settings.attempts})", last.id)


def finished(trials: Sequence[Trial]) -> bool:
    """Whether an export has succeeded."""
    return EXPORT in Ledger.of(trials).done


def largest_trial_count(settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]]) -> int:
    """How many trials the experiment takes if every task needs all its attempts and no two networks are alike."""
    of_a_network = 1 + settings.train_seeds + settings.random_baseline
    return len(combinations) * settings.search_seeds * of_a_network * settings.attempts + 1


def check_trial_limit(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], limit: int | None
) -> None:
    """See that ``maxTrialNumber`` leaves room for the export.

    Raises:
        UsageError: it may not.
    """
    needed = largest_trial_count(settings, combinations)
    if limit is not None and limit < needed:
        raise UsageError(
            f"maxTrialNumber: {limit} may be too few, the export would never come; give at least {needed} "
            "(combinations x search_seeds x (1 + train_seeds + random_baseline) x attempts + 1) or leave it out"
        )


def given_up(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[str]:
    """One warning for each task before the export that is left out because all its attempts failed."""
    ledger = Ledger.of(trials)
    return [
        f"{task.identity} is left out, its attempts failed: trials "
        f"{', '.join(trial.id for _, trial in ledger.failed[task.identity])}"
        for task in _work(settings, combinations, ledger)
        if task.identity not in ledger.done and ledger.is_over(task, settings.attempts)
    ]


def networks(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[Network]:
    """The distinct networks with at least one finished training, named in the order of their searches.

    The order is that of the plan, not of the clock: two equal experiments name their networks alike.
    Each has its baseline with it; networks of equal size, trained alike, have the same one.
    """
    ledger = Ledger.of(trials)
    named = []
    for number, found in enumerate(_found(settings, combinations, ledger), start=1):
        done = ledger.done_of(found.trainings(settings))
        if done:
            name = f"network-{number}"
            baseline = tuple(
                _network(f"{name}-random-{settings.baseline_seeds.index(task.seed) + 1}", [(task, trial)])
                for task, trial in ledger.done_of(found.baseline(settings))
            )
            varied = tuple(dict(combination) for combination in found.combinations)
            named.append(replace(_network(name, done), found_with=varied, baseline=baseline))
    return named


def _network(name: str, done: Sequence[tuple[Task, Trial]]) -> Network:
    """The record of a network from its finished trainings."""
    (task, trial), reports = done[0], [trial.report for _, trial in done]
    first = trial.report

    def middle(field: str) -> float | None:
        measured = [getattr(report, field) for report in reports]
        return median(known) if (known := [value for value in measured if value is not None]) else None

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


@dataclass(frozen=True)
class _Found:
    """A distinct pair of a network and the training settings it was found for.

    ``combinations`` are those whose searches found it.
    """

    architecture: dict[str, Any]
    settings: dict[str, Any]
    parameters: int
    combinations: list[Mapping[str, Any]]

    def trainings(self, settings: ExperimentSettings) -> list[Task]:
        return [
            Task(TRAIN, settings.seed + index, 1, self.settings, self.architecture)
            for index in range(settings.train_seeds)
        ]

    def baseline(self, settings: ExperimentSettings) -> list[Task]:
        return [
            Task(RANDOM, seed, 1, self.settings, target_parameters=self.parameters)
            for seed in settings.baseline_seeds
        ]


def _found(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[_Found]:
    """What the finished searches have found, in the order of the plan."""
    found: dict[str, _Found] = {}
    for combination in combinations:
        values = settings.with_values(combination).train_values()
        for search in _searches_of(settings, combination):
            if search.identity in ledger.done:
                report = ledger.done[search.identity].report
                network = found.setdefault(
                    canonical([report.architecture, values]),
                    _Found(report.architecture, values, report.parameters, []),
                )
                if combination not in network.combinations:
                    network.combinations.append(combination)
    return list(found.values())


def _work(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[Task]:
    """Everything that comes before the export, as far as it is known.

    Each task once: combinations that differ in the training alone share their searches, networks of equal
    size their baseline. A network that nobody could train needs none.
    """
    searches = [task for combination in combinations for task in _searches_of(settings, combination)]
    found = _found(settings, combinations, ledger)
    trainings = [task for network in found for task in network.trainings(settings)]
    baseline = [
        task
        for network in found
        if ledger.done_of(network.trainings(settings))
        for task in network.baseline(settings)
    ]
    return list({task.identity: task for task in (*searches, *trainings, *baseline)}.values())


def _searches_of(settings: ExperimentSettings, combination: Mapping[str, Any]) -> list[Task]:
    values = settings.with_values(combination).search_values()
    return [Task(SEARCH, settings.seed + index, 1, values) for index in range(settings.search_seeds)]


def _export(settings: ExperimentSettings) -> Task:
    return Task(EXPORT, settings.seed, 1, settings.export_values())

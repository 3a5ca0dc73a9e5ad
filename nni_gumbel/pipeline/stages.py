"""Which trial comes next: a pure function of the settings and of the trials so far.

Searches come first, one for every combination of settings and every seed. Each distinct network
that they find is trained from scratch, with several seeds, as soon as its own search has ended. When
no search and no training is left, one last trial chooses a network and exports it.

Every such task has a key: stage, a hash of its settings (and network), seed and attempt. The key
is in the parameters of the trial that is to do the task and in the final metric of the trial that
did it. A task is done when a succeeded trial reports its key, whatever parameters NNI shows for that
trial: NNI 3.0 can hand the parameters of one trial to another. Nothing is remembered between two
calls, so a stopped and resumed experiment goes on where it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import EXPORT, SEARCH, TRAIN, Task, canonical, is_count
from nni_gumbel.results.choice import Network, TrainedRun

# A final metric travels another way than the news that its trial has succeeded, and may be later.
_METRIC_DELAY = 30.0


@dataclass(frozen=True)
class Trial:
    """What NNI knows of one trial; times in seconds since the epoch."""

    id: str
    sequence: int
    state: str
    parameters: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    start: float | None = None
    end: float | None = None


def judged(status: str, result: dict[str, Any] | None, end: float | None, now: float) -> str:
    """The state of a trial (``pending``, ``succeeded``, ``failed``) from NNI's status and its final metric."""
    if status in ("FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"):
        return "failed"
    if status != "SUCCEEDED":
        return "pending"
    if result is None:
        return "pending" if end is not None and now - end < _METRIC_DELAY else "failed"
    return "succeeded" if _is_finite(result.get("default")) else "failed"


def next_tasks(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[Task]:
    """All tasks that may start now, in the order in which they should.

    Returns:
        Tasks that are neither pending nor done nor given up; empty when all of the rest is pending,
        and when the experiment is over.
    """
    ledger = _Ledger.of(trials)
    if EXPORT in ledger.done:
        return []
    work = _searches(settings, combinations) + _trainings(settings, combinations, ledger)
    if all(ledger.is_over(task, settings.attempts) for task in work):
        trained = any(task.stage == TRAIN and task.identity in ledger.done for task in work)
        work = [_export(settings)] if trained else []
    return [ledger.attempt(task) for task in work if ledger.may_start(task, settings.attempts)]


@dataclass(frozen=True)
class Failure:
    """Why no export can come any more: a line, and the trial that failed last."""

    line: str
    last_trial: str


def failure(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> Failure | None:
    """Why no export can come any more; ``None`` as long as one can."""
    ledger = _Ledger.of(trials)
    if EXPORT in ledger.done or ledger.pending or next_tasks(settings, combinations, trials):
        return None
    trainings = _trainings(settings, combinations, ledger)
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
    return EXPORT in _Ledger.of(trials).done


def largest_trial_count(settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]]) -> int:
    """How many trials the experiment takes if every task needs all its attempts and no two networks are alike."""
    return len(combinations) * settings.search_seeds * (1 + settings.train_seeds) * settings.attempts + 1


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
            "(combinations x search_seeds x (1 + train_seeds) x attempts + 1) or leave it out"
        )


def given_up(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[str]:
    """One warning for each search or training that is left out because all its attempts failed."""
    ledger = _Ledger.of(trials)
    work = _searches(settings, combinations) + _trainings(settings, combinations, ledger)
    return [
        f"{task.identity} is left out, its attempts failed: trials "
        f"{', '.join(trial.id for _, trial in ledger.failed[task.identity])}"
        for task in work
        if task.identity not in ledger.done and ledger.is_over(task, settings.attempts)
    ]


def networks(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[Network]:
    """The distinct networks with at least one finished training, named in the order of their searches.

    The order is that of the plan, not of the clock: two equal experiments name their networks alike.
    """
    ledger = _Ledger.of(trials)
    found = []
    for number, tasks in enumerate(_trainings_by_network(settings, combinations, ledger), start=1):
        done = [(task, ledger.done[task.identity]) for task in tasks if task.identity in ledger.done]
        if done:
            result = done[0][1].result
            found.append(
                Network(
                    name=f"network-{number}",
                    architecture=tasks[0].architecture,
                    settings=tasks[0].settings,
                    parameters=result["parameters"],
                    flops=result["flops"],
                    runs=tuple(
                        TrainedRun(trial.id, task.seed, trial.result["default"], trial.result.get("test"))
                        for task, trial in done
                    ),
                    validation_size=result.get("validation_size"),
                )
            )
    return found


@dataclass(frozen=True)
class _Ledger:
    """The trials so far by what they were to do: identity -> trial that did it, failed attempts, running ones."""

    done: dict[str, Trial]
    failed: dict[str, list[tuple[Task, Trial]]]
    pending: set[str]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> _Ledger:
        ledger = cls({}, {}, set())
        for trial in trials:
            identity = _identity_done(trial)
            if identity is not None:
                ledger.done.setdefault(identity, trial)
        for trial in trials:
            try:
                task = Task.from_parameters(trial.parameters)
            except UsageError:
                continue  # started by hand in the portal, with parameters of somebody's own
            if trial.state == "pending":
                ledger.pending.add(task.identity)
            elif _identity_done(trial) != task.identity:
                # Also a success that reports another task: that attempt of its own task is lost.
                ledger.failed.setdefault(task.identity, []).append((task, trial))
        return ledger

    def is_over(self, task: Task, attempts: int) -> bool:
        """Whether the task is done or given up."""
        if task.identity in self.done:
            return True
        return task.identity not in self.pending and self.attempt(task).attempt > attempts

    def may_start(self, task: Task, attempts: int) -> bool:
        return task.identity not in self.pending and not self.is_over(task, attempts)

    def attempt(self, task: Task) -> Task:
        """The task with the number of its next attempt."""
        used = [failed.attempt for failed, _ in self.failed.get(task.identity, [])]
        return replace(task, attempt=max(used, default=0) + 1)


def _searches(settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]]) -> list[Task]:
    """The searches, each once: combinations that differ in the training alone share theirs."""
    tasks = [task for combination in combinations for task in _searches_of(settings, combination)]
    return list({task.identity: task for task in tasks}.values())


def _searches_of(settings: ExperimentSettings, combination: Mapping[str, Any]) -> list[Task]:
    values = settings.with_values(combination).search_values()
    return [Task(SEARCH, settings.seed + index, 1, values) for index in range(settings.search_seeds)]


def _trainings(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], ledger: _Ledger
) -> list[Task]:
    return [task for tasks in _trainings_by_network(settings, combinations, ledger) for task in tasks]


def _trainings_by_network(
    settings: ExperimentSettings, combinations: Sequence[Mapping[str, Any]], ledger: _Ledger
) -> list[list[Task]]:
    """The trainings of each distinct pair of a network found and the training settings it was found for."""
    found = {}
    for combination in combinations:
        values = settings.with_values(combination).train_values()
        for search in _searches_of(settings, combination):
            if search.identity in ledger.done:
                architecture = json.loads(ledger.done[search.identity].result["architecture"])
                found.setdefault(canonical([architecture, values]), (architecture, values))
    return [
        [Task(TRAIN, settings.seed + index, 1, values, architecture) for index in range(settings.train_seeds)]
        for architecture, values in found.values()
    ]


def _export(settings: ExperimentSettings) -> Task:
    return Task(EXPORT, settings.seed, 1, settings.export_values())


def _identity_done(trial: Trial) -> str | None:
    """The identity of the task that a trial has done, by its own word; ``None`` if it has done none."""
    if trial.state != "succeeded" or trial.result is None:
        return None
    result = trial.result
    match = re.fullmatch(
        r"((search|train|export)(?:-[0-9a-f]{8}-seed\d+)?)-attempt\d+", str(result.get("key"))
    )
    if match is None or not _is_finite(result.get("default")):
        return None
    identity, stage = match.groups()
    counted = stage == EXPORT or all(is_count(result.get(name), 0) for name in ("parameters", "flops"))
    reported = stage != SEARCH or _is_architecture(result.get("architecture"))
    tested = stage != TRAIN or result.get("test") is None or _is_finite(result["test"])
    sized = stage != TRAIN or result.get("validation_size") is None or is_count(result["validation_size"], 1)
    return identity if counted and reported and tested and sized else None


def _is_architecture(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict) and bool(json.loads(text))
    except ValueError:
        return False


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

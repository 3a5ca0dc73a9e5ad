"""What NNI knows of the trials of an experiment, and what has been done by them.

A task is done when a succeeded trial reports its key, whatever parameters NNI shows for that trial: NNI 3.0
can hand the parameters of one trial to another. A success without a sound result is a failure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, TRAIN, Task, is_count

# What a training reports beside its results, where it can.
PRUNED = ("pruned_parameters", "pruned_flops")
MEASURED = ("latency_ms", "table_latency_ms", "own_cost")

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


@dataclass(frozen=True)
class Ledger:
    """The trials so far by what they were to do: identity -> trial that did it, failed attempts, running ones."""

    done: dict[str, Trial]
    failed: dict[str, list[tuple[Task, Trial]]]
    pending: set[str]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Ledger:
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

    def done_of(self, tasks: Sequence[Task]) -> list[tuple[Task, Trial]]:
        """Those of the tasks that are done, each with the trial that did it."""
        return [(task, self.done[task.identity]) for task in tasks if task.identity in self.done]

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


def _identity_done(trial: Trial) -> str | None:
    """The identity of the task that a trial has done, by its own word; ``None`` if it has done none."""
    if trial.state != "succeeded" or trial.result is None:
        return None
    result = trial.result
    match = re.fullmatch(
        r"((search|train|random|export)(?:-[0-9a-f]{8}-seed\d+)?)-attempt\d+", str(result.get("key"))
    )
    if match is None or not _is_finite(result.get("default")):
        return None
    identity, stage = match.groups()
    counted = stage == EXPORT or all(is_count(result.get(name), 0) for name in ("parameters", "flops"))
    reported = stage not in (SEARCH, RANDOM) or _is_architecture(result.get("architecture"))
    trained = stage not in (TRAIN, RANDOM) or _is_of_a_training(result)
    return identity if counted and reported and trained else None


def _is_of_a_training(result: dict[str, Any]) -> bool:
    """Whether what a training may report, but need not, is sound."""
    given = {name: value for name, value in result.items() if value is not None}
    return (
        all(_is_finite(given[name]) for name in ("test", *MEASURED) if name in given)
        and is_count(given.get("validation_size", 1), 1)
        and all(is_count(given[name], 0) for name in PRUNED if name in given)
    )


def _is_architecture(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict) and bool(json.loads(text))
    except ValueError:
        return False


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""A task: one piece of work for one trial, its key, and the trials that did it.

The key - stage, a hash of the settings (and of the network or its size), seed and attempt - is in the parameters of
the trial that is to do the task and in the final metric of the trial that did it. A task is done when a succeeded trial
reports its key, whatever parameters NNI shows for that trial: NNI 3.0 can hand the parameters of one trial to another.
A success without a sound report is a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, NonNegativeInt, PositiveInt, ValidationError

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import ExperimentSettings

SEARCH, TRAIN, RANDOM, EXPORT = STAGES = ("search", "train", "random", "export")
CHOICE_PREFIX = "choice/"

# Of a trial, in its output directory.
TENSORBOARD = "tensorboard"
# Of a training, there.
BUNDLE = "bundle"
# Of an export, in its trial's output directory and in the trial code directory.
EXPORT_FOLDER = "gumbel-export"

# A final metric travels another way than the news that its trial has succeeded, and may be later.
_METRIC_DELAY = 30.0


@dataclass(frozen=True)
class Task:
    """One piece of work for one trial.

    A training has the ``architecture`` of its network. A training of a random network has ``target_parameters``,
    the number of parameters of the network that it is compared with: the trial itself draws the network.
    """

    stage: str
    seed: int
    attempt: int
    settings: dict[str, Any]
    architecture: dict[str, Any] | None = None
    target_parameters: int | None = None

    @cached_property
    def identity(self) -> str:
        """What is to be done, whichever attempt it is."""
        if self.stage == EXPORT:
            return EXPORT
        network = self.target_parameters if self.stage == RANDOM else self.architecture
        digest = hashlib.sha256(canonical([self.settings, network]).encode()).hexdigest()
        return f"{self.stage}-{digest[:8]}-seed{self.seed}"

    @property
    def key(self) -> str:
        return f"{self.identity}-attempt{self.attempt}"

    def parameters(self) -> dict[str, Any]:
        """The parameters of the trial, flat, as the portal shows them."""
        choices = {CHOICE_PREFIX + label: value for label, value in (self.architecture or {}).items()}
        own = {"stage": self.stage, "seed": self.seed, "attempt": self.attempt, "key": self.key}
        size = {} if self.target_parameters is None else {"target_parameters": self.target_parameters}
        return own | size | self.settings | choices

    @classmethod
    def from_parameters(cls, parameters: Any) -> Task:
        """Read a trial's parameters.

        Raises:
            UsageError: they are not what :meth:`parameters` makes.
        """
        try:
            own = _Parameters.model_validate(parameters)
        except ValidationError:
            raise UsageError(
                f"parameters: {parameters!r} are not those of a task; start trials by the tuner alone"
            ) from None
        settings, architecture = {}, {}
        for name, value in own.model_extra.items():
            label = name.removeprefix(CHOICE_PREFIX)
            (settings if label == name else architecture)[label] = value
        known = ExperimentSettings.from_flat(settings)
        needed = {
            SEARCH: known.search_values,
            TRAIN: known.train_values,
            RANDOM: known.train_values,
            EXPORT: known.export_values,
        }[own.stage]()
        fits = (
            set(settings) == set(needed)
            and bool(architecture) == (own.stage == TRAIN)
            and (own.target_parameters is not None) == (own.stage == RANDOM)
        )
        size = own.target_parameters
        task = cls(own.stage, own.seed, own.attempt, settings, architecture or None, size)
        if not fits or task.key != own.key:
            raise UsageError(
                f"parameters: {sorted(settings)}, {len(architecture)} choices and target_parameters {size!r} do not "
                f"fit the key {own.key!r}"
            )
        return task


class _Parameters(BaseModel):
    """What the parameters of every trial hold, beside settings and choices."""

    model_config = ConfigDict(strict=True, extra="allow")

    stage: Literal[STAGES]
    seed: NonNegativeInt
    attempt: PositiveInt
    key: str
    target_parameters: NonNegativeInt | None = None


def canonical(value: Any) -> str:
    """JSON that is the same before and after a way through JavaScript, which writes 3.0 as 3."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: plain(each) for key, each in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(plain(value), sort_keys=True)


class Report(BaseModel):
    """The final metric of a trial that did its task, as far as the plan reads it; ``None`` for what is not told."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    key: str = Field(pattern=r"^(export|(search|train|random)-[0-9a-f]{8}-seed\d+)-attempt\d+$")
    default: float
    parameters: NonNegativeInt | None = None
    flops: NonNegativeInt | None = None
    architecture: Json[Annotated[dict[str, Any], Field(min_length=1)]] | None = None
    test: float | None = None
    validation_size: PositiveInt | None = None
    pruned_parameters: NonNegativeInt | None = None
    pruned_flops: NonNegativeInt | None = None
    latency_ms: float | None = None
    table_latency_ms: float | None = None
    own_cost: float | None = None

    @property
    def identity(self) -> str:
        """Of the task that was done."""
        return self.key.rpartition("-attempt")[0]


_COUNTS = ("parameters", "flops")
_NEEDED = {SEARCH: (*_COUNTS, "architecture"), TRAIN: _COUNTS, RANDOM: (*_COUNTS, "architecture"), EXPORT: ()}


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

    @property
    def stage(self) -> str | None:
        """What it did by its own word; while it runs, what it was given."""
        key = (self.result or {}).get("key") or (self.parameters or {}).get("key")
        return str(key).split("-")[0] if key else None

    @cached_property
    def report(self) -> Report | None:
        """What it has done by its own word; ``None`` if it has not succeeded, or without a sound report."""
        if self.state != "succeeded":
            return None
        try:
            report = Report.model_validate(self.result)
        except ValidationError:
            return None
        return report if all(getattr(report, name) is not None for name in _NEEDED[self.stage]) else None


def judged(status: str, result: dict[str, Any] | None, end: float | None, now: float) -> str:
    """The state of a trial (``pending``, ``succeeded``, ``failed``) from NNI's status and its final metric."""
    if status in ("FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"):
        return "failed"
    if status != "SUCCEEDED":
        return "pending"
    if result is None:
        return "pending" if end is not None and now - end < _METRIC_DELAY else "failed"
    value = result.get("default")
    is_finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return "succeeded" if is_finite else "failed"


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
            if trial.report is not None:
                ledger.done.setdefault(trial.report.identity, trial)
        for trial in trials:
            try:
                task = Task.from_parameters(trial.parameters)
            except UsageError:
                continue  # started by hand in the portal, with parameters of somebody's own
            if trial.state == "pending":
                ledger.pending.add(task.identity)
            elif trial.report is None or trial.report.identity != task.identity:
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
        return task.identity not in self.pending and self.next_attempt(task).attempt > attempts

    def may_start(self, task: Task, attempts: int) -> bool:
        return task.identity not in self.pending and not self.is_over(task, attempts)

    def next_attempt(self, task: Task) -> Task:
        """The task with the number of its next attempt."""
        used = [failed.attempt for failed, _ in self.failed.get(task.identity, [])]
        return replace(task, attempt=max(used, default=0) + 1)

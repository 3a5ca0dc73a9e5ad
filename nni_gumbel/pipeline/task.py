"""A task: one piece of work for one trial, its key, and the trials that did it.

The key - stage, a hash of the settings that decide and of the network, seed and attempt - is in the parameters of the
trial that is to do the task and in the final metric of the trial that did it. A task is done when a succeeded trial
reports its key, whatever parameters NNI shows for that trial: NNI 3.0 can hand the parameters of one trial to another.
A success without a sound report is a failure.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Json, NonNegativeInt, PositiveInt, ValidationError

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import ExperimentSettings, deciding
from nni_gumbel.results.space import canonical

SEARCH, TRAIN, RANDOM, EXPORT = STAGES = ("search", "train", "random", "export")

# Of a trial, in its output directory.
TENSORBOARD = "tensorboard"
# Of a training, there.
BUNDLE = "bundle"
# Of an export, in its trial's output directory and in the trial code directory.
EXPORT_FOLDER = "gumbel-export"
# Beside it, in the trial code directory.
REPORT_FOLDER = "gumbel-report"

# Of a network's choices, among the parameters of its training.
CHOICE_PREFIX = "choice/"
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
        what = canonical([deciding(self.settings), self.architecture, self.target_parameters])
        return f"{self.stage}-{hashlib.sha256(what.encode()).hexdigest()[:8]}-seed{self.seed}"

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
        refused = UsageError(
            f"parameters: {parameters!r} are not those of a task; start trials by the tuner alone"
        )
        try:
            rest = dict(parameters)
            stage, seed, attempt, key = (rest.pop(name) for name in ("stage", "seed", "attempt", "key"))
        except (TypeError, ValueError, KeyError):
            raise refused from None
        size = rest.pop("target_parameters", None)
        choices = {name: rest.pop(name) for name in list(rest) if name.startswith(CHOICE_PREFIX)}
        architecture = {name.removeprefix(CHOICE_PREFIX): value for name, value in choices.items()}
        ExperimentSettings.from_flat(rest)
        task = cls(stage, seed, attempt, rest, architecture or None, size)
        # The key is a hash of all the rest that decides; only 0 and "0" look alike in it.
        if (
            stage not in STAGES
            or not isinstance(seed, int)
            or not isinstance(attempt, int)
            or task.key != key
        ):
            raise refused
        return task


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
    # What a finished training comes without.
    warning: str | None = None

    @property
    def identity(self) -> str:
        """Of the task that was done."""
        return self.key.rpartition("-attempt")[0]


_NEEDED = {
    SEARCH: ("parameters", "flops", "architecture"), TRAIN: ("parameters",), RANDOM: ("parameters", "architecture"),
    EXPORT: (),
}  # fmt: skip


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
    def task(self) -> Task | None:
        """What it was given; ``None`` if it was started by hand in the portal, with parameters of somebody's own."""
        try:
            return Task.from_parameters(self.parameters)
        except UsageError:
            return None

    @property
    def mistake(self) -> str | None:
        """The line of an error with which every attempt would end; ``None`` if there was none."""
        line = (self.result or {}).get("mistake")
        return line if self.state == "failed" and isinstance(line, str) else None

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

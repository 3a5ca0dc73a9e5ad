"""A task: one piece of work for one trial, and its key.

The key - stage, a hash of the settings (and of the network or its size), seed and attempt - is in the parameters of
the trial that is to do the task and in the final metric of the trial that did it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.settings import ExperimentSettings

SEARCH, TRAIN, RANDOM, EXPORT = STAGES = ("search", "train", "random", "export")
CHOICE_PREFIX = "choice/"
_SIZE = "target_parameters"

# Of a trial, in its output directory.
TENSORBOARD = "tensorboard"
# Of a training, there.
BUNDLE = "bundle"
# Of an export, in its trial's output directory and in the trial code directory.
EXPORT_FOLDER = "gumbel-export"


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
        size = {} if self.target_parameters is None else {_SIZE: self.target_parameters}
        return own | size | self.settings | choices

    @classmethod
    def from_parameters(cls, parameters: Any) -> Task:
        """Read a trial's parameters.

        Raises:
            UsageError: they are not what :meth:`parameters` makes.
        """
        if not isinstance(parameters, Mapping) or not {"stage", "seed", "attempt", "key"} <= set(parameters):
            raise UsageError(
                f"parameters: {parameters!r} are not those of a task; start trials by the tuner alone"
            )
        rest = dict(parameters)
        stage, seed, attempt, key = (rest.pop(name) for name in ("stage", "seed", "attempt", "key"))
        choices = {name: rest.pop(name) for name in list(rest) if str(name).startswith(CHOICE_PREFIX)}
        architecture = {name[len(CHOICE_PREFIX) :]: value for name, value in choices.items()}
        size = rest.pop(_SIZE, None)
        if stage not in STAGES or not is_count(seed, 0) or not is_count(attempt, 1):
            raise UsageError(
                f"parameters: stage {stage!r}, seed {seed!r}, attempt {attempt!r} are not those of a task"
            )
        known = ExperimentSettings.from_flat(rest)
        names = {
            SEARCH: known.search_values(),
            TRAIN: known.train_values(),
            RANDOM: known.train_values(),
            EXPORT: known.export_values(),
        }[stage]
        fits = set(rest) == set(names) and bool(architecture) == (stage == TRAIN)
        if not fits or (not is_count(size, 0) if stage == RANDOM else size is not None):
            raise UsageError(
                f"parameters: {sorted(rest)}, {len(architecture)} choices and {_SIZE} {size!r} do not fit "
                f"stage {stage!r}"
            )
        task = cls(stage, seed, attempt, rest, architecture or None, size)
        if task.key != key:
            raise UsageError(f"parameters: the key {key!r} does not fit them, it would be {task.key!r}")
        return task


def is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def canonical(value: Any) -> str:
    """JSON that is the same before and after a way through JavaScript, which writes 3.0 as 3."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: plain(each) for key, each in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(plain(value), sort_keys=True)

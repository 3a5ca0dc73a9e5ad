"""Strategies by name, and a search that ends within a budget of time.

A name is ``default`` (this plugin's default settings), one of its presets (``gradual``, ``darts``, ``snas``,
``gdas``), or the name of one of NNI's strategies. Settings follow a colon:
``default:cost_weight=0,arc_learning_rate=0.1``.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import nni
import nni.nas.strategy as nni_strategies
import pytorch_lightning as pl
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import RawFormatModelSpace
from torch import nn

from nni_gumbel import GumbelSearch, UsageError
from nni_gumbel.errors import nearest
from nni_gumbel.pipeline.evaluator import Classification
from nni_gumbel.search.settings import PRESETS, SearchSettings

OURS = {
    "default": {},
    **{name: {"preset": name} for name in PRESETS if name != "none"},
}
GRADIENT, SAMPLING = ("GumbelDARTS", "DARTS", "Proxyless"), ("ENAS", "RandomOneShot")
MULTI_TRIAL = ("RegularizedEvolution", "PolicyBasedRL", "Random", "TPE")
NAMES = (*OURS, *GRADIENT, *SAMPLING, *MULTI_TRIAL)
# Process CPU time is what a search on one thread has used, whatever else the machine does.
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}

# Epochs of so many batches are run before a search, the last of them measured.
_MEASURED_BATCHES, _MEASURED_EPOCHS = 15, 2
_NNI = Path(nni.__file__).parent
_TRAJECTORY = 20  # points, about

Sample = dict[str, Any]


@dataclass(frozen=True)
class Named:
    """A strategy's name and settings, as given.

    Attributes:
        text: what was given, for tables.
        name: one of :data:`NAMES`.
        settings: beyond those that the name stands for.
    """

    text: str
    name: str
    settings: dict[str, Any]

    @property
    def is_multi_trial(self) -> bool:
        """Whether it trains networks by themselves."""
        return self.name in MULTI_TRIAL

    def resolved(self) -> dict[str, Any]:
        """All settings that a result depends on: of ours with today's defaults."""
        if self.name not in OURS:
            return dict(self.settings)
        return dict(SearchSettings(**{**OURS[self.name], **self.settings}))

    def build(self, seed: int) -> Any:
        """The strategy."""
        settings = dict(self.settings)
        if self.name in OURS:
            return GumbelSearch(**{**OURS[self.name], **settings})
        if self.name in GRADIENT:
            settings = {"gradient_clip_val": 5.0, **settings}  # the default of ours
        elif self.name == "ENAS":
            settings = {"reward_metric_name": "val_acc", **settings}
        elif self.name == "TPE":
            # NNI's default minimises: with an accuracy it would look for the worst network.
            settings = {"optimize_mode": "maximize", "seed": seed, **settings}
        elif self.name in ("RegularizedEvolution", "Random"):
            settings = {"seed": seed, **settings}
        return getattr(nni_strategies, self.name)(**settings)


def parse(text: str) -> Named:
    """Read a name with settings.

    Raises:
        UsageError: the name or a setting of ours is unknown, or a setting has another form than ``key=value``.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise UsageError(f"--strategies: {name!r} is unknown{nearest(name, NAMES)}")
    settings: dict[str, Any] = {}
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--strategies: {word!r} in {text!r} is no setting; give key=value")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    named = Named(text, name, settings)
    named.resolved()
    return named


@dataclass(frozen=True)
class Found:
    """What a search returned.

    Attributes:
        sample: the NNI sample; ``None`` where NNI's code failed.
        trajectory: seconds of the clock, and the sample that would have been returned then.
        seconds: of the clock, in all.
        work: what the time was used for, in words.
        error: line and text of NNI's error.
    """

    sample: Sample | None
    trajectory: list[tuple[float, Sample]]
    seconds: float
    work: str
    error: str = ""


def search_within(
    named: Named,
    space: Callable[[], ModelSpace],
    data: Any,
    *,
    seconds: float,
    clock: str,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    train: Callable[[nn.Module], float],
) -> Found:
    """Search within a budget of time.

    The first steps of a one-shot strategy are measured; then it runs for as many epochs, of batches left out alike, as
    fit into what is left, and ends when the time is over. A multi-trial strategy begins a training as long as the mean
    one would end in time.

    Args:
        named: the strategy.
        space: makes the space.
        data: a data module with the attribute ``batches``, the number of batches in an epoch or ``None`` for all, and
            ``num_classes``.
        seconds: the budget.
        clock: one of :data:`CLOCKS`.
        seed: of the search.
        learning_rate: of the weights of a one-shot strategy.
        weight_decay: likewise.
        train: trains a network by itself; returns its validation accuracy. For multi-trial strategies.
    """
    pl.seed_everything(seed, verbose=False)
    now = CLOCKS[clock]
    began = now()
    try:
        if named.is_multi_trial:
            return _by_trials(named, space, train, seed, began, seconds, now)
        settings = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        return _one_shot(named, space, data, settings, seed, began, seconds, now)
    except Exception as error:
        place = None if named.name in OURS else line_of(error)
        if place is None:
            raise
        return Found(None, [], now() - began, "", place)


def line_of(error: Exception) -> str | None:
    """The line of NNI's code where an error was raised, and the error; ``None``, if it comes from these benchmarks."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_NNI):
            text = next(iter(str(error).splitlines()), "")
            return f"nni/{path.relative_to(_NNI).as_posix()}:{frame.lineno}: {type(error).__name__}: {text}"
        if path.is_relative_to(Path(__file__).parent):
            return None
    return None


# -- one-shot ----------------------------------------------------------------------------------------


def _one_shot(
    named: Named,
    space: Callable[[], ModelSpace],
    data: Any,
    settings: dict[str, float],
    seed: int,
    began: float,
    seconds: float,
    now: Callable[[], float],
) -> Found:
    data.batches = None
    whole = len(data.train_dataloader())
    data.batches = min(_MEASURED_BATCHES, whole)
    watch = _Epochs(now)
    # The last epoch is behind a warm-up, whose steps are cheaper. A course is measured whole.
    measured = _MEASURED_EPOCHS + named.resolved().get("warmup_epochs", 0)
    _run(named, space, data, settings, seed, measured, watch)
    seconds_an_epoch = mean(watch.seconds) if named.resolved().get("stages") else watch.seconds[-1]
    a_batch = seconds_an_epoch / data.batches
    epochs, data.batches = length(seconds - (now() - began), a_batch, whole)

    trajectory = _Trajectory(now, began, epochs * data.batches, named, seconds)
    module = _run(named, space, data, settings, seed, epochs, trajectory)
    sample = module.export()
    work = f"{trajectory.batch} of {epochs * data.batches} batches"
    return Found(sample, [*trajectory.points, (now() - began, sample)], now() - began, work)


def length(seconds: float, a_batch: float, whole: int) -> tuple[int, int]:
    """Epochs, and batches in each, that take a time.

    Args:
        seconds: the time.
        a_batch: seconds of a batch and what belongs to it.
        whole: batches that there are; an epoch has no more.

    Returns:
        As few epochs as there can be, at least one, of at least one batch.
    """
    batches = max(1, int(seconds / a_batch))
    epochs = math.ceil(batches / whole)
    return epochs, batches // epochs


def _run(
    named: Named,
    space: Callable[[], ModelSpace],
    data: Any,
    settings: dict[str, float],
    seed: int,
    epochs: int,
    callback: pl.Callback,
) -> Any:
    pl.seed_everything(seed, verbose=False)
    trainer = Trainer(
        max_epochs=epochs, callbacks=[callback], limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        accelerator="cpu", devices=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Classification(num_classes=data.num_classes, **settings)
    loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.structure_dataloader()}
    return searched(named, space, Lightning(module, trainer, **loaders), seed)


def searched(named: Named, space: Callable[[], ModelSpace], evaluator: Lightning, seed: int) -> Any:
    """The module of a one-shot search that has ended; its ``export()`` is the NNI sample found."""
    strategy = named.build(seed)
    supernet = strategy.mutate_model(space())
    mutated = strategy.mutate_evaluator(evaluator)
    mutated.evaluate(supernet)
    return mutated.module


class _Epochs(pl.Callback):
    """Times epochs."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._start, self.seconds = now, 0.0, []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._start = self._now()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seconds.append(self._now() - self._start)


class _Trajectory(pl.Callback):
    """What a search would return, in between; not of those whose answer is drawn by a controller or at random.

    It ends the search when its time is over: later steps may cost more than those that were measured.
    """

    def __init__(
        self, now: Callable[[], float], began: float, batches: int, named: Named, seconds: float
    ) -> None:
        self._now, self._began, self._seconds = now, began, seconds
        self._every = max(1, batches // _TRAJECTORY)
        self._asks = named.name not in SAMPLING
        self.batch, self.points = 0, []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.batch += 1
        if self._now() - self._began >= self._seconds:
            trainer.should_stop = True
        if self._asks and self.batch % self._every == 0:
            with torch.random.fork_rng():  # NNI's answers are drawn
                self.points.append((self._now() - self._began, module.export()))


# -- multi-trial -------------------------------------------------------------------------------------


class _Within(SequentialExecutionEngine):
    """Trains networks one after the other, as long as the next one is likely to end in time."""

    def __init__(self, left: Callable[[], float]) -> None:
        super().__init__()
        self._left = left
        self.durations: list[float] = []

    def budget_available(self) -> bool:
        mean = sum(self.durations) / len(self.durations) if self.durations else 0.0
        return self._left() > mean


def _by_trials(
    named: Named,
    space: Callable[[], ModelSpace],
    train: Callable[[nn.Module], float],
    seed: int,
    began: float,
    seconds: float,
    now: Callable[[], float],
) -> Found:
    engine = _Within(lambda: seconds - (now() - began))
    trajectory: list[tuple[float, Sample]] = []
    results: list[tuple[float, Sample]] = []

    def evaluate(network: nn.Module) -> None:
        started = now()
        accuracy = train(network)
        engine.durations.append(now() - started)
        # The engine's model, for a frozen network does not tell its sample.
        sample = dict(nni.get_current_parameter().sample)
        if not results or accuracy > max(results, key=lambda result: result[0])[0]:
            trajectory.append((now() - began, sample))
        results.append((accuracy, sample))
        nni.report_final_result(accuracy)

    strategy = named.build(seed)
    strategy(RawFormatModelSpace(space(), FunctionalEvaluator(evaluate)), engine)
    _, best = max(results, key=lambda result: result[0])
    return Found(best, trajectory, now() - began, f"{len(results)} networks trained")

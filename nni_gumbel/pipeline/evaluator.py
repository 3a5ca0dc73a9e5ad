"""The evaluator of a trial: the built-in image classification, or one that a person names; and its test result.

The built-in one is NNI's own ``ClassificationModule`` with its loss and metrics; only its optimiser
is another: that of a recipe.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import ClassificationModule, Lightning, Trainer
from pytorch_lightning import LightningDataModule
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nni_gumbel.data import build_data
from nni_gumbel.errors import UsageError, nearest, user_code
from nni_gumbel.names import call_named, import_named
from nni_gumbel.pipeline.command import EVALUATOR_FIELD, TrialCommand
from nni_gumbel.pipeline.loggers import loggers_of
from nni_gumbel.pipeline.rehearsal import check_scores, output_of
from nni_gumbel.pipeline.reporting import check_logged, logged_metric, our_reports_only, validation_metric
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.results.example import Example, batch_size
from nni_gumbel.results.perturbation import CHEAP_PASSES, measure_stability
from nni_gumbel.results.stability import Stability
from nni_gumbel.search.state import unchanged_randomness

logger = logging.getLogger(__name__)

# Examples of `stability: cheap`.
_CHEAP_EXAMPLES, _FEWEST_EXAMPLES = 512, 64
# Of a Trainer that is given none.
_DEFAULT_LOGGERS = (TensorBoardLogger, CSVLogger)


def _one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    (rate,) = (group["lr"] for group in optimizer.param_groups)
    # One more than there are steps, because the scheduler is also advanced after the last step. pct_start is
    # above 0.25, because OneCycleLR divides by the length of its first phase, pct_start * total_steps - 1, and
    # 4 * 0.25 - 1 is 0.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps + 1, pct_start=0.26)


# The setting `optimizer`: how the optimiser is made, and its learning rate over the steps. One cycle trains small
# networks in a few epochs; Nesterov's momentum under a cosine is the training of DARTS (arXiv 1806.09055, A.1.2).
RECIPES = {
    "adamw": (torch.optim.AdamW, _one_cycle),
    "sgd": (
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        torch.optim.lr_scheduler.CosineAnnealingLR,
    ),
    "adam": (
        torch.optim.Adam,
        lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, steps),
    ),
}


class Classification(ClassificationModule):
    """NNI's classification module, trained by a recipe.

    Attributes:
        recipe: one of ``RECIPES``.
    """

    recipe = "adamw"

    def forward(self, inputs: Any) -> Tensor:
        """Class scores ``(B, classes)`` of the inputs in a batch ``(inputs, labels)``: one tensor or several."""
        return Example.of(inputs)(self.model)

    def configure_optimizers(self) -> dict[str, Any]:
        make, schedule = RECIPES[self.recipe]
        optimizer = make(
            self.parameters(), lr=self.hparams.learning_rate, weight_decay=self.hparams.weight_decay
        )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer, steps), "interval": "step"},
        }


def evaluator_of(
    command: TrialCommand,
    network: nn.Module,
    settings: ExperimentSettings,
    epochs: int,
    seed: int,
    output: Path,
) -> Lightning:
    """The evaluator that a trial command names, for a run of so many epochs; logs the device that it runs on.

    What its Trainer writes by default goes into the trial's output directory.
    """
    data, size = None, settings.batch_size
    if command.data is not None:
        data = build_data(command.data, data_dir=command.data_dir, batch_size=size, seed=seed)
    evaluator = build_evaluator(
        command.evaluator, data=data, network=network, epochs=epochs, batch_size=size,
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, seed=seed,
        **_passed_on(settings),
    )  # fmt: skip
    write_into(output, evaluator.trainer)
    evaluator.trainer.loggers = [*evaluator.trainer.loggers, *loggers_of(command.loggers, output)]
    # NNI assigns a GPU by hiding the others: inside the trial it is always number 0.
    assigned = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    device = evaluator.trainer.strategy.root_device
    logger.info("this trial runs on %s (CUDA_VISIBLE_DEVICES=%s)", device, assigned)
    return evaluator


def write_into(output: Path, trainer: Trainer) -> None:
    """Let what a Trainer writes by default go into a directory, and not into the one that all trials work in."""

    def is_shared(path: str | None) -> bool:
        return path is not None and Path(path).resolve() == Path.cwd()

    if is_shared(trainer.default_root_dir):
        trainer._default_root_dir = str(output)  # it has no setter
    trainer.loggers = [
        type(each)(str(output)) if isinstance(each, _DEFAULT_LOGGERS) and is_shared(each.save_dir) else each
        for each in trainer.loggers
    ]


def build_evaluator(
    name: str | None,
    *,
    data: LightningDataModule | None,
    network: nn.Module | None = None,
    **arguments: Any,
) -> Lightning:
    """Make the evaluator of one search or one training.

    Args:
        name: ``module:function``; the function is called with those of ``data`` and the arguments below that it
            has parameters for, by keyword, and returns an NNI Lightning evaluator. ``None`` is the
            built-in classification.
        data: the data set of the trial command, if one is named there.
        network: what is to be trained; it tells the number of classes where the data does not.
        **arguments: of the run: ``epochs``, ``batch_size``, ``learning_rate`` (the largest one), ``weight_decay``,
            ``seed`` (the global generators are already seeded with it); and the settings ``optimizer``, ``precision``
            and ``trainer`` (a dict of flags), where they are set.

    Raises:
        UsageError: the function is missing, returns something else, or has no parameter for a setting that it alone
            could heed; or the Trainer does not take a flag.
    """
    if name is not None:
        arguments = _heeded(name, arguments)
        # A function that needs data is told so where there is none.
        given = arguments if data is None else {"data": data, **arguments}
        return call_named(EVALUATOR_FIELD, name, given, Lightning)
    if data is not None and network is not None and data.num_classes is None:
        data.num_classes = _number_of_scores(network, data)
    if getattr(data, "num_classes", None) is None:
        raise UsageError(
            "--data: its number of classes is not known; give the data module an attribute num_classes, "
            "or name an --evaluator of your own"
        )
    module = Classification(
        num_classes=data.num_classes,
        learning_rate=arguments["learning_rate"],
        weight_decay=arguments["weight_decay"],
    )
    arguments = {**_passed_on(ExperimentSettings()), **arguments}
    module.recipe = arguments["optimizer"]
    flags = {
        "accelerator": "auto", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        **arguments["trainer"],
        "max_epochs": arguments["epochs"], "precision": arguments["precision"], "devices": 1, "logger": False,
        "enable_checkpointing": False,
    }  # fmt: skip
    check_flags(flags)
    with user_code("trainer: Lightning refuses these flags", "correct them"):
        trainer = Trainer(**flags)
    return Lightning(module, trainer, datamodule=data)


def check_flags(flags: Iterable[str]) -> None:
    """See that the Trainer has flags of these names.

    Raises:
        UsageError: it lacks one.
    """
    known = inspect.signature(pl.Trainer).parameters
    for flag in flags:
        if flag not in known:
            raise UsageError(f"trainer: Lightning's Trainer has no flag {flag!r}{nearest(flag, known)}")


def _passed_on(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings of optimiser and Trainer, as an evaluator gets them."""
    return {
        "optimizer": settings.optimizer,
        "precision": settings.precision,
        "trainer": json.loads(settings.trainer),
    }


def _heeded(evaluator: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an evaluator of a person's own: those for optimiser and Trainer only where it needs them.

    Raises:
        UsageError: it has no parameter for one that is set.
    """
    function = import_named(EVALUATOR_FIELD, evaluator)
    if not callable(function):
        return arguments  # which is told when it is called
    parameters = inspect.signature(function).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name, default in _passed_on(ExperimentSettings()).items():
        is_set = arguments.get(name, default) != default
        if is_set and not takes_all and name not in parameters:
            raise UsageError(
                f"{name}: {EVALUATOR_FIELD} {evaluator} has no parameter {name!r} for it; give it one, or leave {name} "
                "out"
            )
        if not is_set and name not in parameters:
            arguments.pop(name, None)
    return arguments


def _number_of_scores(network: nn.Module, data: LightningDataModule) -> int:
    """How many numbers a network returns for an example."""
    with unchanged_randomness([]):
        batch = next(iter(data.train_dataloader()))
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        kind = (
            f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
        )
        raise UsageError(
            f"--data: a batch is a {kind}; give (inputs, labels), inputs a tensor, a tuple or a dict, or name an "
            "--evaluator of your own"
        )
    name = type(network).__name__
    return check_scores(output_of(network, Example.of(batch[0]).first(2), name), name)


def validation_size(evaluator: Lightning) -> int | None:
    """Number of validation examples, if it is known; NNI allows several loaders, the first one counts."""
    data = evaluator.datamodule
    loader = evaluator.val_dataloaders if data is None else data.val_dataloader()
    first = loader[0] if isinstance(loader, (list, tuple)) else loader
    try:
        return len(first.dataset)
    except (AttributeError, TypeError):
        return None


def check_metric(evaluator: Lightning, network: nn.Module, metric: str) -> None:
    """See, on one batch, that an evaluator logs the metric; it is not fit for a training afterwards.

    Raises:
        UsageError: it does not, or its validation fails.
    """
    evaluator.module.set_model(network)
    trainer = evaluator.trainer
    trainer.loggers, trainer.limit_val_batches = [], 1
    with our_reports_only(), user_code("--evaluator: its validation fails on the first batch", "correct it"):
        trainer.validate(
            evaluator.module, evaluator.val_dataloaders, datamodule=evaluator.datamodule, verbose=False
        )
    check_logged(trainer, metric)


def measure_stability_of(
    evaluator: Lightning, metric: str, minimize: bool, level: str, *, trained: int | None = None,
    on_test_part: bool = False,
) -> Stability | None:  # fmt: skip
    """How stable the network of an evaluator is, after its training or with the weights of one.

    Args:
        evaluator: its trainer validates the network; what that logs goes to no logger.
        metric: name of the metric.
        minimize: whether a smaller one is better.
        level: ``cheap`` (at most 512 examples) or ``full`` (all of them).
        trained: number of examples that the training saw, epoch by epoch: ``cheap`` takes so few that it has at most a
            tenth of the training's forward and backward passes, but never fewer than 64.
        on_test_part: of the examples; else of the validation part.

    Returns:
        ``None`` where there is no such part.
    """
    batches = some_examples(evaluator, level, trained=trained, on_test_part=on_test_part)
    if batches is None:
        return None
    with unchanged_randomness([]):
        return measure_stability(
            evaluator.module.model, batches, partial(score_on, evaluator, metric), metric=metric, minimize=minimize,
            full=level == "full", device=evaluator.trainer.strategy.root_device,
        )  # fmt: skip


def score_on(evaluator: Lightning, metric: str, batches: Sequence[Any]) -> float:
    """The metric of an evaluator's network on some batches; what its validation logs goes to no logger."""
    trainer = evaluator.trainer
    loggers, trainer.loggers = trainer.loggers, []
    try:
        trainer.validate(evaluator.module, DataLoader(batches, batch_size=None), verbose=False)
    finally:
        trainer.loggers = loggers
    return validation_metric(trainer, metric)


def some_examples(
    evaluator: Lightning, level: str, *, trained: int | None = None, on_test_part: bool = False
) -> list[Any] | None:
    """Batches of examples that a network is measured on; arguments and result as of :func:`measure_stability_of`."""
    data = evaluator.datamodule
    if on_test_part:
        if data is None or not is_overridden("test_dataloader", data):
            return None
        data.prepare_data()
        data.setup("test")
        loader = data.test_dataloader()
    else:
        loader = evaluator.val_dataloaders if data is None else data.val_dataloader()
    loader = loader[0] if isinstance(loader, (list, tuple)) else loader
    most = None
    if level == "cheap":
        most = _CHEAP_EXAMPLES
        if trained is not None:
            # An example of a training is three forward passes; half of the tenth is left for what is not counted.
            most = min(max(int(0.05 * 3 * trained / CHEAP_PASSES), _FEWEST_EXAMPLES), most)
    with unchanged_randomness([]):
        return _some_of(loader, most)


def _some_of(loader: Any, most: int | None) -> list[Any]:
    """About so many examples of a loader, evenly spaced, in its batches; all if no number is given.

    A validation part may be sorted by class. Of a loader without a length the first examples are taken.
    """
    kept, stride, seen = [], 1, 0
    for number, loaded in enumerate(loader):
        batch = Example((loaded,))
        size = batch_size(batch.args, {})
        if number == 0 and most is not None and hasattr(loader, "__len__"):
            stride = max(1, -(-len(loader) * size // most))
        first = -seen % stride
        if first < size:
            kept.append(batch.select(slice(first, None, stride)).args[0])
        seen += size
        if most is not None and stride == 1 and seen >= most:
            break
    return kept


def result_on_test_part(evaluator: Lightning, metric: str) -> float | None:
    """The metric on the test part; ``None`` where there is none: a finished training is not lost to that."""
    data, module = evaluator.datamodule, evaluator.module
    if data is None or not (is_overridden("test_dataloader", data) and is_overridden("test_step", module)):
        return None
    evaluator.trainer.test(module, datamodule=data, verbose=False)
    value = logged_metric(evaluator.trainer, "test", metric)
    if value is None:
        logger.warning("the evaluator logs no test_%s: the test result is left out", metric)
    return value

"""What a trial asks of its evaluator around a run: the evaluator itself, an example, sizes and the test result."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from nni_gumbel.data import build_data
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.evaluator import build_evaluator
from nni_gumbel.pipeline.reporting import logged_metric
from nni_gumbel.pipeline.settings import ExperimentSettings

logger = logging.getLogger(__name__)


def evaluator_of(
    command: TrialCommand, network: nn.Module, settings: ExperimentSettings, epochs: int, seed: int
) -> Lightning:
    """The evaluator that a trial command names, for a run of so many epochs; logs the device that it runs on."""
    data = None
    if command.data is not None:
        data = build_data(command.data, data_dir=command.data_dir, batch_size=settings.batch_size, seed=seed)
    evaluator = build_evaluator(
        command.evaluator,
        network=network,
        data=data,
        epochs=epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=seed,
    )
    logger.info("this trial runs on %s", _device_name(evaluator))
    return evaluator


def _device_name(evaluator: Lightning) -> str:
    device = evaluator.trainer.strategy.root_device
    if device.type != "cuda":
        return str(device)
    # NNI assigns a GPU by hiding the others: inside the trial it is always number 0.
    assigned = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f"{torch.cuda.get_device_name(device)} (CUDA_VISIBLE_DEVICES={assigned})"


def _validation_loader(evaluator: Lightning) -> Any:
    """The first validation loader: NNI allows several."""
    data = evaluator.datamodule
    loader = evaluator.val_dataloaders if data is None else data.val_dataloader()
    return loader[0] if isinstance(loader, (list, tuple)) else loader


def validation_size(evaluator: Lightning) -> int | None:
    """Number of validation examples, if it is known."""
    try:
        return len(_validation_loader(evaluator).dataset)
    except (AttributeError, TypeError):
        return None


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

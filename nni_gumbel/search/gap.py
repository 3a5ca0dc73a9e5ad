"""The discretisation gap: how much of what the mixture reaches is lost by the network found in it.

Both are validated with the same weights, in the way the evaluator validates: the noise-free mixture, and
the network that the search would return now, frozen out of it. The running statistics of a BatchNorm are
those of the mixture, which would be held against the network; so its own are estimated anew, from training
batches. All of it happens on copies: weights, buffers, metrics and the random state of the search stay as
they were.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from nni.nas.evaluator.pytorch import LightningModule
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from nni_gumbel.copies import copied
from nni_gumbel.errors import first_line
from nni_gumbel.search.randomness import unchanged_randomness
from nni_gumbel.search.steps import training_step, validation_step
from nni_gumbel.supernet.cell import MixedCell

_logger = logging.getLogger(__name__)

# Enough for statistics of a few per cent; a whole epoch would cost as much as training for one.
_BATCHES_FOR_STATISTICS = 20


def discretisation_gap(search: LightningModule) -> dict[str, float]:
    """Validation metrics of the mixture minus those of the network found, by the names the evaluator gives them.

    Args:
        search: a :class:`~nni_gumbel.search.module.GumbelSearchModule`, between two epochs of a training.

    Returns:
        One number per metric that a validation logs, under ``gap/``; empty where the evaluator validates nothing, and,
        with a warning, where its module cannot be copied.
    """
    trainer = search.trainer
    loaders = trainer.val_dataloaders
    if not sum(trainer.num_val_batches):
        return {}
    if not all(cell.runs_frozen for cell in search.model.modules() if isinstance(cell, MixedCell)):
        _logger.warning(
            "the discretisation gap is left out: a cell with loose ends is searched at full width"
        )
        return {}
    with unchanged_randomness([trainer.train_dataloader, loaders]), _rehearsing(trainer), torch.no_grad():
        try:
            module = _copy_of(search)
        except (TypeError, RuntimeError) as error:
            _logger.warning(
                "the discretisation gap is left out: %s cannot be copied (%s); give gap_every: 0, "
                "or keep such objects out of the module", type(search.training_module).__name__, first_line(error),
            )  # fmt: skip
            return {}
        search.distribution.use_probabilities()
        of_mixture = _validated(module, trainer)
        module.set_model(module.model.freeze(search.export()))
        _estimate_statistics(module, trainer)
        of_network = _validated(module, trainer)
    both = [name for name in of_mixture if name in of_network]
    return {f"gap/{name}": of_mixture[name] - of_network[name] for name in both}


@contextmanager
def _rehearsing(trainer: Trainer) -> Iterator[None]:
    """Let evaluators take what runs for a sanity check: they report nothing of it to anybody."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.SANITY_CHECKING
    try:
        yield
    finally:
        trainer.state.stage = stage


def _copy_of(search: LightningModule) -> LightningModule:
    """A copy of the evaluator's module with its model; the Trainer and the search are not copied with it."""
    module = search.training_module
    # The search sets the sample, for the copy, too.
    kept = {id(shared): shared for shared in (search, search.trainer, search.distribution.joint_sample)}
    for part in module.modules():
        for value in tree_leaves(dict(vars(part))):
            if isinstance(value, Tensor) and not value.is_leaf:
                kept[id(value)] = value.detach()  # the last value of a metric: has a graph, cannot be copied
    twin = copied(module, kept)
    twin.trainer = search.trainer  # which Lightning leaves out of a copy
    return twin


def _validated(module: LightningModule, trainer: Trainer) -> dict[str, float]:
    """What the module logs in one validation, averaged over the batches like Lightning does."""
    logged: dict[str, list[tuple[float, int]]] = defaultdict(list)
    metrics: dict[str, Metric] = {}
    size = 1

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Metric):
            metrics[name] = value
        else:
            logged[name].append((float(value), kwargs.get("batch_size") or size))

    module.log = log
    for metric in module.modules():
        if isinstance(metric, Metric):
            metric.reset()
    module.eval()
    batches = CombinedLoader(trainer.val_dataloaders, "sequential")
    batches.limits = trainer.num_val_batches
    several = len(batches.flattened) > 1
    step = validation_step(module)
    numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    module.on_validation_epoch_start()
    for batch, batch_idx, loader_idx in batches:
        batch = _ready(batch, trainer, loader_idx)
        size = _size_of(batch)
        with trainer.precision_plugin.val_step_context():
            step(*(batch, batch_idx, loader_idx)[: 3 if several else 1 + numbered])
    module.on_validation_epoch_end()
    means = {
        name: sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
        for name, values in logged.items()
    }
    return means | {name: float(metric.compute()) for name, metric in metrics.items()}


def _estimate_statistics(module: LightningModule, trainer: Trainer) -> None:
    """The mean over training batches in the place of every BatchNorm's running statistics."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.track_running_stats for norm in norms):
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    module.log = lambda *args, **kwargs: None
    module.train()
    batches = CombinedLoader(trainer.train_dataloader["train"], "max_size_cycle")
    for batch, batch_idx, _ in islice(batches, _BATCHES_FOR_STATISTICS):
        batch = _ready(batch, trainer, 0)
        with trainer.precision_plugin.train_step_context():
            training_step(module, batch, batch_idx)


def _ready(batch: Any, trainer: Trainer, loader_idx: int) -> Any:
    """A batch on the device and in the precision of the training, as Lightning's loops hand it over."""
    converted = trainer.precision_plugin.convert_input(batch)
    return trainer.strategy.batch_to_device(converted, dataloader_idx=loader_idx)


def _size_of(batch: Any) -> int:
    """The number of examples: the length of the first tensor in the batch."""
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)

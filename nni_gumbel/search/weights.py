"""The update of the weights, exactly as Lightning's automatic optimisation makes it.

A search takes two optimisers, so it runs under manual optimisation, for which Lightning refuses the
Trainer's ``accumulate_grad_batches`` and ``gradient_clip_val`` and steps no scheduler. All of it is done
here, at the same moments and with the same hooks: a space with a single candidate is trained to the same
weights with and without a search.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.search.structure import is_of_structure


@dataclass(frozen=True)
class TrainerOptions:
    """What the Trainer is told about updates of the weights and Lightning refuses under manual optimisation."""

    accumulate_grad_batches: int
    gradient_clip_val: float | None

    @classmethod
    def hide(cls, trainer: Trainer) -> TrainerOptions:
        """Take them away, so that Lightning's check passes; :meth:`show` puts them back."""
        options = cls(trainer.accumulate_grad_batches, trainer.gradient_clip_val)
        trainer.accumulate_grad_batches, trainer.gradient_clip_val = 1, None
        return options

    def show(self, trainer: Trainer) -> None:
        """Give them back to the Trainer, whose loops, loggers and estimates count with them."""
        trainer.accumulate_grad_batches = self.accumulate_grad_batches
        trainer.gradient_clip_val = self.gradient_clip_val


def check_weight_optimisation(module: LightningModule, trainer: Trainer) -> None:
    """Refuse, when the training starts, what cannot be done in a search.

    Args:
        module: the evaluator's module.
        trainer: with its optimisers configured; that of the structure is the last of them.

    Raises:
        UsageError: manual optimisation, several optimisers, or a scheduler that follows the loss.
    """
    if not module.automatic_optimization:
        raise UsageError(
            "automatic_optimization: the evaluator's module updates its weights by itself, which a search "
            "cannot do for it; leave automatic_optimization on"
        )
    if len(trainer.optimizers) != 2:
        raise UsageError(
            f"configure_optimizers: it gives {len(trainer.optimizers) - 1} optimisers of the weights; give one"
        )
    # Lightning marks such a scheduler only where it steps it itself.
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    if any(isinstance(config.scheduler, plateau) for config in trainer.lr_scheduler_configs):
        raise UsageError(
            "lr_scheduler: ReduceLROnPlateau cannot follow a search, whose loss changes with the temperature; "
            "give a scheduler that follows steps or epochs"
        )


def scales_losses(trainer: Trainer) -> bool:
    """Whether losses are scaled before their backward pass: in fp16 alone."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def scale_of_backward(trainer: Trainer) -> float:
    """What :func:`update_weights` multiplies a loss by before its backward pass."""
    scale = trainer.precision_plugin.scaler.get_scale() if scales_losses(trainer) else 1.0
    return scale / trainer.accumulate_grad_batches


def weight_optimizer(search: LightningModule) -> LightningOptimizer:
    """The evaluator's optimiser, wrapped by Lightning."""
    return next(optimizer for optimizer in search.optimizers() if not is_of_structure(optimizer))


def update_weights(
    search: LightningModule, forward: Callable[[], tuple[Any, Tensor]], batch_idx: int, schedules: bool = True
) -> Any:
    """Add the gradient of one batch, and update when ``accumulate_grad_batches`` of them are together.

    The optimiser gets the closure that automatic optimisation hands it: each call runs the batch again and leaves the
    gradient at the weights as they are then. SAM and LBFGS call it several times.

    Args:
        search: runs under manual optimisation; the hooks of its ``training_module`` are called.
        forward: runs the evaluator's training step under the current joint sample; what it returned, and the loss.
        batch_idx: number of the batch in its epoch.
        schedules: whether the schedulers advance; else somebody else sees to that.

    Returns:
        What the training step returned at the last call.

    Raises:
        UsageError: an ``optimizer_step`` of the evaluator does not call its closure, or the closure is called several
            times while gradients of several batches belong together.
    """
    module, optimizer = search.training_module, weight_optimizer(search)
    trainer = search.trainer
    together = trainer.accumulate_grad_batches
    complete = (batch_idx + 1) % together == 0 or trainer.is_last_batch
    results: list[Any] = []

    @torch.enable_grad()
    def closure() -> Tensor:
        if results and together > 1:
            raise UsageError(
                f"accumulate_grad_batches: {together} batches belong together, and {_kind(optimizer)} asks for the "
                "loss of all of them several times in a step; leave accumulate_grad_batches at 1, or give another "
                "optimiser"
            )
        result, loss = forward()
        results[:] = [result]
        if batch_idx % together == 0:
            module.on_before_zero_grad(optimizer)
            module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        search.manual_backward(loss / together)
        return loss.detach() / together

    if complete:
        # Clipping follows in `on_before_optimizer_step`: after unscaling, as in automatic optimisation.
        module.optimizer_step(trainer.current_epoch, batch_idx, optimizer, closure)
        if not results:
            raise UsageError(
                "optimizer_step: it does not call its optimizer_closure, which computes loss and gradients; call it, "
                "or hand it to optimizer.step"
            )
        if schedules:
            _advance_schedulers(module, trainer, "step", batch_idx)
    else:
        with (
            trainer.strategy.block_backward_sync()
            if isinstance(trainer.strategy, ParallelStrategy)
            else nullcontext()
        ):
            closure()
    if trainer.is_last_batch and schedules:
        _advance_schedulers(module, trainer, "epoch", trainer.current_epoch)
    return results[0]


def refuse_second_pass(search: LightningModule) -> NoReturn:
    """Refuse an optimiser that asks for the loss again where the structure learns from the same pass.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"level: 'single' takes one pass a step, and {_kind(weight_optimizer(search))} asks for the loss several "
        "times; give level 'bilevel', or another optimiser"
    )


def _kind(optimizer: LightningOptimizer) -> str:
    return type(optimizer.optimizer).__name__


def clip_weights(module: LightningModule, trainer: Trainer, optimizer: Any, clip_val: float) -> None:
    """Clip the gradients of the weights, through the evaluator's own hook.

    Args:
        module: the evaluator's module.
        trainer: its ``gradient_clip_val`` wins where it is set; its ``gradient_clip_algorithm`` is always used.
        optimizer: of the weights, with unscaled gradients.
        clip_val: the limit where the Trainer has none; 0 is no limit.
    """
    limit = clip_val if trainer.gradient_clip_val is None else trainer.gradient_clip_val
    module.configure_gradient_clipping(optimizer, limit or None, trainer.gradient_clip_algorithm or "norm")


def _advance_schedulers(module: LightningModule, trainer: Trainer, interval: str, index: int) -> None:
    for config in trainer.lr_scheduler_configs:
        if config.interval == interval and (index + 1) % config.frequency == 0:
            module.lr_scheduler_step(config.scheduler, None)

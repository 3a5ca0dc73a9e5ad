"""A search on several processes (Lightning's ``ddp``): one distribution, a sample and a batch for each.

The weights' gradients are averaged by DDP. The logits are kept out of it, because their step takes a
gradient with respect to them alone, which DDP would wait for in vain; their gradients are averaged
explicitly, so all processes hold the same logits at every step.
"""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor


def prepare_ddp(search: LightningModule, trainer: Trainer) -> None:
    """Tell DDP, before it wraps the module, to leave the logits out and to expect candidates that did not run.

    Args:
        search: the module to be wrapped, with a child ``distribution`` that holds the logits.
        trainer: with any strategy; only ``ddp`` is touched.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        search._ddp_params_and_buffers_to_ignore = [
            f"distribution.{name}" for name, _ in search.distribution.named_parameters()
        ]
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True


def draw_own_samples(trainer: Trainer) -> None:
    """Let each process draw samples of its own: they start with one seed, and so with the same draws."""
    if trainer.global_rank > 0:
        torch.manual_seed(torch.initial_seed() + trainer.global_rank)


def mean_over_ranks(tensor: Tensor, trainer: Trainer) -> Tensor:
    """The mean of a tensor over all processes, the same on each; the tensor itself if there is one process."""
    return tensor if trainer.world_size == 1 else trainer.strategy.reduce(tensor, reduce_op="mean")


def of_all_ranks(value: object, trainer: Trainer) -> list:
    """What each process holds, in the order of their ranks; must be called by all of them."""
    if trainer.world_size == 1:
        return [value]
    values: list = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values

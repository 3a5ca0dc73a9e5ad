"""The state of a search beside its weights: random numbers, processes, and what goes into a checkpoint.

A search draws from the global generators (samples, dropout, the seeds of shuffles) and from the generators of its own
that a loader may have: all of them together are the random state. What is saved is made of plain numbers and tensors,
so that a checkpoint is read without running code.

On several processes (Lightning's ``ddp``) there is one distribution, and a sample and a batch for each process. DDP
averages the weights' gradients. The logits are kept out of it, because their step takes a gradient with respect to them
alone, which DDP would wait for in vain; their gradients are averaged explicitly, so that all processes hold the same
logits at every step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from nni_gumbel.errors import UsageError

# -- what a resumed search must know ---------------------------------------------------------------


class Resumable:
    """What goes on from a checkpoint: ``_kept`` names the attributes that a resumed search must know.

    They are resumable themselves, or lists and dicts of plain values and of tensors that nothing changes in place.
    """

    _kept: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        values = {name: getattr(self, name) for name in self._kept}
        return {
            name: value.state_dict() if isinstance(value, Resumable) else _copied(value)
            for name, value in values.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name in self._kept:
            value = getattr(self, name)
            if isinstance(value, Resumable):
                value.load_state_dict(state[name])
            else:
                setattr(self, name, _copied(state[name]))


def plain(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network with plain strings: NNI's labels are of a class that a checkpoint would need to be trusted for."""
    return {str(label): value for label, value in network.items()}


def _copied(value: Any) -> Any:
    """A copy of lists and dicts, and of nothing in them."""
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if type(value) is list else value


# -- random numbers --------------------------------------------------------------------------------


def random_state(loaders: Any) -> dict[str, Any]:
    """The state of every generator: Python's, NumPy's, torch's on each device, and those of (nested) loaders."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        # Devices that were not used have no state, and asking would start them.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "loaders": [generator.get_state() for generator in _generators(loaders)],
        "samplers": [sampler.seed for sampler in _distributed_samplers(loaders)],
    }


def restore_random_state(state: dict[str, Any], loaders: Any) -> None:
    """Bring every generator back to a state from :func:`random_state`, given the same loaders."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    for generator, one in zip(_generators(loaders), state["loaders"]):
        generator.set_state(one.cpu())
    for sampler, seed in zip(_distributed_samplers(loaders), state["samplers"]):
        sampler.seed = seed


@contextmanager
def unchanged_randomness(loaders: Any = None) -> Iterator[None]:
    """Whatever is drawn inside, the random state is afterwards what it was."""
    state = random_state(loaders)
    try:
        yield
    finally:
        restore_random_state(state, loaders)


def continue_randomness(trainer: Trainer, states: list[dict[str, Any]]) -> None:
    """At the start of an epoch, draw from here on what the search drew that saved these states at the end of the last.

    There is a state for each process; another number of processes is refused.
    """
    if len(states) != trainer.world_size:
        raise UsageError(
            f"devices: the checkpoint is of {len(states)} processes, this search has {trainer.world_size}; "
            f"give the Trainer {len(states)} again"
        )
    restore_random_state(states[trainer.global_rank], trainer.train_dataloader)
    loop = trainer.fit_loop
    # Lightning makes iterators at the start of an epoch, but for the first one before: from other random numbers.
    made_before = getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting
    if made_before or trainer.current_epoch == 0:
        iter(loop._data_fetcher)


def _generators(loaders: Any) -> list[torch.Generator]:
    """The loaders' own generators, each once, in the order of the loaders."""
    found = []
    for loader in tree_leaves(loaders):
        batch_sampler = getattr(loader, "batch_sampler", None)
        samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
        found += [getattr(owner, "generator", None) for owner in (loader, *samplers)]
    return list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator)))


def _distributed_samplers(loaders: Any) -> list[DistributedSampler]:
    """The samplers that share a data set out to processes; each epoch's order follows from their seed."""
    samplers = (getattr(loader, "sampler", None) for loader in tree_leaves(loaders))
    return [sampler for sampler in samplers if isinstance(sampler, DistributedSampler)]


# -- processes -------------------------------------------------------------------------------------


def prepare_ddp(search: LightningModule, trainer: Trainer) -> None:
    """Tell DDP, before it wraps the module, to leave the logits out and to expect candidates that did not run."""
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

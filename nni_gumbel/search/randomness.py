"""The random state of a search: saved with a checkpoint, restored from it, left alone by measurements.

A search draws from the global generators (samples, dropout, the seeds of shuffles) and from the
generators of its own that a loader may have. All of them together are the random state. It is made of
plain numbers and tensors, so that a checkpoint that contains it is read without running code.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from nni_gumbel.errors import UsageError
from nni_gumbel.search.distributed import of_all_ranks


def random_state(loaders: Any) -> dict[str, Any]:
    """The state of every generator: Python's, NumPy's, torch's on each device, and those of the loaders.

    Args:
        loaders: a loader, or loaders in nested lists and dicts.
    """
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
def unchanged_randomness(loaders: Any) -> Iterator[None]:
    """Whatever is drawn inside, the random state is afterwards what it was."""
    state = random_state(loaders)
    try:
        yield
    finally:
        restore_random_state(state, loaders)


def randomness_of_ranks(trainer: Trainer) -> list[dict[str, Any]]:
    """The random state of every process of a search; must be called by all of them."""
    return of_all_ranks(random_state(trainer.train_dataloader), trainer)


def continue_randomness(trainer: Trainer, states: list[dict[str, Any]]) -> None:
    """At the start of an epoch, draw from here on what the search that saved the states drew next.

    Args:
        trainer: about to begin the epoch after the one at whose end the states were saved.
        states: one for each process.

    Raises:
        UsageError: another number of processes saved them.
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
    found: dict[int, torch.Generator] = {}
    for loader in tree_leaves(loaders):
        for owner in _owners(loader):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())


def _distributed_samplers(loaders: Any) -> list[DistributedSampler]:
    """The samplers that share a data set out to processes; each epoch's order follows from their seed."""
    samplers = (getattr(loader, "sampler", None) for loader in tree_leaves(loaders))
    return [sampler for sampler in samplers if isinstance(sampler, DistributedSampler)]


def _owners(loader: Any) -> Iterable[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    return (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))

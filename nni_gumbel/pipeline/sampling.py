"""Sampled networks of a supernet: what each of many networks reaches with the weights that a search has.

By them the report tells which choices results depend on. The stages of a search judge such networks themselves; any
other search judges some half-way, when its weights are not yet those of the network that it will find.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.errors import first_line
from nni_gumbel.results.agreement import Sampled
from nni_gumbel.search.module import GumbelSearchModule
from nni_gumbel.search.population import plain
from nni_gumbel.search.state import unchanged_randomness
from nni_gumbel.supernet.structure import UsedPart

_COUNT = 64
_logger = logging.getLogger(__name__)


class SampledNetworks(pl.Callback):
    """Judges networks half-way through a search without stages: drawn uniformly, by their losses on one batch.

    Args:
        supernet: of the search.
        seed: of the draws. The search goes on as it would without them.
    """

    def __init__(self, supernet: ModelSpace, seed: int) -> None:
        self._supernet, self._seed = supernet, seed
        self._judged: list[tuple[dict[str, Any], float]] = []
        self._is_done = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: GumbelSearchModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if self._is_done or pl_module.settings.stages or pl_module.progress < 0.5:
            return
        generator = torch.Generator().manual_seed(self._seed)
        networks = [pl_module.distribution.uniform_sample(generator) for _ in range(_COUNT)]
        # Of a BatchNorm the running statistics, which a pass changes.
        kept = [(buffer, buffer.clone()) for buffer in self._supernet.buffers()]
        used = UsedPart(self._supernet)
        for network in networks:
            try:
                with unchanged_randomness([]):
                    (loss,) = pl_module.losses_of([network], batch["val"], batch_idx)
                self._judged.append((plain(used(network)), loss))
            # A network that the search may never look at is no reason to end it, whatever it raises.
            except Exception as error:
                _logger.warning("a sampled network is not judged: %s", first_line(error))
        self._is_done = True
        for buffer, before in kept:
            buffer.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        return {"judged": self._judged, "is_done": self._is_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._judged, self._is_done = state_dict["judged"], state_dict["is_done"]

    def write(self, module: GumbelSearchModule, output: Path) -> None:
        """Keep what a search that has ended judged, in the output directory of its trial."""
        judged = self._judged or [(plain(network), value) for network, value in module.judged]
        Sampled(networks=judged).write(output)

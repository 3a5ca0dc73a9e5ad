"""Sampled networks of a supernet: what each of many networks reaches with the weights that a search has.

By them the report tells which choices results depend on. The stages of a search judge such networks themselves; any
other search judges some half-way, when its weights are not yet those of the network that it will find.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.results.agreement import Sampled
from nni_gumbel.search.module import GumbelSearchModule
from nni_gumbel.search.population import plain
from nni_gumbel.search.state import unchanged_randomness
from nni_gumbel.supernet.structure import UsedPart

_COUNT = 64


class SampledNetworks(pl.Callback):
    """Judges networks half-way through a search without stages: drawn uniformly, by their losses on one batch.

    Args:
        supernet: of the search.
        seed: of the draws. The search goes on as it would without them.
    """

    def __init__(self, supernet: ModelSpace, seed: int) -> None:
        self._supernet, self._seed = supernet, seed
        self._judged: list[tuple[dict[str, Any], float]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: GumbelSearchModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if self._judged or pl_module.settings.stages or pl_module.progress < 0.5:
            return
        generator, distribution = torch.Generator().manual_seed(self._seed), pl_module.distribution
        networks = [
            {
                label: distribution.value(label, law.draw(torch.zeros(law.size), generator))
                for label, law in distribution.laws.items()
            }
            for _ in range(_COUNT)
        ]
        # Of a BatchNorm the running statistics, which a pass changes.
        kept = [(buffer, buffer.clone()) for buffer in self._supernet.buffers()]
        with unchanged_randomness([]):
            losses = pl_module.losses_of(networks, batch["val"], batch_idx)
        for buffer, before in kept:
            buffer.copy_(before)
        used = UsedPart(self._supernet)
        self._judged = [(plain(used(network)), loss) for network, loss in zip(networks, losses)]

    def state_dict(self) -> dict[str, Any]:
        return {"judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._judged = state_dict["judged"]

    def write(self, module: GumbelSearchModule, output: Path) -> None:
        """Keep what a search that has ended judged, in the output directory of its trial."""
        judged = self._judged or [(plain(network), value) for network, value in module.judged]
        Sampled(networks=judged).write(output)

"""Populations: networks with shared weights, and a distribution that follows what they reach.

A stage of a search has a population: networks drawn from the distribution. Each weight step trains one of them, by
turns; at the end of the stage several of them are judged by their losses on the same validation batches, so that the
differences between batches cancel. The objective of a network is modelled as a sum over its choices,

    ``y(z) = b + sum_k a_k z_k``,

by ridge regression on all networks judged so far, the later ones counting more, and the logits of the next population
are ``-a / (temperature std(y))``. The temperature falls from stage to stage, as the settings say: the weights learn,
more and more, for the networks that are likely to be found.

Sources: weights shared by single paths: Guo et al., Single Path One-Shot NAS (arXiv 1904.00420), section 3; a
distribution that follows the networks it draws: Williams, Machine Learning 8 (1992), with a linear model of the return
in the place of a baseline. Drawing by perturbed maxima: Papandreou, Yuille, Perturb-and-MAP random fields (ICCV 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nni.mutable import Sample

from nni_gumbel.relaxation.gumbel import gumbel_noise
from nni_gumbel.search.state import Resumable, plain
from nni_gumbel.supernet.distribution import SETTLED, Distribution

# Networks of a population, and how many of them are judged on one batch.
_SIZE, _TOGETHER = 64, 8
# What a judgement counts behind another stage: the weights have gone on.
DISCOUNT = 0.7
# In the place of a network that is in the population already another one is drawn, so often.
_TRIES = 5


class Population(Resumable):
    """The networks of the current stage, and what follows from those of all stages.

    Attributes:
        networks: of the current stage.
        judged: the networks judged in all stages.
        objectives: what each has reached, relative to the mean of its stage.
        ages: for each, how many stages ago.
    """

    _kept = ("networks", "judged", "objectives", "ages", "_losses", "_turn")

    def __init__(self, distribution: Distribution, likeliest: Callable[[], Sample]) -> None:
        # Its logits follow what is known; the most probable network within the budgets, the labels that it uses.
        self._distribution, self._likeliest = distribution, likeliest
        self.networks: list[dict[str, Any]] = []
        self.judged: list[dict[str, Any]] = []
        self.objectives: list[float] = []
        self.ages: list[int] = []
        # Of the stage: a batch's networks, and their losses.
        self._losses: list[tuple[list[int], list[float]]] = []
        self._turn = 0

    def begin(self, temperature: float) -> None:
        """Draw the networks of the next stage, at a temperature > 0; the first one is the most probable."""
        logits = self._logits(temperature)
        self._set(logits)
        self.networks = [plain(self._likeliest())]
        for _ in range(_SIZE - 1):
            for _ in range(_TRIES):
                self._set({label: tensor + self._noise(label, tensor) for label, tensor in logits.items()})
                drawn = plain(self._likeliest())
                if drawn not in self.networks:
                    self.networks.append(drawn)
                    break
        self._set(logits)
        self._losses, self._turn = [], 0

    @property
    def likely(self) -> dict[str, Any]:
        """The most probable network."""
        return self.networks[0]

    def network(self, step: int) -> dict[str, Any]:
        """The network that is trained at a step of the stage, counted from 0."""
        return self.networks[step % len(self.networks)]

    def next_judged(self) -> list[dict[str, Any]]:
        """The networks that are judged on the next batch."""
        return [self.networks[i] for i in self._next()]

    def judge(self, losses: Sequence[float]) -> None:
        """Take the losses of :meth:`next_judged` on one batch into account."""
        self._losses.append((self._next(), list(losses)))
        self._turn += len(losses)

    def end(self, objective: Callable[[float, Mapping[str, Any]], float]) -> bool:
        """End the stage; ``objective`` is that of a mean loss and a network. Its weights are shared: none are kept."""
        totals, counts = np.zeros(len(self.networks)), np.zeros(len(self.networks), dtype=int)
        for indices, losses in self._losses:
            totals[indices] += np.array(losses) - np.mean(losses)
            counts[indices] += 1
        indices = np.flatnonzero(counts)
        if len(indices) > 1:
            mean = sum(float(np.sum(losses)) for _, losses in self._losses) / counts.sum()
            means = mean + totals[indices] / counts[indices]
            reached = [objective(float(loss), self.networks[i]) for i, loss in zip(indices, means)]
            self.ages = [age + 1 for age in self.ages] + [0] * len(indices)
            self.judged += [self.networks[i] for i in indices]
            self.objectives += (np.array(reached) - np.mean(reached)).tolist()
        self._losses = []
        return False

    def _next(self) -> list[int]:
        number = len(self.networks)
        return [(self._turn + i) % number for i in range(min(_TOGETHER, number))]

    def _logits(self, temperature: float) -> dict[str, torch.Tensor]:
        """``-a / temperature`` per label, of objectives in units of their spread; 0 where none was judged."""
        sizes = [law.size for law in self._distribution.laws.values()]
        effects = np.zeros(sum(sizes))
        if self.judged:
            ages, features = np.array(self.ages), features_of(self._distribution, self.judged)
            for age in {*self.ages}:  # networks are compared with those of their own stage
                features[ages == age] -= features[ages == age].mean(0)
            weighted = features.T * DISCOUNT**ages
            spread = float(np.std([y for y, age in zip(self.objectives, self.ages) if age == 0]))
            gram = weighted @ features + 2 * np.eye(len(effects))
            effects = np.linalg.solve(gram, weighted @ np.array(self.objectives)) / max(spread, 1e-12)
        parts = torch.from_numpy(-effects / temperature).float().split(sizes)
        return dict(zip(self._distribution.laws, parts))

    def _noise(self, label: str, logits: torch.Tensor) -> torch.Tensor:
        """What makes the most probable outcome a draw: Gumbel noise, of gates logistic noise, their difference."""
        law = self._distribution.laws[label]
        return gumbel_noise(logits) if law.least == law.most else gumbel_noise(logits) - gumbel_noise(logits)

    @torch.no_grad()
    def _set(self, logits: Mapping[str, torch.Tensor]) -> None:
        for label, values in logits.items():
            law = self._distribution.laws[label]
            if law.least == law.most:  # their mean says nothing, and must not make a candidate look decided
                values = values - values.mean()
            self._distribution.logits[label].copy_(values.clamp(-SETTLED / 2, SETTLED / 2))


def features_of(distribution: Distribution, networks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """0 and 1 for every candidate of every label, a row for each network."""
    zeros = {label: np.zeros(law.size) for label, law in distribution.laws.items()}
    rows = []
    for network in networks:
        used = {label: distribution.outcome(label, value).cpu().numpy() for label, value in network.items()}
        rows.append(np.concatenate([*(zeros | used).values()]).astype(float))
    return np.stack(rows)

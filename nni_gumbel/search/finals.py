"""Finals: networks that are trained alone, and a distribution that follows what they reach.

Weights that networks share say little of which network is better; a short training of its own does. The objective of
a network is modelled as a sum over its choices,

    ``y(z) = b + sum_k a_k z_k``,

by ridge regression on the networks judged so far, with the evidence of the rounds as the prior mean of ``a``. The
distribution of the next network is that of the logits ``-a / (temperature std(y))``; its temperature falls from one
network to the next, as the settings say, from exploring to deciding. The network found is the one of those judged for
which the mean of ``y`` and of the model's ``y`` is smallest.

Sources: the distribution that follows the networks it draws: Williams, Simple statistical gradient-following
algorithms for connectionist reinforcement learning, Machine Learning 8 (1992), with a linear model of the return in the
place of a baseline. Drawing by perturbed maxima: Papandreou, Yuille, Perturb-and-MAP random fields (ICCV 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from nni.mutable import Sample

from nni_gumbel.relaxation.gumbel import gumbel_noise
from nni_gumbel.search.evidence import Evidence
from nni_gumbel.supernet.distribution import SETTLED, Distribution

# In the place of a network that was judged before another one is drawn, so often, and every time so much warmer: at a
# low temperature the same would come again and again.
_TRIES, _WARMER = 20, 1.25


class Finals:
    """The networks that were trained alone, and what follows from them.

    Args:
        distribution: of the networks that are left; its logits follow what is known.
        evidence: of the rounds.
        best: the most probable network that may be found, an NNI sample with the labels that it uses.
    """

    def __init__(self, distribution: Distribution, evidence: Evidence, best: Callable[[], Sample]) -> None:
        self._distribution, self._evidence, self._best = distribution, evidence, best
        self._networks: list[dict[str, Any]] = []
        self._objectives: list[float] = []
        self.current: dict[str, Any] | None = None
        self._total, self._count = 0.0, 0

    def begin(self, temperature: float) -> None:
        """Draw the next network to be trained; the first one is what the evidence speaks for.

        Args:
            temperature: > 0, relative to the spread of the objectives.
        """
        logits = self._logits(temperature)
        self._set(logits)
        drawn = dict(self._best())
        if self._networks:
            for attempt in range(_TRIES):
                warmth = _WARMER**attempt
                self._set(
                    {label: tensor / warmth + self._noise(label, tensor) for label, tensor in logits.items()}
                )
                drawn = dict(self._best())
                if drawn not in self._networks:
                    break
            self._set(logits)
        self.current, self._total, self._count = drawn, 0.0, 0

    def judge(self, loss: float) -> None:
        """Count the loss of the current network on one batch."""
        self._total, self._count = self._total + loss, self._count + 1

    def end(self, objective: Callable[[float, Mapping[str, Any]], float]) -> None:
        """Take what the current network has reached into account.

        Args:
            objective: of a mean loss and a network.
        """
        if self.current is not None and self._count:
            self._networks.append(self.current)
            self._objectives.append(objective(self._total / self._count, self.current))
        self.current = None

    def ranked(self) -> list[dict[str, Any]]:
        """The networks that were judged, each once; first the one with the smallest estimate.

        What a network has reached is a single noisy number: its estimate is the mean of that and of the model.
        """
        if not self._networks:
            return []
        effects, _ = self._model()
        modelled = np.stack([*map(self._features, self._networks)]) @ effects
        objectives = np.array(self._objectives)
        estimates = objectives - objectives.mean() + modelled - modelled.mean()
        ranked: list[dict[str, Any]] = []
        for index in np.argsort(estimates, kind="stable"):
            if self._networks[index] not in ranked:
                ranked.append(self._networks[index])
        return ranked

    def found(self) -> dict[str, Any]:
        """The first of :meth:`ranked`; without any, the network that the evidence speaks for."""
        if not self._networks:
            self._set(self._logits(temperature=1.0))
            return dict(self._best())
        return self.ranked()[0]

    def decide(self) -> dict[str, Any]:
        """Decide every choice as the network found has it; what it does not use, as it is most probable."""
        network = self.found()
        self._distribution.settle_at(self._distribution.mode() | network)
        return network

    def _logits(self, temperature: float) -> dict[str, torch.Tensor]:
        """``-a / (temperature std(y))`` per label, of the candidates that are undecided."""
        effects, spread = self._model()
        scaled = torch.from_numpy(-effects / (temperature * max(spread, 1e-12))).float()
        scaled = scaled.clamp(-SETTLED / 2, SETTLED / 2)  # where all objectives are the same
        parts = scaled.split([law.size for law in self._distribution.laws.values()])
        return dict(zip(self._distribution.laws, parts))

    def _model(self) -> tuple[np.ndarray, float]:
        """``a`` of all labels one after the other, and ``std(y)``; of few networks what the evidence says."""
        prior = np.concatenate([-evidence.double().numpy() for evidence in self._evidence.by_label.values()])
        if len(self._networks) <= 2:
            return prior, float(np.abs(prior).max(initial=0.0))
        features = np.stack([*map(self._features, self._networks)])
        features = features - features.mean(0)
        objectives = np.array(self._objectives)
        rest = objectives - objectives.mean() - features @ prior
        gram = features.T @ features + np.eye(len(prior))
        return prior + np.linalg.solve(gram, features.T @ rest), float(objectives.std())

    def _features(self, network: Mapping[str, Any]) -> np.ndarray:
        """0 and 1 for every candidate of every label, in this order."""
        zeros = {label: np.zeros(law.size) for label, law in self._distribution.laws.items()}
        used = {
            label: self._distribution.outcome(label, value).cpu().numpy() for label, value in network.items()
        }
        return np.concatenate([*(zeros | used).values()]).astype(float)

    def _noise(self, label: str, logits: torch.Tensor) -> torch.Tensor:
        """What makes the most probable outcome a draw: Gumbel noise, of gates logistic noise, their difference."""
        law = self._distribution.laws[label]
        return gumbel_noise(logits) if law.least == law.most else gumbel_noise(logits) - gumbel_noise(logits)

    @torch.no_grad()
    def _set(self, logits: Mapping[str, torch.Tensor]) -> None:
        """Set the logits of what is undecided."""
        for label, tensor in logits.items():
            own, law = self._distribution.logits[label], self._distribution.laws[label]
            free = own.abs() < SETTLED
            if not free.any():
                continue
            values = tensor.to(own)[free]
            if law.least == law.most:
                # The logits' mean says nothing, and must not make a candidate look decided.
                values = values - values.mean()
            own[free] = values.clamp(-SETTLED / 2, SETTLED / 2)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {
            "networks": [plain(network) for network in self._networks], "objectives": list(self._objectives),
            "current": None if self.current is None else plain(self.current),
            "total": self._total, "count": self._count,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._networks, self._objectives = list(state["networks"]), list(state["objectives"])
        self.current, self._total, self._count = state["current"], state["total"], state["count"]


def plain(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network with plain strings: NNI's labels are of a class that a checkpoint would need to be trusted for."""
    return {str(label): value for label, value in network.items()}

"""Evidence: what the gradient at an undecided mixture says of every candidate, and what is rejected because of it.

Weights adapt to the structure that they are trained in, and a structure that follows such weights commits to what
they like: candidates without parameters. The gradient at an undecided mixture of *young* weights ranks candidates
with the truth (figures: ``examples/benchmarks/RESULTS.md``). So weights start anew in every round, the gradient of the
objective in the logits is averaged while the structure stays as it is, and then the worst candidates are rejected. The
next round measures the others without them. Three candidates of every choice are left: which one of them is better
depends on the rest of the network, and is told by single networks with shared weights
(:mod:`~nni_gumbel.search.population`).

For an exponential family with marginals ``p``, ``d p_k / d theta_k = p_k (1 - p_k)``, so

    ``e_k = -(d objective / d theta_k) / (p_k (1 - p_k))``

is what the objective gains, to first order, from candidate k in the place of what else the choice may be: for a
choice of one, of the mean of the others; for an open subset, of leaving k out. It is in the unit of the loss, as costs
are. The mean over steps is
that of the directions, label by label, times the mean length: a few steps with a large gradient, where the noise
happened to make a strange network, do not drown the others.

Sources: rejecting the worst arm of several in phases: Audibert, Bubeck, Munos, Best Arm Identification in Multi-Armed
Bandits (COLT 2010), figure 3; candidates dropped in stages of a search: Chen et al., DrNAS (arXiv 2006.10882),
section 3.3, there with the weights kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nni_gumbel.supernet.distribution import Distribution

# What the evidence of a round counts in the next one: it was measured beside candidates that are rejected now.
_DISCOUNT = 0.7
# How many candidates more than a network has are left of each choice. With one, the noise of a short search rejects
# what the best networks have.
_SPARE = 2
# A gradient of less is rounding: the loss does not depend on the choice, as on the rate of a dropout.
_SILENT = 1e-12
# A variance of less is that of a candidate that is decided.
_DECIDED = 1e-6


class Evidence:
    """What the rounds of a search have gathered.

    Args:
        distribution: whose candidates are compared, and rejected.

    Attributes:
        by_label: ``(n,)`` per label, in the unit of the loss; above 0 speaks for a candidate.
    """

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._count, self._weight = 0, 0.0
        self._directions, self.by_label = self._zeros(), self._zeros()
        self._lengths = self._no_lengths()

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Count the gradient of the objective in the logits, per label ``(n,)``, of one step."""
        for label, gradient in zip(self._directions, gradients):
            gradient = gradient.detach().float()
            length = gradient.norm()
            # Where the gradient is: a number read from a device would be waited for, label after label.
            self._lengths[label] = self._lengths[label].to(length) + length
            direction = gradient / length.clamp_min(1e-12)
            self._directions[label] = self._directions[label].to(direction) + direction
        self._count += 1

    def reject(self, later: int) -> None:
        """End a round: reject the candidates of every choice for which the evidence is worst.

        Args:
            later: how many rounds follow; as many candidates are rejected in each of them as now.
        """
        self._weight = _DISCOUNT * self._weight + 1
        count = max(self._count, 1)
        silent = [
            label for label, length in self._lengths.items() if self._count and length < _SILENT * count
        ]
        for label, directions in self._directions.items():
            mean = (directions / count * (self._lengths[label] / count)).cpu()
            gain = -mean / self._variance(label).cpu().clamp_min(_DECIDED)
            self.by_label[label] += (gain - self.by_label[label]) / self._weight
        self._directions, self._lengths, self._count = self._zeros(), self._no_lengths(), 0
        for label, kept in self._kept().items():
            if label in silent:
                continue
            surplus = len(self.undecided(label)) - kept
            for _ in range(surplus - surplus * later // (later + 1)):
                self._reject_one(label)

    def undecided(self, label: str) -> list[int]:
        """The candidates of a choice that may be in a network or not."""
        return [k for k, variance in enumerate(self._variance(label).tolist()) if variance > _DECIDED]

    def _kept(self) -> dict[str, int]:
        """How many candidates the rounds leave, of the choices that have a fixed number of them."""
        return {
            label: law.most + _SPARE
            for label, law in self._distribution.laws.items()
            if law.least == law.most
        }

    def _reject_one(self, label: str) -> None:
        worst = min(self.undecided(label), key=self.by_label[label].tolist().__getitem__)
        self._distribution.settle(label, worst, chosen=False)

    def _variance(self, label: str) -> Tensor:
        """``(n,)``, ``p (1 - p)`` of each candidate of a choice."""
        p = self._distribution.laws[label].probs(self._distribution.logits[label].detach())
        return p * (1 - p)

    def _zeros(self) -> dict[str, Tensor]:
        return {label: torch.zeros(law.size) for label, law in self._distribution.laws.items()}

    def _no_lengths(self) -> dict[str, Tensor]:
        return {label: torch.zeros(()) for label in self._distribution.laws}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {
            "count": self._count, "weight": self._weight, "lengths": [*self._lengths.values()],
            "directions": [*self._directions.values()], "evidence": [*self.by_label.values()],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._count, self._weight = state["count"], state["weight"]
        self._lengths = dict(zip(self._lengths, state["lengths"]))
        self._directions = dict(zip(self._directions, state["directions"]))
        self.by_label = dict(zip(self.by_label, state["evidence"]))

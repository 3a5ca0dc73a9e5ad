"""The end of a search with budgets: the distribution is pulled towards a single network within the budgets.

A mixture can meet a budget in expectation although no single network has such a cost:

    budget 1,000; candidates of 1,400 and 600 parameters; P = (0.5, 0.5) has an expected cost of 1,000

As long as the search is asked to spend the budget, it stays at such a mixture. In the last quarter of a search the
network that would be returned at that moment is computed from time to time, a term of the objective pulls the
distribution towards this network, and the search is asked to spend no more of a budget than this network uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nni.mutable import Sample
from torch import Tensor

from nni_gumbel.supernet.distribution import Distribution

# The progress at which it begins, and how much of it lies between two choices of the network: each is an integer
# programme, which a step should not wait for.
BEGIN = 0.75
_PERIOD = 0.01


class Commitment:
    """The network that a search settles on, chosen again from time to time as the logits move.

    Args:
        distribution: of the structure.
        find: the network that the search would return now.
        usage: the largest part of a budget that a network uses.
    """

    def __init__(
        self,
        distribution: Distribution,
        find: Callable[[], Sample],
        usage: Callable[[Sample], float],
    ) -> None:
        self._distribution, self._find, self._usage = distribution, find, usage
        self._outcomes: dict[str, Tensor] = {}
        self._used = math.inf
        self._chosen_at = -math.inf

    def has_begun(self, progress: float) -> bool:
        """Whether the search, its progress in [0, 1], is in its last quarter."""
        return progress > BEGIN

    def strength(self, progress: float) -> float:
        """From 0 at the beginning of the last quarter to 1 at the end of the search."""
        return max(progress - BEGIN, 0.0) / (1 - BEGIN)

    def used(self, progress: float) -> float:
        """The largest part of a budget that the network uses; before the last quarter there is none: infinite."""
        self._choose(progress)
        return self._used

    def distance(self, progress: float) -> Tensor:
        """How far the distribution is from the network, ``z``; scalar, differentiable, 0 where it is certain.

        ``mean_label( -log q(z_label) / log(number of outcomes) )``, in which a label that ``z`` does not use, or that
        has a single outcome, counts as 0: as large as the entropy of
        :meth:`Distribution.entropy <nni_gumbel.supernet.distribution.Distribution.entropy>` where that is uniform.
        """
        self._choose(progress)
        laws, logits = self._distribution.laws, self._distribution.logits
        relative = [
            -laws[label].log_prob(logits[label], outcome.to(logits[label]))
            / math.log(max(laws[label].outcomes, 2))
            for label, outcome in self._outcomes.items()
        ]
        return torch.stack(relative).sum() / len(laws)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        # Plain strings: NNI's labels are of a class of its own, which a checkpoint would need to be trusted for.
        outcomes = {str(label): outcome for label, outcome in self._outcomes.items()}
        return {"outcomes": outcomes, "used": self._used, "chosen_at": self._chosen_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        # Lightning restores a search before it moves it to its device: the logits may still be elsewhere.
        self._outcomes = dict(state["outcomes"])
        self._used, self._chosen_at = state["used"], state["chosen_at"]

    def _choose(self, progress: float) -> None:
        if not self.has_begun(progress) or progress < self._chosen_at + _PERIOD:
            return
        sample = self._find()
        self._outcomes = {
            label: self._distribution.outcome(label, value).detach() for label, value in sample.items()
        }
        self._used, self._chosen_at = self._usage(sample), progress

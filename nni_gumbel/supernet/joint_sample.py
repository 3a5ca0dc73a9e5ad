"""The joint sample that a supernet computes with: every module that carries a label reads the same weights.

So two modules that share a label always agree.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def nonzero(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Per label, the candidates whose weight, of ``(n,)``, is not 0; read from the device, all together."""
    is_in = iter(torch.cat([each.detach() for each in weights.values()]).ne(0).tolist())
    return {label: [k for k in range(len(each)) if next(is_in)] for label, each in weights.items()}


class JointSample:
    """The weights that every module of a supernet currently computes with.

    A plain object that the modules share, not a module: it belongs to the distribution, and must
    appear neither in a state dict nor among a module's children.

    Attributes:
        is_network: whether the sample is a single network, its weights the constants 0 and 1: what is alone active
            then needs no multiplication, which would store one more tensor for the backward pass.
    """

    def __init__(self) -> None:
        self._read: set[str] = set()
        self._is_told = False
        self.set({}, {})

    def __deepcopy__(self, memo: dict[int, Any]) -> JointSample:
        # Torch copies no tensors with a history; a copy has the numbers, and nothing that leads back to the logits.
        memo[id(self)] = twin = JointSample()
        draws = {label: draw.detach().clone() for label, draw in self._draws.items()}
        twin.set(draws, self._active, self.is_network)
        return twin

    def set(
        self,
        draws: Mapping[str, Tensor],
        active: Mapping[str, list[int]] | None = None,
        is_network: bool = False,
    ) -> None:
        """Make draws the current sample.

        Args:
            draws: per label ``(n,)`` weights or, for a choice of k of n inputs, ``(k, n)`` slots.
            active: per label, ascending, the candidates that have to run. Left out, they are those whose weight is
                not 0, for which the draws are read: on a GPU that waits for the device.
            is_network: whether every weight is the constant 0 or 1.
        """
        self.tell_unread()
        self._draws = dict(draws)
        self._weights = {label: draw.sum(0) if draw.dim() == 2 else draw for label, draw in draws.items()}
        self._active = dict(nonzero(self._weights) if active is None else active)
        self.is_network = is_network

    def tell_unread(self) -> None:
        """Tell, once, of choices that no module has read in a pass in which all candidates ran."""
        if not self._read:
            return
        if any(len(self._active[label]) < len(weights) for label, weights in self._weights.items()):
            return
        labels = [repr(label) for label in self._draws if label not in self._read]
        self._read.clear()
        if labels and not self._is_told:
            self._is_told = True
            _log.warning(
                "choice %s: nothing that depends on it was called in a forward pass, so nothing can tell which of its "
                "candidates is better; call it in forward(), or take it out of the space",
                ", ".join(labels),
            )

    def draw(self, label: str) -> Tensor:
        """What was set for ``label``: ``(n,)`` weights or ``(k, n)`` slots."""
        return self._draws[label]

    def weights(self, label: str) -> Tensor:
        """``(n,)``, the weight of each candidate of ``label``."""
        self._read.add(label)
        return self._weights[label]

    def active(self, label: str) -> list[int]:
        """The candidates of ``label`` that have to run."""
        self._read.add(label)
        return self._active[label]

    def running(self, label: str) -> dict[int, Tensor | None]:
        """The candidates of ``label`` that have to run, with their weights; one that is not among them must not run.

        A weight is a scalar, or ``None`` where it is the constant 1 of a single network, which needs no multiplication.
        """
        return self._with_weights(self.active(label), self._weights[label])

    def slots(self, label: str) -> list[dict[int, Tensor | None]]:
        """For a choice of k of n inputs, per place j: the inputs that may stand there, as :meth:`running` has them.

        The j-th of the chosen inputs, in the order of the inputs, stands at place j.
        """
        active, draw = self.active(label), self._draws[label]
        # Input i is never after place i, nor with fewer inputs behind it than places.
        last = len(active) - len(draw)
        return [self._with_weights(active[j : last + j + 1], weights) for j, weights in enumerate(draw)]

    def _with_weights(self, active: list[int], weights: Tensor) -> dict[int, Tensor | None]:
        if self.is_network:
            return dict.fromkeys(active)
        each = weights.unbind()
        return {k: each[k] for k in active}

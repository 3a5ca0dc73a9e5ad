"""Exactly ``k`` candidates of ``n``: the law of an input choice that takes several.

A subset is a path through a lattice. Let ``i_0 < ... < i_(k-1)`` be its members: *slot* ``j`` holds
``i_j = j + d_j``, where the *offset* ``d_j``, the number of candidates left out before it, never falls and
lies between 0 and ``n - k``. One pass over the slots in each direction gives the weight of all ways to
reach a slot at an offset and of all ways to go on from there, and with them the partition function, the
marginals of each slot and of each candidate, and exact draws. Only offsets that can occur are stored, so
every weight is positive and every derivative of its logarithm finite.

Source: Ahmed, Zeng, Niepert, Van den Broeck (arXiv 2210.01941, SIMPLE), for the exact marginals of a
k-subset by dynamic programme, there over candidates; Kulesza, Taskar (arXiv 1207.6083), for exact
draws of k-subsets from such sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.gumbel import gumbel_noise, perturbed_given_top
from nni_gumbel.relaxation.law import Law, check_temperature


@final
@dataclass(frozen=True)
class KSubset(Law):
    """``P(s) = exp(sum_{i in s} theta_i) / Z`` over the sets of ``k`` candidates; for k = 1 softmax.

    A draw is a matrix of slots ``(..., k, n)``: row ``j`` says where the j-th smallest chosen index is.
    Its rows sum to 1; its column sums are the weights of the candidates, in [0, 1], and sum to k.

    Args:
        size: ``n >= 1``, the number of candidates.
        k: how many are chosen, in [1, n].

    Raises:
        UsageError: ``k`` is out of range.
    """

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.size:
            raise UsageError(f"k: {self.k} of {self.size} candidates is impossible; give 1 to {self.size}")

    @property
    def least(self) -> int:
        """``k``."""
        return self.k

    most = least

    @property
    def outcomes(self) -> int:
        """``n! / (k! (n - k)!)``."""
        return math.comb(self.size, self.k)

    def sets(self) -> Iterator[tuple[int, ...]]:
        """The sets of ``k`` candidates in lexicographic order."""
        return itertools.combinations(range(self.size), self.k)

    def log_partition(self, logits: Tensor) -> Tensor:
        """Logarithm of the elementary symmetric polynomial ``e_k(exp(theta))``."""
        return torch.logsumexp(self._log_paths(logits.double())[..., 0, :], -1).to(logits.dtype)

    def probs(self, logits: Tensor) -> Tensor:
        """The column sums of :meth:`exact`; they sum to k."""
        return self.exact(logits.double()).sum(-2).to(logits.dtype)

    def mode(self, logits: Tensor) -> Tensor:
        """The k largest logits."""
        order = logits.detach().sort(dim=-1, descending=True, stable=True).indices
        return torch.zeros_like(logits).scatter_(-1, order[..., : self.k], 1)

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Slot after slot, each given the one before.

        For ``d >= d_(j-1)``: ``P(d_j = d | d_(j-1)) ~ exp(theta_(j+d)) * (ways to go on from there)``.
        """
        windows = self._windows(logits.detach().double())
        scores = windows + _log_prefixes(windows.flip(-1, -2)).flip(-1, -2)
        scores = scores + gumbel_noise(scores, generator)
        offsets = torch.arange(scores.shape[-1], device=scores.device)
        offset = torch.zeros_like(scores[..., 0, :1], dtype=torch.long)
        outcome = torch.zeros_like(logits)
        for slot in range(self.k):
            # Gumbel-max over the offsets that are still open.
            reachable = scores[..., slot, :].masked_fill(offsets < offset, -math.inf)
            offset = reachable.argmax(-1, keepdim=True)
            outcome.scatter_(-1, offset + slot, 1)
        return outcome

    def exact(self, logits: Tensor) -> Tensor:
        """``(..., k, n)``, slot marginals ``P(i_j = i)``."""
        paths = torch.softmax(self._log_paths(logits.double()), -1)
        # Row j of the band of offsets starts at candidate j.
        rows = (pad(paths[..., slot, :], (slot, self.k - 1 - slot)) for slot in range(self.k))
        return torch.stack([*rows], -2).to(logits.dtype)

    def hard(self, outcome: Tensor) -> Tensor:
        """``(..., k, n)``, one-hot rows: the j-th smallest chosen index."""
        ranks = torch.arange(1, self.k + 1, device=outcome.device).unsqueeze(-1)
        return outcome.unsqueeze(-2) * (outcome.long().cumsum(-1).unsqueeze(-2) == ranks)

    def soft(
        self, logits: Tensor, outcome: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """``(..., k, n)``, slot marginals (:meth:`exact`) at ``z / temperature``.

        ``z`` are the logits with noise that lifts the members of ``outcome`` above all others, see
        :func:`~nni_gumbel.relaxation.gumbel.perturbed_given_top`; the noise is held constant in
        derivatives. So the members have the k largest weights at every temperature. For k = 1 this is the
        Gumbel-softmax.

        A lift without noise (Fan et al., arXiv 2206.07235) has the same limits, but its derivative
        ``~ exp(-lift / temperature) / temperature`` dies out long before the temperature is at its end.
        """
        check_temperature(temperature)
        perturbed = perturbed_given_top(logits, outcome, self.k, generator)
        return self.exact(perturbed / temperature).to(logits.dtype)

    def _windows(self, theta: Tensor) -> Tensor:
        """``(..., k, n - k + 1)``: the logit of slot ``j`` at offset ``d``, ``theta_(j+d)``."""
        return theta.unfold(-1, self.size - self.k + 1, 1)

    def _log_paths(self, theta: Tensor) -> Tensor:
        """``(..., k, n - k + 1)``: log-weight of all subsets whose slot ``j`` is at offset ``d``."""
        windows = self._windows(theta)
        both = _log_prefixes(torch.stack((windows, windows.flip(-1, -2))))
        return both[0] + windows + both[1].flip(-1, -2)


def _log_prefixes(windows: Tensor) -> Tensor:
    """``(..., k, m)``: log-weight of all ways to fill the slots before ``j`` up to offset ``d``.

    ``F_0 = 0``, ``F_(j+1)[d] = logsumexp_{d' <= d} (F_j[d'] + theta_(j+d'))``.
    """
    width = windows.shape[-1]
    later = torch.ones(width, width, dtype=torch.bool, device=windows.device).triu(1)
    rows = [torch.zeros_like(windows[..., 0, :])]
    for slot in range(windows.shape[-2] - 1):
        step = rows[-1] + windows[..., slot, :]
        rows.append(torch.logsumexp(step.unsqueeze(-2).masked_fill(later, -math.inf), -1))
    return torch.stack(rows, -2)

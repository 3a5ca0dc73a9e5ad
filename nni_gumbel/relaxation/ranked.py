"""The outcomes of a law in the order of their probability, found one by one.

For every law of :mod:`nni_gumbel.relaxation.law` that order is the one of ``theta . s``. The number of
subsets is exponential, so they are not listed and sorted: each is reached from a more probable one by
the least change, and the most probable of those reached is next.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from torch import Tensor

from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.law import Law
from nni_gumbel.relaxation.subset import KSubset


def ranked_outcomes(law: Law, logits: Tensor) -> Iterator[tuple[int, ...]]:
    """The indices that are 1 in each outcome, ascending; the most probable outcome first.

    Args:
        law: one of the three.
        logits: ``(n,)``, float.

    Yields:
        Every outcome once. ``m`` of them take ``O(m n)`` memory.

    Example:
        >>> import torch
        >>> list(ranked_outcomes(KSubset(3, 2), torch.tensor([0.0, 2.0, 1.0])))
        [(1, 2), (0, 1), (0, 2)]
    """
    theta = logits.detach().double().tolist()
    by_probability = sorted(range(len(theta)), key=lambda i: -theta[i])
    if isinstance(law, Categorical):
        return ((i,) for i in by_probability)
    if isinstance(law, KSubset):
        return _subsets_of_size(theta, by_probability, law.k)
    if isinstance(law, OpenSubset):
        return _subsets(theta, law.least)
    raise TypeError(f"{type(law).__name__} is no law that is known here")


def _subsets_of_size(theta: list[float], by_probability: list[int], k: int) -> Iterator[tuple[int, ...]]:
    """Move one member at a time to the next less probable candidate."""
    first = tuple(range(k))  # positions in by_probability
    seen = {first}
    heap = [(0.0, first)]
    while heap:
        _, places = heapq.heappop(heap)
        yield tuple(sorted(by_probability[place] for place in places))
        for j, place in enumerate(places):
            moved = (*places[:j], place + 1, *places[j + 1 :])
            free = place + 1 < len(theta) and place + 1 not in places
            if free and moved not in seen:
                seen.add(moved)
                heapq.heappush(heap, (-math.fsum(theta[by_probability[p]] for p in moved), moved))


def _subsets(theta: list[float], least: int) -> Iterator[tuple[int, ...]]:
    """Gates flipped from their more probable state, in the order of what the flips cost together."""
    open_gates = {i for i, logit in enumerate(theta) if logit > 0}
    by_cost = sorted(range(len(theta)), key=lambda i: abs(theta[i]))

    def cost(flips: tuple[int, ...]) -> float:
        return math.fsum(abs(theta[by_cost[place]]) for place in flips)

    heap: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while heap:
        _, flips = heapq.heappop(heap)
        outcome = open_gates.symmetric_difference(by_cost[place] for place in flips)
        if len(outcome) >= least:
            yield tuple(sorted(outcome))
        following = flips[-1] + 1 if flips else 0
        if following < len(theta):
            grown = (*flips, following)
            heapq.heappush(heap, (cost(grown), grown))
            if flips:
                moved = (*flips[:-1], following)
                heapq.heappush(heap, (cost(moved), moved))

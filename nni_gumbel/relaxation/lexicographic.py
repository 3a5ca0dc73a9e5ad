"""The place of a set among all sets of its size, and the set at a place, without listing them.

Sets of ``k`` of the numbers below ``n`` are ascending tuples ``c_0 < ... < c_(k-1)`` in the order in which
``itertools.combinations`` gives them. After a set come those that agree with it in some first entries and are larger in
the next one, so its place is ``C(n, k) - 1 - sum_j C(n - 1 - c_j, k - j)``.

Source: Lehmer, The machine tools of combinatorics (1964), the combinatorial number system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def place_of(members: Sequence[int], size: int) -> int:
    """The place of a set, from 0.

    Args:
        members: ascending, in ``[0, size)`` (not checked).
        size: how many numbers there are to choose from.
    """
    k = len(members)
    after = sum(math.comb(size - 1 - member, k - j) for j, member in enumerate(members))
    return math.comb(size, k) - 1 - after


def set_at(place: int, size: int, k: int) -> tuple[int, ...]:
    """The set of ``k`` of ``size`` numbers at a place, the inverse of :func:`place_of`.

    Args:
        place: in ``[0, C(size, k))`` (not checked).
        size: how many numbers there are to choose from.
        k: how many are chosen.
    """
    members, candidate = [], 0
    while len(members) < k:
        with_candidate = math.comb(size - 1 - candidate, k - len(members) - 1)
        if place < with_candidate:
            members.append(candidate)
        else:
            place -= with_candidate
        candidate += 1
    return tuple(members)

"""How many networks a space has, each counted once.

Two samples that differ only in labels that their network does not use are one network. Parts of a space that share no
label multiply; what follows the values of a label adds up. Labels that several parts share are fixed one value after
the other, which is the only thing that takes time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.supernet.architecture import Part, parts_of
from nni_gumbel.supernet.distribution import Distribution

# Partial networks that are looked at.
_MOST_STEPS = 20_000


def number_of_samples(distribution: Distribution) -> int:
    """The number of NNI samples that name every label."""
    return math.prod(law.outcomes for law in distribution.laws.values())


def number_of_networks(space: ModelSpace, distribution: Distribution) -> int | None:
    """The number of distinct networks of a space, exactly.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: of that space; its logits do not matter.

    Returns:
        The number; ``None`` where so many labels are shared that counting would take long.
    """
    try:
        return _Count(distribution).of(parts_of(space), {})
    except _TakesLong:
        return None


class _TakesLong(Exception):
    """More than ``_MOST_STEPS``."""


class _Count:
    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._labels: dict[Part, frozenset[str]] = {}
        self._steps = 0

    def of(self, parts: Iterable[Part], fixed: Mapping[str, Any]) -> int:
        """Ways to decide what these parts use, some of it being fixed already."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _TakesLong
        return math.prod(self._of_group(group, fixed) for group in self._independent(parts, fixed))

    def _of_group(self, group: list[Part], fixed: Mapping[str, Any]) -> int:
        # What everything else depends on first.
        part, *rest = sorted(group, key=lambda part: not part.branches)
        label = next((label for label in part.labels if label not in fixed), None)
        if label is None:
            following = part.branches[tuple(fixed[x] for x in part.labels)] if part.branches else ()
            return self.of([*following, *rest], fixed)
        if not any(one.branches for one in group):
            labels = {label for one in group for label in one.labels if label not in fixed}
            return math.prod(self._distribution.laws[label].outcomes for label in labels)
        values = self._distribution.variables[label].values
        return sum(self.of(group, {**fixed, label: value}) for value in values)

    def _independent(self, parts: Iterable[Part], fixed: Mapping[str, Any]) -> list[list[Part]]:
        """Parts in groups that have no open label in common, not even inside."""
        groups: list[tuple[set[str], list[Part]]] = []
        for part in parts:
            labels, members = {label for label in self._inside(part) if label not in fixed}, [part]
            apart = []
            for others in groups:
                if labels & others[0]:
                    labels |= others[0]
                    members = others[1] + members
                else:
                    apart.append(others)
            groups = [*apart, (labels, members)]
        return [members for _, members in groups]

    def _inside(self, part: Part) -> frozenset[str]:
        if part not in self._labels:
            inside = (self._inside(one) for following in part.branches.values() for one in following)
            self._labels[part] = frozenset(part.labels).union(*inside)
        return self._labels[part]

"""The networks of a space in the order of their probability.

A network's probability is that of the labels it uses: the product of the probabilities of their
outcomes, all others summed over. The networks are found by a best-first search that decides one label
after another, always in the partial network that can still become the most probable one. What an
undecided part can contribute at most is exact where no label is shared by modules of different
branches, so that only what leads to a network is looked at; elsewhere it is an upper bound, and the
order is as right.

Source: Hart, Nilsson, Raphael, A formal basis for the heuristic determination of minimum cost paths,
IEEE Transactions on Systems Science and Cybernetics 4 (1968).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from nni.mutable import CategoricalMultiple
from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.relaxation.ranked import ranked_outcomes
from nni_gumbel.supernet.architecture import Part, parts_of
from nni_gumbel.supernet.distribution import Distribution

# Log-probabilities are added up as whole multiples of this: sums are then the same in any order, and
# networks of equal probability, of which there are millions before a search, are seen to be equal.
_UNIT = 2.0**-40


def most_probable(space: ModelSpace, distribution: Distribution) -> Iterator[tuple[dict[str, Any], float]]:
    """All distinct networks of a space, the most probable first, found one by one.

    Two samples that differ only in labels that the network does not use are one network.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: its logits, as they are when the first network is asked for.

    Yields:
        The NNI sample, labels that the network uses only, in the order of the space; and the logarithm of
        its probability. Networks whose log-probabilities differ by less than 1e-10 come in any order.

    Example:
        >>> space = MySpace()
        >>> networks = most_probable(space, Distribution(space))
        >>> sample, log_probability = next(networks)
    """
    order = list(space.simplify())
    search = _Search(parts_of(space), {label: _Outcomes(distribution, label) for label in order})
    for chosen in search.networks():
        outcomes = {label: search.outcomes[label] for label in order if label in chosen}
        sample = {label: outcomes[label].value(chosen[label]) for label in outcomes}
        yield sample, math.fsum(outcomes[label].log_prob(chosen[label]) for label in outcomes)


class _Outcomes:
    """The outcomes of one label, addressed by their rank: 0 is the most probable one."""

    def __init__(self, distribution: Distribution, label: str) -> None:
        law, self._variable = distribution.laws[label], distribution.variables[label]
        logits = distribution.logits[label].detach().double()
        self._theta: list[float] = logits.tolist()
        self._log_partition = float(law.log_partition(logits))
        self._following = ranked_outcomes(law, logits)
        self._ranked: list[tuple[int, ...]] = []
        self._scores: list[int] = []

    def exists(self, rank: int) -> bool:
        while len(self._ranked) <= rank:
            outcome = next(self._following, None)
            if outcome is None:
                return False
            self._ranked.append(outcome)
            self._scores.append(round(self.log_prob(len(self._ranked) - 1) / _UNIT))
        return True

    def score(self, rank: int) -> int:
        """The log-probability in whole units."""
        return self._scores[rank] if self.exists(rank) else 0

    def log_prob(self, rank: int) -> float:
        return math.fsum(self._theta[i] for i in self._ranked[rank]) - self._log_partition

    def value(self, rank: int) -> Any:
        """What an NNI sample says for it."""
        chosen = [self._variable.values[i] for i in self._ranked[rank]]
        return chosen if isinstance(self._variable, CategoricalMultiple) else chosen[0]

    def ranks(self) -> dict[Any, int]:
        """The rank of every value; for labels with few outcomes."""
        ranks = itertools.takewhile(self.exists, itertools.count())
        return {self.value(rank): rank for rank in ranks}


class _Search:
    """Best-first search over partial networks: labels that are decided, each to the rank of an outcome."""

    def __init__(self, parts: tuple[Part, ...], outcomes: dict[str, _Outcomes]) -> None:
        self.parts, self.outcomes = parts, outcomes
        self._owners = _owners(parts)
        # Labels on which it depends what else a network has. These have few outcomes.
        self._ranks: dict[str, dict[Any, int]] = {}
        for part in _all_parts(parts):
            if part.branches:
                self._ranks.update({label: outcomes[label].ranks() for label in part.labels})

    def networks(self) -> Iterator[Mapping[str, int]]:
        """Complete networks, label -> rank for each label that is used, the most probable first."""
        number = itertools.count()
        heap: list[tuple[int, int, int, dict[str, int], str | None]] = []

        def push(chosen: dict[str, int], last: str | None) -> None:
            # Of equal ones the furthest decided comes first, so that one of them is complete at once.
            heapq.heappush(heap, (-self._most(chosen), -len(chosen), next(number), chosen, last))

        push({}, None)
        while heap:
            *_, chosen, last = heapq.heappop(heap)
            if last is not None and last not in self._ranks and self.outcomes[last].exists(chosen[last] + 1):
                # What follows does not depend on this label: its next outcome cannot have been better.
                push({**chosen, last: chosen[last] + 1}, last)
            label = self._undecided(self.parts, chosen)
            if label is None:
                yield chosen
            else:
                for rank in range(len(self._ranks.get(label, [0]))):
                    push({**chosen, label: rank}, label)

    def _most(self, chosen: Mapping[str, int]) -> int:
        decided = sum(self.outcomes[label].score(rank) for label, rank in chosen.items())
        return decided + self._bound(self.parts, chosen)

    def _bound(self, parts: tuple[Part, ...], chosen: Mapping[str, int]) -> int:
        """At most this is added by the labels of ``parts`` that are not decided yet."""
        total = 0
        for part in parts:
            own = [label for label in part.labels if label not in chosen and self._owners[label] is part]
            if not part.branches:
                total += sum(self.outcomes[label].score(0) for label in own)
                continue
            if all(label in chosen for label in part.labels):
                total += self._bound(part.branches[self._values(part, chosen)], chosen)
                continue
            total += max(
                sum(self.outcomes[label].score(ranks[label]) for label in own)
                + self._bound(following, chosen)
                for ranks, following in self._open_branches(part, chosen)
            )
        return total

    def _open_branches(
        self, part: Part, chosen: Mapping[str, int]
    ) -> Iterator[tuple[dict[str, int], tuple[Part, ...]]]:
        for values, following in part.branches.items():
            ranks = {label: self._ranks[label][value] for label, value in zip(part.labels, values)}
            if all(chosen.get(label, rank) == rank for label, rank in ranks.items()):
                yield ranks, following

    def _undecided(self, parts: tuple[Part, ...], chosen: Mapping[str, int]) -> str | None:
        """The first label that a partial network uses for certain and that is not decided."""
        for part in parts:
            label = next((label for label in part.labels if label not in chosen), None)
            if label is None and part.branches:
                label = self._undecided(part.branches[self._values(part, chosen)], chosen)
            if label is not None:
                return label
        return None

    def _values(self, part: Part, chosen: Mapping[str, int]) -> tuple[Any, ...]:
        return tuple(self.outcomes[label].value(chosen[label]) for label in part.labels)


def _owners(parts: tuple[Part, ...]) -> dict[str, Part]:
    """The one part where the bound counts a label: the least conditional of those that have it."""
    owners: dict[str, Part] = {}
    for part in _all_parts(parts):
        for label in part.labels:
            owners.setdefault(label, part)
    return owners


def _all_parts(parts: tuple[Part, ...]) -> Iterator[Part]:
    """Every part once, those that depend on fewer others first."""
    level, seen = list(parts), set()
    while level:
        fresh = [part for part in dict.fromkeys(level) if part not in seen]
        seen.update(fresh)
        yield from fresh
        level = [one for part in fresh for following in part.branches.values() for one in following]

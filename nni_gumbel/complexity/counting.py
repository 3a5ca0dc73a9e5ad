"""How many networks a space has, each counted once.

Samples that differ only in labels that their network does not use are one network: counted is the one whose unused
labels have their first outcome. A label that is used where ``u`` is 1, and decides of nothing else, so makes
``1 + (n - 1) u`` networks of one; for the others the sum of the products of all these tables is taken label by label
(variable elimination).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import mul

import numpy as np
from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.table import ONE, Table, TooManyCombinations, elementwise_maximum, where
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import Place, structure_of


def number_of_samples(distribution: Distribution) -> int:
    """The number of NNI samples that name every label."""
    return math.prod(law.outcomes for law in distribution.laws.values())


def number_of_networks(space: ModelSpace, distribution: Distribution) -> int | None:
    """The number of distinct networks of a space, exactly.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: of that space; its logits do not matter.

    Returns:
        The number; ``None`` where more than a million combinations of shared labels have to be told apart.
    """
    structure = structure_of(space)
    sizes = {label: law.outcomes for label, law in distribution.laws.items()}
    deciding = {x for place in structure.all() for condition, _ in place.inner for x in condition.labels}
    ways: dict[str, list[Table]] = {}
    try:
        for label, presence in _ways(structure, ONE):
            ways.setdefault(label, []).append(presence)
        factors = []
        for label, tables in ways.items():
            # Python's whole numbers: there may be more networks than 64 bits count.
            used = elementwise_maximum(tables).map(lambda values: values.astype(object))
            if label in deciding:
                first = Table.of((label,), np.int64(np.arange(sizes[label]) == 0))
                factors.append(elementwise_maximum([used, first]))
            else:
                factors.append(used * (sizes[label] - 1) + ONE)
        while deciding:
            label = min(sorted(deciding), key=partial(_combinations, factors))
            deciding.remove(label)
            concerned = [factor for factor in factors if label in factor.labels]
            rest = [factor for factor in factors if label not in factor.labels]
            factors = [*rest, reduce(mul, concerned, ONE).summed_over(label, sizes[label])]
    except TooManyCombinations:
        return None
    return math.prod(int(factor.values) for factor in factors)


def _ways(place: Place, presence: Table) -> Iterator[tuple[str, Table]]:
    """The labels of a place and those inside, each with 1 in the networks that have the part and 0 in the others."""
    yield from ((label, presence) for label in place.labels)
    for condition, inner in place.inner:
        yield from _ways(inner, presence * where(condition))


def _combinations(factors: Sequence[Table], label: str) -> int:
    """Of the classes of what meets where a label is summed over."""
    classes = {x: of_x for one in factors if label in one.labels for x, of_x in zip(one.labels, one.classes)}
    return math.prod(int(of_x.max()) + 1 for of_x in classes.values())

"""Random networks of a given size: what a search has to beat.

A sample is drawn uniformly, each label's outcome like any other, until its cost is close enough to what was asked for:
rejection, exact in distribution. Costs are sums of tables, so that a hundred thousand samples are priced at once.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import used_part

# After so many samples none is likely to be close enough: a part of 1e-6 of a space is missed once in seven times.
DRAWS = 2_000_000
_BATCH = 100_000

_log = logging.getLogger(__name__)


def random_network(
    space: ModelSpace,
    distribution: Distribution,
    cost: ExpectedSum,
    size: float,
    tolerance: float,
    seed: int,
) -> dict[str, Any]:
    """A network drawn uniformly from the samples of a space whose cost is close to a size.

    Uniform are the samples, as in NNI's ``Random`` strategy: the outcomes of each label, used or not. Networks that
    more samples stand for are drawn more often.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: of that space; its logits do not matter.
        cost: of every network.
        size: of the network, in the unit of the cost, > 0.
        tolerance: the cost is in ``[(1 - tolerance) size, (1 + tolerance) size]``.
        seed: the same seed draws the same network, another one an independent one.

    Returns:
        The NNI sample, labels that the network uses only; of :data:`DRAWS` samples none of which is close enough the
        closest, with a warning.
    """
    random = np.random.default_rng(seed)
    nearest: dict[str, int] = {}
    distance, drawn, batch = np.inf, 0, 1_000
    while distance > tolerance * size and drawn < DRAWS:
        # The first batch is small: most sizes that are asked for are not rare.
        number, batch = min(batch, DRAWS - drawn), _BATCH
        outcomes = {
            label: random.integers(distribution.laws[label].outcomes, size=number) for label in cost.labels
        }
        distances = np.abs(np.broadcast_to(cost.at(outcomes), number) - size)
        within = np.flatnonzero(distances <= tolerance * size)
        best = within[0] if len(within) else distances.argmin()
        if distances[best] < distance:
            nearest = {label: int(indices[best]) for label, indices in outcomes.items()}
            distance = float(distances[best])
        drawn += number
    if distance > tolerance * size:
        found = cost.at(nearest)
        _log.warning(
            f"random network: none of {drawn:,} samples costs {size:,.6g} within {100 * tolerance:.3g} %; the nearest "
            f"one is taken, which costs {found:,.6g} ({100 * (found / size - 1):+.3g} %)"
        )
    # What the cost does not depend on is as likely as ever.
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    sample = {
        label: distribution.value_of(label, next(itertools.islice(law.sets(), nearest[label], None)))
        if label in nearest
        else distribution.value(label, law.draw(torch.zeros(law.size), generator))
        for label, law in distribution.laws.items()
    }
    return used_part(space, sample)

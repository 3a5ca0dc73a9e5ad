"""The network that a search returns, chosen within its budgets.

It is the most probable one of those that are within all budgets. Where a budget is there to be spent, also of
those that spend it: the distribution's expected cost is at the budget, but its most probable network may be far below,
because a choice that is torn between a dear and a cheap candidate falls to the cheap one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.budget import Limit, best_within, ranked_within
from nni_gumbel.complexity.cost import cost_of
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.supernet.distribution import Distribution

# A budget is spent if so much of it is used.
SPENT = 0.85
# A search has decided if what it chose has at least this mean probability.
DECIDED = 0.95

_logger = logging.getLogger(__name__)


def best_spending(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> dict[str, Any]:
    """The most probable network within all limits that spends one of them.

    A limit is spent if the network uses 85 % of it. Where none can be spent, the network is one that no other
    candidate of any single choice makes dearer and keeps within: found from the most probable one within the
    limits by asking for more of the limit that it uses most.

    Args:
        space: the supernet.
        distribution: of its networks.
        limits: at least one.

    Returns:
        The NNI sample, labels that the network uses only.
    """
    found = [
        next(_at_least(space, distribution, limits, limit, SPENT * limit.maximum), None) for limit in limits
    ]
    spending = [one for one in found if one is not None]
    if spending:
        return max(spending, key=lambda one: one[1])[0]
    sample = best_within(space, distribution, limits)
    while True:
        fullest = max(limits, key=lambda limit: cost_of(distribution, limit.cost, sample) / limit.maximum)
        now = cost_of(distribution, fullest.cost, sample)
        following = next(_at_least(space, distribution, limits, fullest, now * (1 + 1e-9) + 1e-9), None)
        if following is None:
            return sample
        sample = following[0]


def warn_if_undecided(chosen_probability: float) -> None:
    """Say that a search ends before its structure is decided: the network found is then one of several."""
    if chosen_probability < DECIDED:
        _logger.warning(
            "the search ends undecided: what it chose has a mean probability of %.2f; "
            "raise search_epochs (or max_epochs), entropy_weight_end or arc_learning_rate", chosen_probability,
        )  # fmt: skip


def ranked_from_best(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit], best: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A network, then all others within the limits, the most probable first."""
    yield dict(best)
    for sample, _ in ranked_within(space, distribution, limits):
        if sample != best:
            yield sample


def _at_least(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit], limit: Limit, least: float
) -> Iterator[tuple[dict[str, Any], float]]:
    """The networks within all limits that cost at least so much of one: most its negative cost."""
    tables = (-table for table in limit.cost.tables)
    return ranked_within(space, distribution, [*limits, Limit(limit.field, ExpectedSum(tables), -least)])

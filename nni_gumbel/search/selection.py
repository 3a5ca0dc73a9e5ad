"""The network that a search returns, chosen within its budgets.

It is the most probable network within all budgets; where a budget is to be spent, the most probable network that
also spends it. The two differ where a choice is torn between a dear and a cheap candidate:

    P(conv: 900 parameters) = 0.49, P(skip: 0 parameters) = 0.51, three such layers, budget 1,400
    the expected number is 1,323 parameters, and the most probable network has 0
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.budget import Limit, best_within, ranked_within
from nni_gumbel.complexity.table import ExpectedSum, cost_of
from nni_gumbel.supernet.distribution import Distribution

# A budget is spent if so much of it is used.
SPENT = 0.85
# A search has decided if what it chose has at least this mean probability.
DECIDED = 0.95

_logger = logging.getLogger(__name__)


def best_spending(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> dict[str, Any]:
    """The most probable network within all limits that spends one of them.

    A network spends a limit if it uses at least 85 % of it. If no network within the limits does, a network is returned
    that no other network within the limits dominates, where "dominates" means: it costs more of one limit, and no less
    of the limits that are used more. It is found from the most probable network within the limits, by asking for a
    larger cost of the limit that is used most, then of the next limit, until no such network exists.

    Args:
        space: the supernet.
        distribution: of its networks.
        limits: at least one.

    Returns:
        The NNI sample, labels that the network uses only.
    """
    found = [
        next(_at_least(space, distribution, limits, {limit: SPENT * limit.maximum}), None) for limit in limits
    ]
    spending = [one for one in found if one is not None]
    if spending:
        return max(spending, key=lambda one: one[1])[0]
    sample = best_within(space, distribution, limits)
    while (larger := _larger(space, distribution, limits, sample)) is not None:
        sample = larger
    return sample


def warn_if_undecided(chosen_probability: float) -> None:
    """Say that a search ends before its structure is decided: the network found is then one of several."""
    if chosen_probability < DECIDED:
        _logger.warning(
            "the search ends undecided: what it chose has a mean probability of %.2f; "
            "raise search_epochs (or max_epochs), entropy_weight_end or arc_learning_rate", chosen_probability,
        )  # fmt: skip


def ranked_from(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit], first: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Some networks in their order, then all others within the limits, the most probable first."""
    yield from map(dict, first)
    for sample, _ in ranked_within(space, distribution, limits):
        if sample not in first:
            yield sample


def _larger(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit], sample: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A network within the limits that dominates a sample; see :func:`best_spending`."""
    costs = {limit: cost_of(distribution, limit.cost, sample) for limit in limits}
    least: dict[Limit, float] = {}
    # The shares used, in falling order, rise lexicographically with every call: so the calls come to an end.
    for limit in sorted(limits, key=lambda limit: costs[limit] / limit.maximum, reverse=True):
        now = costs[limit]
        found = next(_at_least(space, distribution, limits, least | {limit: now + 1e-9 * (1 + now)}), None)
        if found is not None:
            return found[0]
        least[limit] = now - 1e-9 * (1 + now)
    return None


def _at_least(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit], least: Mapping[Limit, float]
) -> Iterator[tuple[dict[str, Any], float]]:
    """The networks within all limits that cost at least ``least`` of some: an upper limit of the negative cost."""
    lower = (
        Limit(limit.field, ExpectedSum(-table for table in limit.cost.tables), -amount)
        for limit, amount in least.items()
    )
    return ranked_within(space, distribution, [*limits, *lower])

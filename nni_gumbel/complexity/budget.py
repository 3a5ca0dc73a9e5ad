"""Networks in the order of their probability, and budgets that hold.

A network's probability is that of the labels it uses, all others summed over. The most probable one, among those that
cost no more than they may, is the solution of an integer programme (:mod:`nni_gumbel.complexity.programme`); the next
one is that of the programme without it. The cost of what is returned was added up outside the programme, without
tolerances: no network exceeds a limit, not by one parameter.

The programme is exact unless a cost has a table with more cells than it takes. Then it knows a lower bound of that
cost: it misses no network within the budget, and a solution that is not within is left out, with all others of the
same cost, until a network is within or ``MOST_SECONDS`` are over, and a warning says so.

In every function ``space`` is the space of ``distribution``, mutated to a supernet or not; the logits are taken as they
are now. A network is returned as an NNI sample of the labels that it uses, in the order of the space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.programme import Linear, Network, Programme, largest_coefficient
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution

# How long one network may be looked for; a space of the size of NNI's largest takes 8 s.
MOST_SECONDS = 60.0

_UNITS = {"max_params": " parameters", "max_flops": " FLOPs", "max_latency_ms": " ms"}


@dataclass(frozen=True)
class Limit:
    """What a network may cost at most.

    Args:
        field: the setting it comes from, ``max_params``, ``max_flops`` or ``max_latency_ms``.
        cost: the cost of every network.
        maximum: in the unit of the cost.
    """

    field: str
    cost: ExpectedSum
    maximum: float


def best_within(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> dict[str, Any]:
    """The most probable network within all limits; without limits, the most probable one.

    ``max_z sum_(labels that z uses) log q(z_label)`` subject to ``cost(z) <= maximum`` for each limit; exact, and
    the same at every call.

    Raises:
        UsageError: no network is within the limits, or none was found where a cost depends on too many choices at
            once.
    """
    for sample, _ in ranked_within(space, distribution, limits):
        return sample
    check_feasible(space, distribution, limits)
    raise UsageError(_none_found(limits))


def ranked_within(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]
) -> Iterator[tuple[dict[str, Any], float]]:
    """All distinct networks within all limits with their log-probabilities, the most probable first, found one by one.

    Two samples that differ only in labels that the network does not use are one network. Networks whose
    log-probabilities differ by less than about 1e-8 come in any order.

    Example:
        >>> space = MySpace()
        >>> networks = ranked_within(space, Distribution(space), [])
        >>> sample, log_probability = next(networks)
    """
    programme = Programme(space, distribution, [limit.cost for limit in limits])
    maxima = [limit.maximum for limit in limits]
    for network, _, _ in _solutions(programme, programme.negative_log_prob, maxima):
        yield programme.sample(network), programme.log_prob(network)


def smallest(
    space: ModelSpace, distribution: Distribution, cost: ExpectedSum
) -> tuple[float, dict[str, Any]]:
    """The lowest cost of all networks of a space, and a network that has it.

    Exact, unless a table of the cost is larger than the programme takes and the time was not enough: then it is the
    lowest cost that was found, an upper bound of the lowest one, and a warning says so.

    Raises:
        UsageError: no network was found in time.
    """
    programme = Programme(space, distribution, [cost])
    network, lowest, _ = _cheapest(programme, 0, [math.inf])
    if network is None:
        raise UsageError(_none_found())
    return lowest, programme.sample(network)


def largest(space: ModelSpace, distribution: Distribution, cost: ExpectedSum) -> tuple[float, dict[str, Any]]:
    """The highest cost of all networks of a space, and a network that has it; see :func:`smallest`."""
    negated = ExpectedSum(-table for table in cost.tables)
    lowest, sample = smallest(space, distribution, negated)
    return -lowest, sample


def check_feasible(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> None:
    """Refuse limits that no network of a space is within.

    What is refused is impossible in any case. Where a table of a cost is larger than the programme takes, limits that
    nothing is within may pass, and the number in the error may be below what is possible.

    Raises:
        UsageError: names a limit and the smallest cost that is possible; where each limit could be met alone, the
            smallest within the others.
    """
    programme = Programme(space, distribution, [limit.cost for limit in limits])
    alone = [(place, ()) for place in range(len(limits))]
    together = [(place, limits[:place]) for place in range(1, len(limits))]
    for place, others in [*alone, *together]:
        limit = limits[place]
        maxima = [one.maximum if one in others else math.inf for one in limits]
        _, _, least = _cheapest(programme, place, maxima)
        if least <= limit.maximum:
            continue
        told = f"has {_number(least)}{_UNITS.get(limit.field, '')}; give at least {_number(least)}"
        if not others:
            raise UsageError(
                f"{limit.field}: {limit.maximum:.15g} is below the smallest network of the space, which {told}"
            )
        given = " and ".join(f"{other.field}: {other.maximum:.15g}" for other in others)
        raise UsageError(
            f"{limit.field}: {limit.maximum:.15g} is met by no network within {given}, where the smallest "
            f"{told} or raise {others[-1].field}"
        )


def _cheapest(
    programme: Programme, place: int, maxima: Sequence[float]
) -> tuple[Network | None, float, float]:
    """The network within limits, some of which may be infinite, of which one of the costs is least.

    With it this cost, and what no network costs less than: the same unless the time was over.
    """
    objective, end = programme.costs[place], time.monotonic() + MOST_SECONDS
    tolerance = 1e-9 * largest_coefficient(objective)
    best, lowest, bound = None, math.inf, -math.inf
    for network, prices, bound in _solutions(programme, objective, maxima, one_of_a_price=True):
        if prices[place] < lowest:
            best, lowest = network, prices[place]
        if bound >= lowest - tolerance:
            return best, lowest, lowest
    return best, lowest, bound if time.monotonic() > end else lowest


def _solutions(
    programme: Programme, objective: Linear, maxima: Sequence[float], one_of_a_price: bool = False
) -> Iterator[tuple[Network, list[float], float]]:
    """Networks within limits in the order of an objective, each with its costs and a lower bound of the objective.

    All of them, or of those with equal costs a single one. The time starts anew after each network of all.
    """
    excluded, end = [], time.monotonic() + MOST_SECONDS
    while (found := programme.minimum(objective, maxima, excluded, end)) is not None:
        network, bound = found
        prices = programme.prices(network)
        is_within = all(price <= maximum for price, maximum in zip(prices, maxima))
        if is_within:
            yield network, prices, bound
        if is_within and not one_of_a_price:
            excluded.append(network)
            end = time.monotonic() + MOST_SECONDS
        else:
            excluded.append(programme.priced(network))


def _none_found(limits: Sequence[Limit] = ()) -> str:
    fields = " and ".join(limit.field for limit in limits) or "space"
    return (
        f"{fields}: the choices of the space depend on each other so that no network was found in {MOST_SECONDS:g} s; "
        "share fewer labels between its layers"
    )


def _number(value: float) -> str:
    """A number as one would write it in YAML, so that it can be given as a limit.

    A whole number with all digits, any other one with four, rounded up.
    """
    if value == int(value):
        return str(int(value))
    # Not of the value itself: 0.001 is to read 0.001, not a little more.
    return f"{Context(prec=4, rounding=ROUND_CEILING).create_decimal(str(value)).normalize():f}"

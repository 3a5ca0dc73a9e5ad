"""Networks in the order of their probability, and budgets that hold.

A network's probability is that of the labels it uses, all others summed over. The most probable one, among those that
cost no more than they may, is the solution of an integer programme (:mod:`nni_gumbel.complexity.programme`); the next
one is that of the programme without it. The cost of what is returned was added up outside the programme, without
tolerances: no network exceeds a limit, not by one parameter.

The programme is exact unless a cost has a table with more cells than it takes. Then it knows a lower bound of that
cost: it misses no network within the budget, and a solution that is not within is left out, with all others of the
same cost, and the search goes on. After ``MOST_SOLUTIONS`` of those in a row, or ``MOST_SECONDS``, it ends, and a
warning says so: if it had found none, the cheapest network that it can find is taken, still within the budget.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.programme import Linear, Network, Programme
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution

# How many solutions of the programme may exceed a budget in a row, and how long one network may be looked for. A space
# of the size of NNI's largest takes 8 s; where the time is over, what was found by then is taken, with a warning.
MOST_SOLUTIONS = 300
MOST_SECONDS = 60.0

_UNITS = {"max_params": " parameters", "max_flops": " FLOPs", "max_latency_ms": " ms"}

_log = logging.getLogger(__name__)


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

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: its logits, as they are now.
        limits: none, one or several.

    Returns:
        The NNI sample, labels that the network uses only, in the order of the space.

    Raises:
        UsageError: no network is within the limits, or none was found where a cost depends on too many choices at
            once.
    """
    for sample, _ in ranked_within(space, distribution, limits):
        return sample
    check_feasible(space, distribution, limits)
    if not limits:
        raise UsageError(_none_found())
    fields = " and ".join(limit.field for limit in limits)
    raise UsageError(
        f"{fields}: no network within was found, a cost depends on too many choices at once; raise it"
    )


def ranked_within(
    space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]
) -> Iterator[tuple[dict[str, Any], float]]:
    """All distinct networks within all limits, the most probable first, found one by one.

    Two samples that differ only in labels that the network does not use are one network.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: its logits, as they are when the first network is asked for.
        limits: none, one or several.

    Yields:
        The NNI sample, labels that the network uses only, in the order of the space, and the logarithm of its
        probability. Networks whose log-probabilities differ by less than about 1e-8 come in any order. Nothing if no
        network is within the limits.

    Example:
        >>> space = MySpace()
        >>> networks = ranked_within(space, Distribution(space), [])
        >>> sample, log_probability = next(networks)
    """
    maxima = [limit.maximum for limit in limits]
    programme = Programme(space, distribution, [limit.cost for limit in limits])
    excluded: list[Network] = []
    passed_over, found_one, end = 0, False, time.monotonic() + MOST_SECONDS
    while passed_over < MOST_SOLUTIONS and time.monotonic() < end:
        found = programme.minimum(
            programme.negative_log_prob, maxima, excluded, seconds=end - time.monotonic()
        )
        if found is None:
            return
        network = found.network
        if network is not None and programme.is_within(network, maxima):
            if not found.is_proven:
                _warn_once(
                    f"the most probable network was not proven in {MOST_SECONDS:g} s: one of them is taken"
                )
            excluded.append(network)
            yield programme.sample(network), programme.log_prob(network)
            passed_over, found_one, end = 0, True, time.monotonic() + MOST_SECONDS
        elif network is not None:
            excluded.append(programme.priced(network))
            passed_over += 1
    fields = " and ".join(limit.field for limit in limits) or "the space"
    _warn_once(f"{fields}: depends on too many choices at once to find the most probable network within it")
    if not found_one:
        network, _, _ = _cheapest(programme, [1 / maximum for maximum in maxima], maxima)
        if network is not None:
            yield programme.sample(network), programme.log_prob(network)


def smallest(
    space: ModelSpace, distribution: Distribution, cost: ExpectedSum
) -> tuple[float, dict[str, Any]]:
    """The lowest cost of all networks of a space, and a network that has it.

    Exact, unless a table of the cost is larger than the programme takes and ``MOST_SOLUTIONS`` solutions of it were not
    enough: then it is the lowest cost that was found, an upper bound of the lowest one, and a warning says so.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: of that space; its logits do not matter.
        cost: the cost of every network.

    Returns:
        The cost, and the NNI sample, labels that the network uses only.

    Raises:
        UsageError: no network was found in time.
    """
    programme = Programme(space, distribution, [cost])
    network, lowest, _ = _cheapest(programme, [1.0], [math.inf])
    if network is None:
        raise UsageError(_none_found())
    return lowest, programme.sample(network)


def largest(space: ModelSpace, distribution: Distribution, cost: ExpectedSum) -> tuple[float, dict[str, Any]]:
    """The highest cost of all networks of a space, and a network that has it.

    As exact as :func:`smallest` is; where that is not, it is a lower bound of the highest cost.
    """
    negated = ExpectedSum(-table for table in cost.tables)
    lowest, sample = smallest(space, distribution, negated)
    return -lowest, sample


def check_feasible(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> None:
    """Refuse limits that no network of a space is within.

    What is refused is impossible in any case. Where a table of a cost is larger than the programme takes, the cost is
    compared by a lower bound of the smallest one: the number in the error may then be below what is possible, and
    limits that nothing is within may pass.

    Raises:
        UsageError: names a limit and the smallest cost that is possible; where each limit could be met alone, the
            smallest within the others.
    """
    if not limits:
        return
    programme = Programme(space, distribution, [limit.cost for limit in limits])
    alone = [(limit, ()) for limit in limits]
    together = [(limit, limits[:place]) for place, limit in enumerate(limits) if place]
    for limit, others in [*alone, *together]:
        weights = [float(one is limit) for one in limits]
        maxima = [one.maximum if one in others else math.inf for one in limits]
        _, _, least = _cheapest(programme, weights, maxima)
        if least <= limit.maximum:
            continue
        told = f"has {_number(least)}{_UNITS.get(limit.field, '')}; give at least {_number(least)}"
        if not others:
            raise UsageError(
                f"{limit.field}: {_as_given(limit.maximum)} is below the smallest network of the space, which {told}"
            )
        given = " and ".join(f"{other.field}: {_as_given(other.maximum)}" for other in others)
        raise UsageError(
            f"{limit.field}: {_as_given(limit.maximum)} is met by no network within {given}, where the smallest "
            f"{told} or raise {others[-1].field}"
        )


def _cheapest(
    programme: Programme, weights: Sequence[float], maxima: Sequence[float]
) -> tuple[Network | None, float, float]:
    """The network of the least weighted sum of costs that is within limits, some of which may be infinite.

    With it what it costs, and what no network costs less than: the same unless a table is too large for the programme.
    """
    objective = Linear.sum_of(*zip(weights, programme.costs))
    tolerance = 1e-9 * objective.largest_coefficient
    best, lowest, bound = None, math.inf, -math.inf
    excluded: list[Network] = []
    end = time.monotonic() + MOST_SECONDS
    for _ in range(MOST_SOLUTIONS):
        found = programme.minimum(objective, maxima, excluded, seconds=end - time.monotonic())
        if found is None or found.bound > lowest - tolerance:
            return best, lowest, lowest
        network, bound = found.network, found.bound
        if network is None:
            break
        cost = math.fsum(weight * cost for weight, cost in zip(weights, programme.prices(network)))
        if cost < lowest and programme.is_within(network, maxima):
            best, lowest = network, cost
            if cost <= bound + tolerance:
                return best, lowest, lowest
        if time.monotonic() > end:
            break
        excluded.append(programme.priced(network))
    _warn_once("a cost depends on too many choices at once: its smallest value is known to a bound only")
    return best, lowest, bound


@functools.cache
def _warn_once(message: str) -> None:
    """A search asks again and again, and gets the same answer."""
    _log.warning(message)


def _none_found() -> str:
    return (
        f"space: its choices depend on each other so that no network was found in {MOST_SECONDS:g} s; "
        "share fewer labels between its layers"
    )


def _as_given(limit: float) -> str:
    """A limit with all of its digits."""
    return str(int(limit)) if math.isfinite(limit) and limit == int(limit) else str(limit)


def _number(value: float) -> str:
    """A number as one would write it in YAML, so that it can be given as a limit.

    A whole number with all digits, any other one with four, rounded up.
    """
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if value == int(value):
        return str(int(value))
    exact = Decimal(str(value))  # not Decimal(value): 0.001 is to read 0.001, not a little more
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), ROUND_CEILING)
    return f"{rounded.normalize():f}"

"""The costs of the networks of an experiment, around the searches that price them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni.nas.nn.pytorch import ModelSpace

from nni_gumbel.complexity.cost import cost_of
from nni_gumbel.names import import_named, split_name
from nni_gumbel.pipeline.command import COST_FIELD, TrialCommand
from nni_gumbel.results.example import Example
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.objective import build_prior
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.distribution import Distribution


def own_cost(command: TrialCommand) -> Callable[..., Any] | None:
    """The function that the trial command names as the cost; ``None`` if it names none.

    Raises:
        UsageError: there is no such function.
    """
    if command.cost is None:
        return None
    return import_named(COST_FIELD, *split_name(COST_FIELD, command.cost))


def prices_latency(settings: SearchSettings) -> bool:
    """Whether a search needs to know how long networks take."""
    return settings.cost == "latency" or settings.max_latency_ms is not None


def budget_use(costs: SearchCosts, distribution: Distribution, sample: Mapping[str, Any]) -> dict[str, float]:
    """``<budget>_used`` for each budget of a search: the part of it that a network uses, at most 1."""
    return {
        f"{limit.field}_used": cost_of(distribution, limit.cost, sample) / limit.maximum
        for limit in costs.limits
    }


def check_costs(
    space: ModelSpace,
    distribution: Distribution,
    searches: Sequence[SearchSettings],
    own: Callable[..., Any] | None,
    example: Example | None,
) -> None:
    """Refuse budgets that no network can meet, costs that cannot be found, and priors that do not fit.

    Nothing is measured: what depends on a latency is left to the first search.

    Args:
        space: the supernet of a space; left as it is.
        distribution: of its networks.
        searches: the settings of each search.
        own: a person's cost.
        example: a batch of inputs; ``None`` leaves out what needs one, multiply-adds.

    Raises:
        UsageError: names the budget and the smallest cost that is possible, or what is wrong with the prior.
    """
    seen = set()
    for settings in searches:
        cost = "params" if settings.cost == "latency" else settings.cost
        values = {**vars(settings), "max_latency_ms": None, "cost": cost}
        key = (settings.max_params, settings.max_flops, cost, settings.prior)
        if key not in seen:
            seen.add(key)
            costs = SearchCosts(space, distribution, SearchSettings(**values), own)
            if example is not None:
                costs.complete(example.args, example.kwargs)
            if costs.is_complete or settings.prior != "cost":
                build_prior(settings.prior, distribution, costs)

"""What networks cost in a search: what is reported, what is priced, and what is limited.

Parameters are known from the space alone. Multiply-adds and latency need an example of what the network takes: they
are known as soon as the search has seen its first batch (:meth:`SearchCosts.complete`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor

from nni_gumbel.complexity.budget import Limit, check_feasible, largest
from nni_gumbel.complexity.flops import expected_flops
from nni_gumbel.complexity.latency import LatencyTable, expected_latency
from nni_gumbel.complexity.own_cost import OwnCost
from nni_gumbel.complexity.params import expected_parameters
from nni_gumbel.complexity.table import ExpectedSum, Table, cost_of
from nni_gumbel.results.example import Example
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.distribution import Distribution

# Which cost each budget limits, by the words of the setting `cost`.
LIMITED = {"max_params": "params", "max_flops": "flops", "max_latency_ms": "latency"}
# The word of a cost of one's own.
OWN = "cost"
_OF_EXAMPLE = ("flops", "latency")

_logger = logging.getLogger(__name__)


class SearchCosts:
    """The costs of the networks of a space, by word; the one owner of them during a search.

    Args:
        space: the supernet.
        distribution: of its networks.
        settings: say what is priced and what is limited.
        own: a person's cost, priced in the place of the setting `cost`.
        latency_table: times of candidates; without one they are measured when they are needed.

    Attributes:
        by_word: the costs that are known; `params` always is.
        latency_table: the one given, and what was measured beside it.
        priced: the word of the cost that `cost_weight` weighs.

    Raises:
        UsageError: no network has as few parameters as it may, or the function is no cost.
    """

    def __init__(
        self,
        space: ModelSpace,
        distribution: Distribution,
        settings: SearchSettings,
        own: Callable[..., Any] | None = None,
        latency_table: LatencyTable | None = None,
    ) -> None:
        self._space, self._distribution, self.latency_table = space, distribution, latency_table
        self._maxima = {field: getattr(settings, field) for field in LIMITED}
        self.by_word: dict[str, ExpectedSum | OwnCost] = {"params": expected_parameters(space)}
        self.priced = settings.cost if own is None else OWN
        if own is not None:
            self.by_word[OWN] = OwnCost(own, space, distribution)
        needed = {self.priced, *(LIMITED[field] for field, most in self._maxima.items() if most is not None)}
        self._missing = [word for word in _OF_EXAMPLE if word in needed]
        self._largest: dict[str, float] = {}
        self._check()

    @property
    def budgets(self) -> tuple[str, ...]:
        """The settings that are budgets here."""
        return tuple(field for field, most in self._maxima.items() if most is not None)

    @property
    def is_complete(self) -> bool:
        """Whether every cost that is priced or limited is known."""
        return not self._missing

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The budgets, of the costs that are known."""
        return tuple(
            Limit(field, self.by_word[LIMITED[field]], float(self._maxima[field]))
            for field in self.budgets
            if LIMITED[field] in self.by_word
        )

    @property
    def scarce(self) -> tuple[str, ...]:
        """The budgets that leave out some network: one that the largest network meets has no effect."""
        limits = self.limits
        return tuple(limit.field for limit in limits if limit.maximum < self.largest(LIMITED[limit.field]))

    def largest(self, word: str) -> float:
        """The cost of the most expensive network, in its unit; found when it is first asked for."""
        if word not in self._largest:
            cost = self.by_word[word]
            is_own = isinstance(cost, OwnCost)
            self._largest[word] = (
                cost.largest if is_own else largest(self._space, self._distribution, cost)[0]
            )
        return self._largest[word]

    def complete(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Find the costs that need an example.

        Args:
            args, kwargs: what the space is called with: a batch.

        Raises:
            UsageError: a cost cannot be found, or no network is within the budgets.
        """
        known = {limit.field for limit in self.limits}
        for word in self._missing:
            self.by_word[word] = self._of_example(word, args, kwargs)
        self._missing = []
        self._check(known)

    def _check(self, known: Collection[str] = ()) -> None:
        """Refuse budgets that no network can meet, and say which ones limit nothing, of those not known before."""
        check_feasible(self._space, self._distribution, self.limits)
        scarce = self.scarce
        for limit in self.limits:
            if limit.field not in (*scarce, *known):
                _logger.warning(
                    "%s: every network of the space is within %g, so it limits nothing",
                    limit.field,
                    limit.maximum,
                )

    def expected(self, word: str) -> Tensor:
        """Scalar: the expected cost, in its unit; differentiable in the logits, without the sample's noise."""
        cost = self.by_word[word]
        if isinstance(cost, OwnCost):
            return cost(self._distribution)
        return cost(self._distribution.outcome_probs(cost.labels))

    def relative(self) -> Tensor:
        """Scalar: the expected cost that is priced, relative to the largest; differentiable."""
        most = self.largest(self.priced)
        return self.expected(self.priced) / (most if most > 0 else 1.0)

    def capacity(self) -> Tensor:
        """Scalar in (0, 1]: the expected parameters, relative to the most that a network has; differentiable."""
        return (1 + self.expected("params")) / (1 + self.largest("params"))

    def used(self) -> dict[str, Tensor]:
        """Per budget, the expected cost relative to it; scalar, differentiable."""
        return {field: self.expected(LIMITED[field]) / self._maxima[field] for field in self.budgets}

    def used_by(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """``<budget>_used`` for each budget: the part of it that a network uses, at most 1.

        Args:
            sample: an NNI sample that names at least the labels that the network uses.
        """
        return {
            f"{limit.field}_used": cost_of(self._distribution, limit.cost, sample) / limit.maximum
            for limit in self.limits
        }

    def usage(self, sample: Mapping[str, Any]) -> float:
        """The largest part of a budget that leaves out some network, as one network uses it; see :meth:`used_by`."""
        used = self.used_by(sample)
        return max(used[f"{field}_used"] for field in self.scarce)

    def summary(self, chosen: Mapping[str, Any]) -> dict[str, float]:
        """``expected_<word>`` of every cost that is known, without noise; of a person's own, that of a network.

        Args:
            chosen: an NNI sample that names at least the labels that the network uses.
        """
        return {
            "chosen_cost" if isinstance(cost, OwnCost) else f"expected_{word}": (
                cost.at_sample(chosen) if isinstance(cost, OwnCost) else float(self.expected(word))
            )
            for word, cost in self.by_word.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """What was found with an example: a resumed search takes it over, and measures nothing again."""
        # Plain strings: NNI's labels are of a class of its own, which a checkpoint would need to be trusted for.
        return {
            word: [
                (
                    [*map(str, table.labels)],
                    torch.from_numpy(table.values.astype(float)),
                    [*map(torch.from_numpy, table.classes)],
                )
                for table in cost.tables
            ]
            for word, cost in self.by_word.items()
            if word in _OF_EXAMPLE
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` has."""
        for word, tables in state.items():
            self.by_word[word] = ExpectedSum(
                Table(tuple(labels), values.numpy(), tuple(one.numpy() for one in classes))
                for labels, values, classes in tables
            )
            self._largest.pop(word, None)
        self._missing = [word for word in self._missing if word not in state]

    def _of_example(self, word: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ExpectedSum:
        if word == "flops":
            return expected_flops(self._space, self._distribution, args, kwargs)
        single = Example(tuple(args), dict(kwargs)).first(1)  # latency is that of one example
        args, kwargs = single.args, single.kwargs
        cost, self.latency_table = expected_latency(
            self._space, self._distribution, args, kwargs, self.latency_table
        )
        return cost

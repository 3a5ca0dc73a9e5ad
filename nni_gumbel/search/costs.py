"""What networks cost in a search: what is reported, what is priced, and what is limited.

Parameters are known from the space alone. Multiply-adds and latency need an example of what the network takes: they
are known as soon as the search has seen its first batch (:meth:`SearchCosts.complete`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from nni_gumbel.search.state import Resumable
from nni_gumbel.supernet.distribution import Distribution

# Which cost each budget limits, by the words of the setting `cost`.
LIMITED = {"max_params": "params", "max_flops": "flops", "max_latency_ms": "latency"}
# The word of a cost of one's own.
OWN = "cost"
_OF_EXAMPLE = ("flops", "latency")

_logger = logging.getLogger(__name__)


class SearchCosts(Resumable):
    """The costs of the networks of a space, by word; the one owner of them during a search.

    Args:
        space: the supernet.
        distribution: of its networks.
        settings: say what is priced and what is limited; a limit on parameters that no network meets is refused.
        own: a person's cost, priced in the place of the setting `cost`.
        latency_table: times of candidates; without one they are measured when they are needed.
        penalised: the word of the cost in a penalty.

    Attributes:
        by_word: the costs that are known; `params` always is.
        latency_table: the one given, and what was measured beside it.
        priced: the word of the cost that `cost_weight` weighs.
        budgets: the settings that are budgets here, with their values.
    """

    def __init__(
        self,
        space: ModelSpace,
        distribution: Distribution,
        settings: SearchSettings,
        own: Callable[..., Any] | None = None,
        latency_table: LatencyTable | None = None,
        penalised: str = "params",
    ) -> None:
        self.space, self._distribution, self.latency_table = space, distribution, latency_table
        budgets = {field: getattr(settings, field) for field in LIMITED}
        self.budgets = {field: float(most) for field, most in budgets.items() if most is not None}
        self.by_word: dict[str, ExpectedSum | OwnCost] = {"params": expected_parameters(space)}
        self.priced = settings.cost if own is None else OWN
        self._penalised = penalised
        if own is not None:
            self.by_word[OWN] = OwnCost(own, space, distribution)
        self._largest: dict[str, float] = {}
        self._told: set[str] = set()  # the budgets that were found to limit something, or nothing
        self._check()

    @property
    def _missing(self) -> list[str]:
        needed = {self.priced, self._penalised, *(LIMITED[field] for field in self.budgets)}
        return [word for word in _OF_EXAMPLE if word in needed - self.by_word.keys()]

    @property
    def is_complete(self) -> bool:
        """Whether every cost that is priced or limited is known."""
        return not self._missing

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The budgets, of the costs that are known."""
        return tuple(
            Limit(field, self.by_word[LIMITED[field]], most)
            for field, most in self.budgets.items()
            if LIMITED[field] in self.by_word
        )

    @property
    def scarce(self) -> tuple[Limit, ...]:
        """The budgets that leave out some network: one that the largest network meets has no effect."""
        return tuple(limit for limit in self.limits if limit.maximum < self.largest(LIMITED[limit.field]))

    def largest(self, word: str) -> float:
        """The cost of the most expensive network, in its unit; found when it is first asked for."""
        if word not in self._largest:
            cost = self.by_word[word]
            found = cost.largest if word == OWN else largest(self.space, self._distribution, cost)[0]
            self._largest[word] = found
        return self._largest[word]

    def complete(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Find the costs that need an example: a batch, as the space is called with it.

        Raises:
            UsageError: a cost cannot be found, or no network is within the budgets.
        """
        space, distribution = self.space, self._distribution
        for word in self._missing:
            if word == "flops":
                self.by_word[word] = expected_flops(space, distribution, args, kwargs)
                continue
            single = Example(tuple(args), dict(kwargs)).first(1)  # latency is that of one example
            inputs = single.args, single.kwargs
            self.by_word[word], self.latency_table = expected_latency(
                space, distribution, *inputs, self.latency_table
            )
        self._check()

    def _check(self) -> None:
        """Refuse budgets that no network can meet, and say once which ones limit nothing."""
        check_feasible(self.space, self._distribution, self.limits)
        for limit in self.limits:
            if limit.field not in self._told and limit not in self.scarce:
                told = "%s: every network of the space is within %g, so it limits nothing"
                _logger.warning(told, limit.field, limit.maximum)
            self._told.add(limit.field)

    def expected(self, word: str) -> Tensor:
        """Scalar: the expected cost, in its unit; differentiable in the logits, without the sample's noise."""
        cost = self.by_word[word]
        return cost(self._distribution if word == OWN else self._distribution.outcome_probs(cost.labels))

    def relative(self) -> Tensor:
        """Scalar: the expected cost that is priced, relative to the largest; differentiable."""
        most = self.largest(self.priced)
        return self.expected(self.priced) / (most if most > 0 else 1.0)

    def capacity(self) -> Tensor:
        """Scalar in (0, 1]: the expected parameters, relative to the most that a network has; differentiable."""
        return (1 + self.expected("params")) / (1 + self.largest("params"))

    def used(self) -> dict[str, Tensor]:
        """Per budget, the expected cost relative to it; scalar, differentiable."""
        return {field: self.expected(LIMITED[field]) / most for field, most in self.budgets.items()}

    def used_by(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """``<budget>_used`` for each budget: the part of it that a network uses, whose sample names its labels."""
        return {f"{limit.field}_used": self._share(limit, sample) for limit in self.limits}

    def usage(self, sample: Mapping[str, Any]) -> float:
        """The largest part of a budget that leaves out some network, as one network uses it; see :meth:`used_by`."""
        return max(self._share(limit, sample) for limit in self.scarce)

    def _share(self, limit: Limit, sample: Mapping[str, Any]) -> float:
        return cost_of(self._distribution, limit.cost, sample) / limit.maximum

    def summary(self, chosen: Mapping[str, Any]) -> dict[str, float]:
        """``expected_<word>`` of every cost that is known, without noise; of a person's own that of a network."""
        own = self.by_word.get(OWN)
        known = {f"expected_{word}": float(self.expected(word)) for word in self.by_word if word != OWN}
        return known if own is None else {**known, "chosen_cost": own.at_sample(chosen)}

    def state_dict(self) -> dict[str, Any]:
        """What was found with an example: a resumed search takes it over, and measures nothing again."""
        # Plain strings: NNI's labels are of a class of its own, which a checkpoint would need to be trusted for.
        return {
            word: [
                ([*map(str, table.labels)], torch.from_numpy(table.values.astype(float)),
                 [*map(torch.from_numpy, table.classes)])
                for table in self.by_word[word].tables
            ]
            for word in _OF_EXAMPLE
            if word in self.by_word
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` has."""
        for word, tables in state.items():
            self.by_word[word] = ExpectedSum(
                Table(tuple(labels), values.numpy(), tuple(one.numpy() for one in classes))
                for labels, values, classes in tables
            )
            self._largest.pop(word, None)

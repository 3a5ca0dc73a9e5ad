"""A cost of a person's own: any function of an NNI sample or of the frozen network.

Nothing is known of such a function, so its expectation under a distribution has no table. Of a small space
every network is priced once, and the expectation is exact. Of a large one it is estimated at every step from
a few networks drawn from the distribution, and so is its gradient, by the score function with the mean of the
other draws as the baseline,

    grad E[c] ~ 1/(S-1) sum_i (c(z_i) - mean_j c(z_j)) grad log q(z_i),

which is unbiased. Prices of the latest networks are kept: a search that settles draws the same ones again and again.

Source: Kool, van Hoof, Welling, Buy 4 REINFORCE samples, get a baseline for free! (ICLR 2019 workshop), eq. 8.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.complexity.table import ExpectedSum, Table
from nni_gumbel.errors import UsageError, user_code
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import UsedPart

_ENUMERATED, _DRAWS, _PRICES_KEPT = 512, 8, 4096
# Networks that say how large a cost is, where they are too many to price all of them.
_DRAWS_FOR_SCALE = 32


class OwnCost:
    """What a person's function says that a network costs.

    Args:
        function: has one parameter, named ``sample`` (it gets the NNI sample, labels that the network uses) or
            ``network`` (it gets the frozen network, in ``eval()``), and returns a finite number.
        space: the supernet.
        distribution: of its networks.

    Attributes:
        largest: the highest cost of those priced at the beginning: of all networks of a space with at most 512
            combinations of outcomes, else of 32 drawn uniformly.

    Raises:
        UsageError: the function has other parameters, fails, or returns no finite number.
    """

    def __init__(self, function: Callable[..., Any], space: ModelSpace, distribution: Distribution) -> None:
        _parameter_of(function)
        self._function = function
        self._space, self._distribution = space, distribution
        self._used_part = UsedPart(space)
        self._known: OrderedDict[tuple[Any, ...], float] = OrderedDict()
        self._exact: ExpectedSum | None = None
        laws = distribution.laws
        shape = [law.outcomes for law in laws.values()]
        if math.prod(shape) <= _ENUMERATED:
            costs = [
                self.at_sample(dict(zip(laws, map(distribution.value_of, laws, sets))))
                for sets in itertools.product(*(law.sets() for law in laws.values()))
            ]
            self._exact = ExpectedSum([Table.of(tuple(laws), np.array(costs).reshape(shape))])
        else:
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                for _ in range(_DRAWS_FOR_SCALE):
                    self._at({label: law.draw(torch.zeros(law.size)) for label, law in laws.items()})
        self.largest = max(self._known.values())

    def __call__(self, distribution: Distribution) -> Tensor:
        """Scalar in the dtype of the logits: the expected cost, exact or estimated; differentiable."""
        if self._exact is not None:
            return self._exact(distribution.outcome_probs(self._exact.labels))
        laws, logits = distribution.laws, distribution.logits
        costs, log_probs = [], []
        for _ in range(_DRAWS):
            drawn = {label: law.draw(logits[label]) for label, law in laws.items()}
            costs.append(self._at(drawn))
            log_probs.append(sum(law.log_prob(logits[label], drawn[label]) for label, law in laws.items()))
        log_prob = torch.stack(log_probs)
        cost = log_prob.new_tensor(costs)
        score = ((cost - cost.mean()) * log_prob).sum() / (_DRAWS - 1)
        return cost.mean() + score - score.detach()

    def at_sample(self, sample: Mapping[str, Any]) -> float:
        """The cost of one network: an NNI sample that names at least the labels that the network uses."""
        used = self._used_part(sample)
        # Each network once, whatever the labels say that it does not use.
        key = tuple((label, self._distribution.members(label, value)) for label, value in used.items())
        if key not in self._known:
            self._known[key] = own_cost_of(self._function, used, self._space.freeze)
        self._known.move_to_end(key)
        if len(self._known) > _PRICES_KEPT:
            self._known.popitem(last=False)
        return self._known[key]

    def _at(self, outcomes: Mapping[str, Tensor]) -> float:
        return self.at_sample({label: self._distribution.value(label, z) for label, z in outcomes.items()})


def own_cost_of(
    function: Callable[..., Any], sample: dict[str, Any], freeze: Callable[[dict[str, Any]], nn.Module]
) -> float:
    """What a person's function says of one network; see :class:`OwnCost`.

    Args:
        sample: the NNI sample of the network, labels that it uses only.
        freeze: builds the network of a sample, if the function takes it.
    """
    # What the function draws at random must not change what a search or a training draws.
    with torch.random.fork_rng([]), torch.no_grad():
        argument = sample if _parameter_of(function) == "sample" else freeze(sample).eval()
        with user_code(f"cost: {_name(function)} fails for {sample}", "correct it"):
            cost = function(argument)
    number = cost.item() if isinstance(cost, Tensor) and cost.numel() == 1 else cost
    is_number = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number):
        raise UsageError(
            f"cost: {_name(function)} gives {cost!r} for {sample}; let it return a finite number"
        )
    return float(number)


def _parameter_of(function: Callable[..., Any]) -> str:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = []
    if parameters not in (["sample"], ["network"]):
        given = ", ".join(parameters) or "no parameter that can be read"
        raise UsageError(
            f"cost: {_name(function)} has {given}; give it one parameter, named sample or network"
        )
    return parameters[0]


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)

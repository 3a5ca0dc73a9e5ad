"""How a search meets its budgets, and spends them.

**While it runs**, multipliers weigh its constraints. A constraint is a number ``g`` that must not be above 0; for a
budget ``g = E[cost] / budget - 1``. The objective gets the augmented Lagrangian of each,

    ``psi(g) = (max(0, lambda + rho g)^2 - lambda^2) / (2 rho)``,

whose gradient is ``max(0, lambda + rho g)`` times that of ``g``: nothing while the constraint is far from binding, and
the pressure it takes where it binds. After every structure step the multiplier follows the violation,
``lambda <- max(0, lambda + pace rho g dt)`` with ``dt`` the part of the search that the step is. A violation that does
not get smaller doubles ``rho``, so that the pressure reaches the scale of any loss; no weight is to be tuned.

**In its last quarter** it commits to a network. A mixture can meet a budget in expectation although no single network
has such a cost:

    budget 1,000; candidates of 1,400 and 600 parameters; P = (0.5, 0.5) has an expected cost of 1,000

So the network that would be returned at that moment is computed from time to time, a term of the objective pulls the
distribution towards it, and the search is asked to spend no more of a budget than this network uses.

**At its end** the most probable network within all budgets is found; where a budget is to be spent, the most probable
one that also spends it. The two differ where a choice is torn between a dear and a cheap candidate:

    P(conv: 900 parameters) = 0.49, P(skip: 0 parameters) = 0.51, three such layers, budget 1,400
    the expected number is 1,323 parameters, and the most probable network has 0

Sources: Rockafellar, The multiplier method of Hestenes and Powell applied to convex programming, Journal of
Optimization Theory and Applications 12 (1973), equation 5; when ``rho`` grows: Birgin, Martínez, Practical Augmented
Lagrangian Methods for Constrained Optimization (2014), algorithm 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni.mutable import Sample
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor

from nni_gumbel.complexity.budget import Limit, best_within, ranked_within
from nni_gumbel.complexity.table import ExpectedSum, cost_of
from nni_gumbel.search.state import Resumable
from nni_gumbel.supernet.distribution import Distribution

# The constraint that limits the slack of a budget, so that it is spent. The others have the names of settings.
SLACK = "slack"
# A budget is spent if so much of it is used.
SPENT = 0.85
# A violation of 10 % that lasts for the whole search brings a multiplier to 1, the scale of a cross-entropy.
_PACE = 10.0
# rho is looked at after every so large a part of the search, and grows if the violation is not below 90 % of that of
# the last time and above what is no violation to speak of.
_PERIOD, _ENOUGH_PROGRESS, _TOLERANCE = 0.05, 0.9, 0.05
# The progress at which a search commits, and how much of it lies between two choices of the network: each is an integer
# programme, which a step should not wait for.
_COMMITS_FROM, _CHOSEN_EVERY = 0.75, 0.01


class Multipliers(Resumable):
    """One multiplier for each constraint; the only place that changes them.

    Attributes:
        weights: ``lambda`` by constraint, at least 0.
        stiffness: ``rho`` by constraint.
    """

    _kept = ("weights", "stiffness", "_violations", "_since")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.weights = dict.fromkeys(names, 0.0)
        self.stiffness = dict.fromkeys(names, 1.0)
        self._violations = dict.fromkeys(names, math.inf)  # at the beginning of the current period
        self._since = 0.0

    def term(self, violations: Mapping[str, Tensor]) -> Tensor | float:
        """Scalar: what the constraints add to the objective; differentiable in ``violations``, their ``g``."""
        total: Tensor | float = 0.0
        for name, g in violations.items():
            weight, rho = self.weights[name], self.stiffness[name]
            total = total + ((weight + rho * g).clamp_min(0).square() - weight**2) / (2 * rho)
        return total

    def follow(self, violations: Mapping[str, float], share: float) -> None:
        """Move every multiplier after a structure step; ``share`` is the part of the search that it was, in (0, 1]."""
        for name, g in violations.items():
            moved = self.weights[name] + _PACE * share * self.stiffness[name] * g
            self.weights[name] = max(0.0, moved)
        self._since += share
        if self._since >= _PERIOD:
            self._since = 0.0
            for name, g in violations.items():
                if g > _TOLERANCE and g > _ENOUGH_PROGRESS * self._violations[name]:
                    self.stiffness[name] *= 2
            self._violations = {name: max(g, 0.0) for name, g in violations.items()}


class Commitment(Resumable):
    """The network that a search settles on, chosen again from time to time as the logits move.

    Args:
        distribution: of the structure.
        find: the network that the search would return now.
        usage: the largest part of a budget that a network uses.
    """

    _kept = ("_outcomes", "_used", "_chosen_at")

    def __init__(
        self, distribution: Distribution, find: Callable[[], Sample], usage: Callable[[Sample], float]
    ) -> None:
        self._distribution, self._find, self._usage = distribution, find, usage
        self._outcomes: dict[str, Tensor] = {}
        self._used, self._chosen_at = math.inf, -math.inf

    def strength(self, progress: float) -> float:
        """From 0 at the beginning of the last quarter to 1 at the end of the search; ``progress`` is in [0, 1]."""
        return max(progress - _COMMITS_FROM, 0.0) / (1 - _COMMITS_FROM)

    def used(self, progress: float) -> float:
        """The largest part of a budget that the network uses; before the last quarter there is none: infinite."""
        self._choose(progress)
        return self._used

    def distance(self, progress: float) -> Tensor:
        """How far the distribution is from the network, ``z``; scalar, differentiable, 0 where it is certain.

        ``mean_label( -log q(z_label) / log(number of outcomes) )``, in which a label that ``z`` does not use, or that
        has a single outcome, counts as 0: as large as the entropy of
        :meth:`Distribution.entropy <nni_gumbel.supernet.distribution.Distribution.entropy>` where that is uniform.
        """
        self._choose(progress)
        laws, logits = self._distribution.laws, self._distribution.logits
        return sum(
            -laws[label].log_prob(logits[label], outcome.to(logits[label]))
            / math.log(max(laws[label].outcomes, 2))
            for label, outcome in self._outcomes.items()
        ) / len(laws)

    def _choose(self, progress: float) -> None:
        if progress > _COMMITS_FROM and progress >= self._chosen_at + _CHOSEN_EVERY:
            sample = self._find()
            # Plain strings: NNI's labels are of a class of its own, which a checkpoint would need to be trusted for.
            self._outcomes = {
                str(label): self._distribution.outcome(label, value) for label, value in sample.items()
            }
            self._used, self._chosen_at = self._usage(sample), progress


def best_spending(space: ModelSpace, distribution: Distribution, limits: Sequence[Limit]) -> dict[str, Any]:
    """The most probable network within all limits that spends one of them.

    A network spends a limit if it uses at least 85 % of it. If no network within the limits does, a network is returned
    that no other network within the limits dominates, where "dominates" means: it costs more of one limit, and no less
    of the limits that are used more. It is found from the most probable network within the limits, by asking for a
    larger cost of the limit that is used most, then of the next limit, until no such network exists.

    Returns:
        The NNI sample, labels that the network uses only.
    """

    def at_least(amounts: Mapping[Limit, float]) -> tuple[dict[str, Any], float] | None:
        # An upper limit of the negative cost.
        lower = (
            Limit(limit.field, ExpectedSum(-table for table in limit.cost.tables), -amount)
            for limit, amount in amounts.items()
        )
        return next(ranked_within(space, distribution, [*limits, *lower]), None)

    def larger(sample: Mapping[str, Any]) -> dict[str, Any] | None:
        costs = {limit: cost_of(distribution, limit.cost, sample) for limit in limits}
        least: dict[Limit, float] = {}
        # The shares used, in falling order, rise lexicographically with every call: so the calls come to an end.
        for limit in sorted(limits, key=lambda limit: costs[limit] / limit.maximum, reverse=True):
            now, step = costs[limit], 1e-9 * (1 + costs[limit])
            found = at_least(least | {limit: now + step})
            if found is not None:
                return found[0]
            least[limit] = now - step
        return None

    spending = [found for limit in limits if (found := at_least({limit: SPENT * limit.maximum})) is not None]
    if spending:
        return max(spending, key=lambda one: one[1])[0]
    sample = best_within(space, distribution, limits)
    while (more := larger(sample)) is not None:
        sample = more
    return sample

"""What the structure minimises: its loss, what it costs, how undecided it is, and what it must not exceed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nni.mutable import Sample
from torch import Tensor

from nni_gumbel.complexity.budget import best_within
from nni_gumbel.complexity.own_cost import OwnCost
from nni_gumbel.complexity.prior import Prior, prior_by_cost, prior_by_label
from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import linear
from nni_gumbel.search.budgets import SLACK, SPENT, Commitment, Multipliers, best_spending
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.nni_arguments import Penalty
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.state import Resumable
from nni_gumbel.search.steps import inputs_of
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import UsedPart

# The part of a budget that is to be spent which the expected cost has. Not all of it: the network found must be
# within, and lies on either side of what is expected.
_AIM = 0.95


class StructureObjective(Resumable):
    """The objective of the logits, and the network that is best by it.

        ``penalty(loss (E[params] / largest)^-a) + cost_weight E[cost] / largest + lambda_H(t) entropy``
        ``+ kl_weight KL(q || prior) + sum_k psi(g_k)``

    ``a`` is the ``capacity_exponent``: the trainings of a search are short, which favours small networks, and long ones
    end at losses that fall with a small power of the parameters (Kaplan et al., arXiv 2001.08361, equation 1.1).

    For each budget ``g = E[cost] / budget - 1``, with ``psi`` of :mod:`~nni_gumbel.search.budgets`. Without a
    cost weight and a penalty, budgets that exclude some network are to be spent: the slack of the budget that is used
    most is limited by a further constraint, ``g = 0.95 - E[cost] / budget``. All terms are exact except the loss and,
    in a large space, a cost of one's own.

    In the last quarter, ``t`` in [3/4, 1], of a search whose budgets exclude some network, ``z`` is the network that
    the search would return. The objective has the further term ``lambda_H(t) (4 t - 3) distance(q, z)`` of
    the same module, and 0.95 becomes ``min(0.95, cost(z) / budget)``.

    Attributes:
        multipliers: of the budgets.
        details: the latest numbers of the penalty, by NNI's names.
    """

    _kept = ("multipliers", "_costs", "_commitment")

    def __init__(
        self,
        distribution: Distribution,
        costs: SearchCosts,
        settings: SearchSettings,
        penalty: Penalty | None,
    ) -> None:
        self._distribution, self._costs = distribution, costs
        self._settings, self._penalty = settings, penalty
        self._spends = bool(costs.budgets) and not settings.cost_weight and penalty is None
        self.multipliers = Multipliers((*costs.budgets, *([SLACK] if self._spends else [])))
        self._commitment = Commitment(distribution, self.best, costs.usage)
        self.details: dict[str, Tensor] = {}
        self._used_part = UsedPart(costs.space)
        self._prior: Prior | None = None
        if costs.is_complete or settings.prior != "cost":
            self._prior = build_prior(settings.prior, distribution, costs)

    def prepare(self, run: Callable[[], Any]) -> None:
        """Before the first step, find what needs an example of what the network takes.

        ``run`` lets the evaluator make a training step; see :func:`~nni_gumbel.search.steps.inputs_of`.
        """
        if not self._costs.is_complete:
            self._costs.complete(*inputs_of(self._costs.space, run))
        if self._prior is None:
            self._prior = build_prior(self._settings.prior, self._distribution, self._costs)

    def entropy_weight(self, progress: float) -> float:
        """``lambda_H(t)``, the weight of the structure's mean relative entropy, at a progress in [0, 1].

        The divergence from a prior rewards entropy by ``kl_weight``. The last step takes that back, so that a search
        ends with what ``entropy_weight_end`` says, and of the divergence remains what steers.
        """
        s = self._settings
        return linear(s.entropy_weight_start, s.entropy_weight_end + s.kl_weight, progress)

    def __call__(self, loss: Tensor, progress: float) -> Tensor:
        """The objective, scalar and differentiable, from the loss of a batch under the current sample."""
        entropy_weight = self.entropy_weight(progress)
        objective = self._priced(loss) + entropy_weight * self._distribution.entropy()
        strength = max(entropy_weight, 0.0) * self._commitment.strength(progress)
        if strength and self._costs.scarce:
            objective = objective + strength * self._commitment.distance(progress)
        return objective + self.multipliers.term(self._violations(progress))

    @torch.no_grad()
    def of_network(self, loss: float, network: Mapping[str, Any]) -> float:
        """The objective of a single network: its loss, and what it costs. The sample names at least its labels."""
        with self._distribution.certain_of(self._distribution.mode() | dict(network)):
            return float(self._priced(torch.tensor(loss, device=self._distribution.device)))

    def _priced(self, loss: Tensor) -> Tensor:
        """The loss with the penalty, the cost and the divergence from the prior."""
        distribution, settings = self._distribution, self._settings
        if settings.capacity_exponent:
            # A loss below 0 must become larger, too.
            loss = loss + loss.detach().abs() * (self._costs.capacity() ** -settings.capacity_exponent - 1)
        objective = loss
        if self._penalty is not None:
            objective, details = self._penalty(loss, self._costs.expected(self._penalty.word))
            self.details = {name: value.detach() for name, value in details.items()}
        if settings.cost_weight:
            objective = objective + settings.cost_weight * self._costs.relative()
        if settings.kl_weight:
            objective = objective + settings.kl_weight * self._prior.divergence(distribution)
        return objective

    def _violations(self, progress: float) -> dict[str, Tensor]:
        """``g`` by constraint, scalar, at most 0 where it holds; differentiable."""
        used = self._costs.used()
        found = {field: share - 1 for field, share in used.items()}
        if self._spends and self._costs.scarce:
            aim = min(_AIM, self._commitment.used(progress))
            found[SLACK] = aim - torch.stack([used[limit.field] for limit in self._costs.scarce]).max()
        return found

    def follow(self, progress: float, share: float) -> None:
        """Move the multipliers of the budgets after a step of the logits, which was a ``share`` of the search."""
        if self._costs.budgets:
            with torch.no_grad():
                violations = self._violations(progress)
                values = torch.stack([*violations.values()]).tolist()
            self.multipliers.follow(dict(zip(violations, values)), share)

    # -- networks --------------------------------------------------------------------------------

    def best(self) -> Sample:
        """The network found: an NNI sample with the labels that it uses.

        The most probable one; with budgets, of those within; where budgets are to be spent, of those that spend
        one: see :func:`~nni_gumbel.search.budgets.best_spending`.
        """
        scarce = self._costs.scarce
        if self._spends and scarce:
            return best_spending(self._costs.space, self._distribution, scarce)
        return best_within(self._costs.space, self._distribution, self._costs.limits)

    def likeliest(self) -> Sample:
        """The most probable network within the budgets, whether it spends them or not; the labels that it uses.

        As :func:`~nni_gumbel.complexity.budget.best_within` finds it, in less time where the mode is within.
        """
        sample = self._used_part(self._distribution.mode())
        if not self._costs.scarce or self._costs.usage(sample) <= 1:
            return sample
        return best_within(self._costs.space, self._distribution, self._costs.limits)

    def allowed(self, sample: Mapping[str, Any]) -> Sample | None:
        """The labels that a network uses; ``None`` if it may not be found: it is not within the budgets, or does not
        spend one where they are to be spent.
        """
        used = self._used_part(sample)
        least = SPENT if self._spends else 0.0
        return used if not self._costs.scarce or least <= self._costs.usage(used) <= 1 else None

    def summary(self, chosen: Sample) -> dict[str, float]:
        """The state of the structure in numbers; without sampling noise.

        ``entropy`` (mean over labels, 1 is uniform); ``expected_params``, and the same of every other cost that is
        priced or limited; ``max_probability`` (mean over labels of the largest probability); ``chosen_probability``
        (mean of the probabilities of what the network found has chosen, over the labels that it uses). With budgets
        their multipliers, ``budget_weight/…``; with a cost of one's own ``chosen_cost``, that network's.
        """
        laws, logits = self._distribution.laws, self._distribution.logits
        with torch.no_grad():
            largest = [probabilities.max() for probabilities in self._distribution.probs().values()]
            of_chosen = [
                laws[label].log_prob(logits[label], self._distribution.outcome(label, value)).exp()
                for label, value in chosen.items()
            ]
            return {
                "entropy": float(self._distribution.entropy()),
                **self._costs.summary(chosen),
                "max_probability": float(torch.stack(largest).mean()),
                "chosen_probability": float(torch.stack(of_chosen).mean()),
                **{f"budget_weight/{name}": weight for name, weight in self.multipliers.weights.items()},
            }


def build_prior(prior: str, distribution: Distribution, costs: SearchCosts) -> Prior:
    """The prior that the setting ``prior`` names; ``cost`` needs costs that are complete, and takes the one priced.

    Raises:
        UsageError: a label or a candidate is unknown, or the cost is a person's own.
    """
    if prior == "uniform":
        return Prior({})
    if prior == "cost":
        cost = costs.by_word[costs.priced]
        if isinstance(cost, OwnCost):
            raise UsageError(
                "prior: 'cost' needs a cost that is a sum over choices, and yours is a function; "
                "give it by label, or leave out your cost"
            )
        return prior_by_cost(distribution, cost, costs.largest(costs.priced))
    by_label: Mapping[str, Mapping[str, float]] = json.loads(prior)
    return prior_by_label(distribution, by_label)

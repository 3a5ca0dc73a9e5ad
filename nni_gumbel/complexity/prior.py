"""A prior over networks, and how far a structure is from it: the regulariser that explores and steers.

The Kullback-Leibler divergence of independent labels is a sum over labels, each exact:

    ``KL(q || p) = -H(q) - E_q[log p]``,

so that it contains ``-H``: it rewards an undecided structure. Reported and weighted is the mean over labels,
each relative to the largest entropy that the label can have, as
:meth:`Distribution.entropy <nni_gumbel.supernet.distribution.Distribution.entropy>` is; with a uniform
prior the divergence is ``1 - entropy``.

A prior is written either in candidates or in outcomes. *Given by label*, it is of the same exponential family as
the structure, with natural parameters ``theta_p``, and with marginals ``mu`` and log-partition ``A``

    ``KL(q || p) = A(theta_p) - A(theta_q) + (theta_q - theta_p) . mu(theta_q)``.

*By cost*, it is ``p(z) ∝ exp(-n cost(z) / largest)`` for ``n`` labels, so that ``beta`` times the mean divergence is
a cost weight of ``beta`` (for labels of a nat of entropy) that explores by ``beta``. A cost that couples labels has no
independent ``p``; each label then has that of the cost averaged over the others, all equally likely:
``p(outcome) ∝ exp(-n E[cost | outcome] / largest)``.

Source: Wainwright, Jordan, Graphical Models, Exponential Families, and Variational Inference (2008), sections 3.6
and 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from nni.mutable import CategoricalMultiple
from torch import Tensor

from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.law import Law
from nni_gumbel.supernet.distribution import Distribution

# A candidate that a prior gives nothing has this probability: the divergence would be infinite.
SMALLEST_PROBABILITY = 1e-6

# Scalar float64: -E_q[log p] of one label at its logits.
_CrossEntropy = Callable[[Tensor], Tensor]


class Prior:
    """A probability of every outcome of every label, uniform where nothing else is said.

    Args:
        cross_entropies: ``-E_q[log p]``, by label, for those that are not uniform.
    """

    def __init__(self, cross_entropies: Mapping[str, _CrossEntropy]) -> None:
        self._cross_entropies = dict(cross_entropies)

    def divergence(self, distribution: Distribution) -> Tensor:
        """Scalar, at least 0, in the dtype of the logits: the mean relative ``KL(q || p)``; exact, differentiable.

        ``mean_label( KL(q_label || p_label) / log(number of outcomes) )``; a label with one outcome counts as 0.
        """
        divergences = []
        for label, law in distribution.laws.items():
            theta, cross_entropy = distribution.logits[label].double(), self._cross_entropies.get(label)
            expected = math.log(law.outcomes) if cross_entropy is None else cross_entropy(theta)
            divergences.append((expected - law.entropy(theta)) / math.log(max(law.outcomes, 2)))
        return torch.stack(divergences).mean().to(next(iter(distribution.logits.values())).dtype)


def prior_by_cost(distribution: Distribution, cost: ExpectedSum, largest: float) -> Prior:
    """``p(outcome) ∝ exp(-n E[cost | outcome] / largest)`` for each of ``n`` labels; see the module.

    Args:
        distribution: of the space; its logits play no part.
        cost: what the prior calls dear.
        largest: the cost of the most expensive network, see :func:`nni_gumbel.complexity.budget.largest`.
    """
    laws = {label: distribution.laws[label] for label in cost.labels}
    if not laws:
        return Prior({})
    uniform = {
        label: torch.full((law.outcomes,), 1 / law.outcomes, dtype=torch.float64, requires_grad=True)
        for label, law in laws.items()
    }
    scale = len(distribution.laws) / max(largest, 1e-12)
    # The expectation is linear in the probabilities of each label: the derivative is E[cost | outcome], but for what
    # does not depend on the label, and that cancels.
    conditional = torch.autograd.grad(cost(uniform), [*uniform.values()])
    logs = (torch.log_softmax(-scale * of_outcome, 0) for of_outcome in conditional)
    return Prior({label: partial(_of_outcomes, log, law) for (label, law), log in zip(laws.items(), logs)})


def prior_by_label(distribution: Distribution, given: Mapping[str, Mapping[str, float]]) -> Prior:
    """A prior whose probabilities of candidates a person gives: label -> {candidate as text: probability}.

    Of a choice of one they are relative to their sum. Of a choice of k of n inputs they are weights: ``p(subset) ∝``
    the product of the weights in it. Of a choice of any number each input is taken with its probability, independently,
    given that one is taken. A candidate that is not named, or has less, has 1e-6; a label that is not named is uniform.

    Raises:
        UsageError: a label or a candidate is unknown, or of a choice of any number one is more likely than 1.
    """
    parameters = {label: _parameters(distribution, label, weights) for label, weights in given.items()}
    return Prior(
        {label: partial(_of_candidates, of, distribution.laws[label]) for label, of in parameters.items()}
    )


def _parameters(distribution: Distribution, label: str, weights: Mapping[str, float]) -> Tensor:
    """``(n,)`` float64: the natural parameters of the prior of a label."""
    if label not in distribution.variables:
        raise UsageError(
            f"prior: the space has no choice {label!r}; give one of {_listed(distribution.variables)}"
        )
    variable = distribution.variables[label]
    candidates = list(map(str, variable.values))
    for candidate in weights:
        if candidate not in candidates:
            raise UsageError(
                f"prior: choice {label!r} has no candidate {candidate!r}; give one of {_listed(candidates)}"
            )
    if not all(0 <= weight < math.inf for weight in weights.values()) or not sum(weights.values()) > 0:
        raise UsageError(
            f"prior: the probabilities of {label!r} are {dict(weights)}; give numbers of at least 0, one above 0"
        )
    each = torch.tensor([weights.get(candidate, 0.0) for candidate in candidates], dtype=torch.float64)
    if not isinstance(variable, CategoricalMultiple) or variable.n_chosen is not None:
        return (each / each.sum()).clamp_min(SMALLEST_PROBABILITY).log()
    if float(each.max()) > 1:
        raise UsageError(
            f"prior: {label!r} takes any number of inputs, one with {float(each.max()):g}; give at most 1"
        )
    return torch.logit(each.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))


def _of_candidates(parameters: Tensor, law: Law, theta: Tensor) -> Tensor:
    """``A(theta_p) - theta_p . mu(theta_q)``."""
    of_prior = parameters.to(theta.device)
    return law.log_partition(of_prior) - (of_prior * law.probs(theta)).sum()


def _of_outcomes(log_probabilities: Tensor, law: Law, theta: Tensor) -> Tensor:
    """``-E_q[log p]``."""
    return -(law.outcome_probs(theta) * log_probabilities.to(theta.device)).sum()


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")

"""What the structure minimises: its loss, what it costs, and how undecided it is."""

from __future__ import annotations

from torch import Tensor

from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.search.penalty import Penalty
from nni_gumbel.supernet.distribution import Distribution


def structure_objective(
    loss: Tensor,
    distribution: Distribution,
    cost: ExpectedSum,
    penalty: Penalty | None,
    *,
    cost_weight: float,
    entropy_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``penalty(loss) + cost_weight * E[cost] / largest + entropy_weight * entropy``; differentiable.

    Args:
        loss: scalar, that of a batch under the current sample.
        distribution: of the structure; expectations and entropy are exact, without the sample's noise.
        cost: the expected cost of the structure.
        penalty: NNI's, if one was given.
        cost_weight: weight of the cost relative to its largest value.
        entropy_weight: weight of the mean relative entropy; below 0 it is rewarded.

    Returns:
        The objective, scalar, and the numbers to log for the penalty.
    """
    details: dict[str, Tensor] = {}
    if penalty is not None:
        loss, details = penalty(loss, distribution.outcome_probs(penalty.expected_cost.labels))
    relative_cost = cost(distribution.outcome_probs(cost.labels)) / max(cost.largest, 1.0)
    return loss + cost_weight * relative_cost + entropy_weight * distribution.entropy(), details

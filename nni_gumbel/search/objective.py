"""What the structure minimises: its loss, what it costs, and how undecided it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nni_gumbel.search.penalty import Penalty
from nni_gumbel.supernet.distribution import Distribution


class Cost(Protocol):
    """What a structure costs, differentiable in the probabilities; ``largest`` is its scale."""

    largest: float

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor: ...


def structure_objective(
    loss: Tensor,
    distribution: Distribution,
    cost: Cost,
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
    probabilities = distribution.probs()
    details: dict[str, Tensor] = {}
    if penalty is not None:
        loss, details = penalty(loss, probabilities)
    relative_cost = cost(probabilities) / max(cost.largest, 1.0)
    return loss + cost_weight * relative_cost + entropy_weight * distribution.entropy(), details

"""NNI's ``penalty``, with a gradient in the logits.

NNI documents the penalty as the *expectation* of a profiler's result over the distribution of networks, set
against a baseline. Its own code reads that expectation from detached numbers, so that nothing of it reaches
the logits. Here it is a differentiable function of the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.profiler import ExpressionProfiler
from nni.nas.profiler.pytorch.flops import FlopsParamsCounterConfig, NumParamsProfiler
from torch import Tensor

from nni_gumbel.complexity.expression import expectation_of
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.errors import UsageError

_FIELDS = ("profiler", "baseline", "scale", "nonlinear", "aggregate")
_NONLINEAR = ("linear", "positive", "negative", "absolute")
_AGGREGATE = ("add", "mul")


class Penalty:
    """The loss together with what the structure is expected to cost.

    ``aggregate(loss, nonlinear(E[cost] / baseline - 1))``; ``nonlinear``, ``aggregate`` and ``scale`` are NNI's own
    functions, see ``ProfilerPenalty``.

    Args:
        description: what the user gave NNI.
        expected_cost: ``E[cost]``, differentiable, from the probabilities of the outcomes of its labels.
    """

    def __init__(self, description: ExpectationProfilerPenalty, expected_cost: ExpectedSum) -> None:
        self.description = description
        self.expected_cost = expected_cost

    def __call__(self, loss: Tensor, probabilities: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with the penalty, and the numbers that NNI logs under ``penalty/``.

        Args:
            loss: scalar.
            probabilities: ``(K,)`` per label, on the simplex, float.

        Returns:
            The new loss, scalar in the dtype of ``loss``, and ``loss_original``, ``penalty`` (the expected cost),
            ``normalized_penalty`` and ``loss_final``.
        """
        cost = self.expected_cost(probabilities)
        normalised = self.description.nonlinear_fn(cost / self.description.baseline - 1)
        total = self.description.aggregate_fn(loss, normalised.to(loss.dtype))
        details = {
            "loss_original": loss, "penalty": cost, "normalized_penalty": normalised, "loss_final": total,
        }  # fmt: skip
        return total, {name: value.detach() for name, value in details.items()}


def describe_penalty(penalty: Any) -> ExpectationProfilerPenalty | None:
    """Check what was given as ``penalty``, in any of NNI's forms.

    Args:
        penalty: ``None``; a dict with ``profiler``, ``baseline`` and, if wanted, ``scale``, ``nonlinear``,
            ``aggregate``; or an ``ExpectationProfilerPenalty``. ``profiler`` may also be the word ``params``.

    Raises:
        UsageError: a field is missing, unknown or out of its range.
    """
    if penalty is None:
        return None
    if isinstance(penalty, dict):
        wrong = [f"{key} is unknown" for key in penalty if key not in _FIELDS]
        wrong += [f"{key} is missing" for key in _FIELDS[:2] if key not in penalty]
        if wrong:
            raise UsageError(
                f"penalty: {', '.join(wrong)}; give profiler and baseline, "
                "and if wanted scale, nonlinear, aggregate"
            )
        penalty = ExpectationProfilerPenalty(**penalty)
    if not isinstance(penalty, ExpectationProfilerPenalty):
        raise UsageError(
            f"penalty: {type(penalty).__name__} has no expectation over networks; "
            "give a dict with profiler and baseline, or an ExpectationProfilerPenalty"
        )
    for name, minimum in (("baseline", 0.0), ("scale", -math.inf)):
        value = getattr(penalty, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value <= minimum:
            words = "a number greater than 0" if name == "baseline" else "a number"
            raise UsageError(f"penalty: {name} is {value!r}; give {words}")
    for name, words in (("nonlinear", _NONLINEAR), ("aggregate", _AGGREGATE)):
        if getattr(penalty, name) not in words:
            raise UsageError(f"penalty: {name} is {getattr(penalty, name)!r}; give one of {', '.join(words)}")
    profiler = penalty.profiler
    if profiler != "params" and not isinstance(profiler, ExpressionProfiler):
        told = repr(profiler) if isinstance(profiler, str) else type(profiler).__name__
        raise UsageError(
            f"penalty: profiler {told} is no expression in the choices, so it has no exact expectation; "
            "give FlopsProfiler, NumParamsProfiler, another ExpressionProfiler, or the word params"
        )
    return penalty


def build_penalty(
    description: ExpectationProfilerPenalty, variables: Mapping[str, Any], expected_parameters: ExpectedSum
) -> Penalty:
    """Make a described penalty a function of the probabilities of a space.

    NNI's ``NumParamsProfiler`` in its default configuration stands for the number of parameters, which is counted
    exactly here; NNI's own expression has 0 parameters for a ``LayerNorm`` and counts a shared module twice.

    Args:
        description: from :func:`describe_penalty`.
        variables: the NNI variable of each label of the space.
        expected_parameters: the expected number of parameters of the space.

    Raises:
        UsageError: see :func:`~nni_gumbel.complexity.expression.expectation_of`.
    """
    profiler = description.profiler
    counts_parameters = profiler == "params" or (
        isinstance(profiler, NumParamsProfiler) and profiler.profiler.config == FlopsParamsCounterConfig()
    )
    cost = expected_parameters if counts_parameters else expectation_of(profiler.expression, variables)
    return Penalty(description, cost)

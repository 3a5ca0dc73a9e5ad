"""The weighted sum that every mixed module ends in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def mixture(outputs: Sequence[Any], weights: Sequence[Tensor]) -> Any:
    """``sum_k weights_k * outputs_k``.

    Args:
        outputs: one per candidate: tensors of one shape, or tuples of such tensors, entry by entry.
        weights: scalars, one per candidate.

    Returns:
        A tensor, or a tuple of tensors, like the outputs; in their dtype.

    Raises:
        ValueError: the shapes differ; its only argument is the list of shapes.
    """
    shapes = [_shape(output) for output in outputs]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(shapes)
    if isinstance(outputs[0], tuple):
        return tuple(mixture(entries, weights) for entries in zip(*outputs))
    total = outputs[0] * weights[0].to(outputs[0].dtype)
    for output, weight in zip(outputs[1:], weights[1:]):
        total = total + output * weight.to(output.dtype)
    return total


def _shape(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_shape(entry) for entry in output)
    return tuple(output.shape)

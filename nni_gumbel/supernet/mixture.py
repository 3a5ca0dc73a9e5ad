"""The weighted sum that every mixed module ends in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError


def mixture(
    outputs: Sequence[Any], weights: Sequence[Tensor], describe: Callable[[list[Any]], str] = str
) -> Any:
    """``sum_k weights_k * outputs_k``.

    Args:
        outputs: one per candidate: tensors of one shape, or tuples, lists or dicts of such, entry by entry;
            an entry may be ``None`` in all of them.
        weights: scalars, one per candidate.
        describe: puts the outputs' shapes into the words of an error.

    Returns:
        What the outputs are, in their dtype.

    Raises:
        UsageError: the shapes differ.
    """
    shapes = [_shape(output) for output in outputs]
    if any(shape != shapes[0] for shape in shapes):
        raise UsageError(describe(shapes))
    return _weighted_sum(outputs, weights)


@contextmanager
def unchanged(inputs: Any, owner: str) -> Iterator[None]:
    """Refuse a candidate that changes its input in place: the others would take the change for their input.

    Args:
        inputs: what the candidate is given: tensors, also in tuples, lists and dicts.
        owner: the candidate, in the words of the error.

    Raises:
        UsageError: a tensor has been written to.
    """
    # Tensors of torch's inference mode count no writes; the training has seen the same candidates before.
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and not t.is_inference()]
    versions = [tensor._version for tensor in tensors]
    yield
    if [tensor._version for tensor in tensors] != versions:
        raise UsageError(
            f"{owner} changes its input in place, which the others get, too; let it make a new tensor "
            "(x = x + y, not x += y)"
        )


def _weighted_sum(outputs: Sequence[Any], weights: Sequence[Tensor]) -> Any:
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: _weighted_sum([output[key] for output in outputs], weights) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_weighted_sum(entries, weights) for entries in zip(*outputs))
    total = first * weights[0].to(first.dtype)
    for output, weight in zip(outputs[1:], weights[1:]):
        total = total + output * weight.to(output.dtype)
    return total


def _shape(output: Any) -> Any:
    if output is None:
        return None
    if isinstance(output, dict):
        return {key: _shape(entry) for key, entry in output.items()}
    if isinstance(output, (tuple, list)):
        return tuple(_shape(entry) for entry in output)
    return tuple(output.shape)

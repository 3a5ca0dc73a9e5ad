"""The weighted sum that every mixed module ends in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError


def mixture(
    outputs: Sequence[Any], weights: Sequence[Tensor | None], describe: Callable[[list[Any]], str] = str
) -> Any:
    """``sum_k weights_k * outputs_k``.

    Args:
        outputs: one per candidate: tensors of one shape, or tuples, lists or dicts of such, entry by entry;
            an entry may be ``None`` in all of them, or a number.
        weights: scalars, one per candidate; ``None`` for an output that has its weight already.
        describe: puts the outputs' shapes into the words of an error.

    Returns:
        What the outputs are, in their dtype; whole numbers of several candidates become floats.

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
    # Tensors of torch's inference mode count no writes; a step of training finds the candidate all the same.
    leaves = [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs)
    tensors = [t for t in leaves if isinstance(t, Tensor) and not t.is_inference()]
    versions = [tensor._version for tensor in tensors]
    yield
    if [tensor._version for tensor in tensors] != versions:
        raise UsageError(
            f"{owner} changes its input in place, which the others get, too; let it make a new tensor "
            "(x = x + y, not x += y)"
        )


def _weighted_sum(outputs: Sequence[Any], weights: Sequence[Tensor | None]) -> Any:
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: _weighted_sum([output[key] for output in outputs], weights) for key in first}
    if isinstance(first, (tuple, list)):
        entries = [_weighted_sum(entry, weights) for entry in zip(*outputs)]
        # A named tuple takes its entries one by one.
        return type(first)(*entries) if hasattr(first, "_fields") else type(first)(entries)
    if len(outputs) == 1 and not _is_float(first):
        return first
    total = _scaled(first, weights[0])
    for output, weight in zip(outputs[1:], weights[1:]):
        total = total + _scaled(output, weight)
    return total


def _scaled(output: Any, weight: Tensor | None) -> Tensor:
    if weight is None:
        return output
    # In whole numbers a weight below 1 would be 0.
    return output * (weight.to(output.dtype) if _is_float(output) else weight)


def _is_float(output: Any) -> bool:
    return isinstance(output, Tensor) and (output.is_floating_point() or output.is_complex())


def _shape(output: Any) -> Any:
    if output is None:
        return None
    if isinstance(output, dict):
        return {key: _shape(entry) for key, entry in output.items()}
    if isinstance(output, (tuple, list)):
        return tuple(_shape(entry) for entry in output)
    return tuple(output.shape) if isinstance(output, Tensor) else ()

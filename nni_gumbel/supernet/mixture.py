"""The weighted sum that every mixed module ends in, and what may be in it: floating-point tensors.

All else that candidates return - masks, indices, lengths, numbers, words, ``None`` - decides *what* is computed
behind them, and half of one mask and half of another is no mask. It passes through where the candidates agree:

    >>> import torch
    >>> weights = torch.tensor([0.25, 0.75]).unbind()
    >>> mixture([(torch.ones(2), "same"), (torch.zeros(2), "same")], weights)
    (tensor([0.2500, 0.2500]), 'same')
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, equal

from nni_gumbel.errors import UsageError


def mixture(
    outputs: Sequence[Any],
    weights: Sequence[Tensor | None],
    owner: str = "they give",
    names: Iterable[Any] = (),
    remedy: str = "make all of them equal",
) -> Any:
    """``sum_k weights_k * outputs_k``.

    Args:
        outputs: one per candidate: tensors of one shape, or tuples, lists or dicts of such, entry by entry, packed
            sequences among them; an entry that is no tensor of floating-point or complex numbers must be equal in
            all of them.
        weights: scalars, one per candidate; ``None`` for 1, or for an output that has its weight already.
        owner, names, remedy: the words of an error: ``{owner} outputs of different shapes ({name} (2, 3), {name}
            (2, 4)); {remedy}``.

    Returns:
        What the outputs are, in their dtype.

    Raises:
        UsageError: the shapes differ, or entries that cannot be mixed.
    """
    if len(outputs) == 1 and weights[0] is None:
        return outputs[0]
    try:
        return _mixed(outputs, weights)
    except _Different as different:
        difference, found = different.args
        first: dict[str, str] = {}  # of each of the different outputs who gives it first
        for name, output in zip(names, found):
            first.setdefault(output, f"{name} {output}")
        given = ", ".join(first.values())
        raise UsageError(f"{owner} {difference} ({given}); {remedy}") from None


def is_float(value: Any) -> bool:
    """Whether a value can be mixed: a tensor of floating-point or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def rebuilt(like: Sequence[Any], entries: Iterable[Any]) -> Any:
    """A tuple or list of the type of another; a named tuple, such as a packed sequence, takes entries one by one."""
    return type(like)(*entries) if hasattr(like, "_fields") else type(like)(entries)


@contextmanager
def unchanged(inputs: Sequence[Any], owner: str) -> Iterator[None]:
    """Refuse a candidate that changes its input in place: the others would take the change for their input.

    Args:
        inputs: what the candidate is given, tensors among it; nothing nested.
        owner: the candidate, in the words of the error.
    """
    # Tensors of torch's inference mode count no writes; a step of training finds the candidate all the same.
    tensors = [value for value in inputs if isinstance(value, Tensor) and not value.is_inference()]
    versions = [tensor._version for tensor in tensors]
    yield
    if [tensor._version for tensor in tensors] != versions:
        raise UsageError(
            f"{owner} changes its input in place, which the others get, too; let it make a new tensor "
            "(x = x + y, not x += y)"
        )


class _Different(Exception):
    """How outputs differ (``outputs of different shapes``), and what each of them is."""


def _mixed(outputs: Sequence[Any], weights: Sequence[Tensor | None]) -> Any:
    first = outputs[0]
    if all(map(is_float, outputs)):
        if any(output.shape != first.shape for output in outputs):
            raise _Different("outputs of different shapes", [str(tuple(output.shape)) for output in outputs])
        total = None
        for output, weight in zip(outputs, weights):
            scaled = output if weight is None else output * weight.to(output.dtype)
            total = scaled if total is None else total + scaled
        return total
    for container in (dict, (tuple, list)):
        if all(isinstance(output, container) for output in outputs):
            keys = [set(output) if container is dict else len(output) for output in outputs]
            if any(own != keys[0] for own in keys):
                kinds = [f"a {_kind(output)} of {own}" for output, own in zip(outputs, keys)]
                raise _Different("outputs of different shapes", kinds)
            if container is not dict:
                return rebuilt(first, [_mixed(entries, weights) for entries in zip(*outputs)])
            whole = copy.copy(first)
            whole.update({key: _mixed([output[key] for output in outputs], weights) for key in first})
            return whole
    agrees = [_agree(output, first) for output in outputs]
    if all(agrees):
        return first
    found = [_kind(output) for output in outputs]
    if len(set(found)) == 1:
        found = [kind if agree else f"another {kind}" for kind, agree in zip(found, agrees)]
    raise _Different(
        "outputs that differ in what cannot be mixed, which is all but floating-point tensors", found
    )


def _agree(value: Any, first: Any) -> bool:
    """Whether two values are the same; on a GPU two masks that are not one object are waited for."""
    if value is first:
        return True
    if type(value) is not type(first):
        return False
    if isinstance(value, Tensor):
        alike = (value.shape, value.dtype, value.device) == (first.shape, first.dtype, first.device)
        return alike and equal(value, first)
    try:
        return bool(value == first)
    except (ValueError, RuntimeError):  # of arrays, or objects with tensors in them, it is not known
        return False


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__

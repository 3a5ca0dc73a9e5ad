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
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, equal
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError


class Different(Exception):
    """How outputs differ (``outputs of different shapes``), and what each of them is."""


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
    try:
        return mixed(outputs, weights)
    except Different as different:
        difference, found = different.args
        given = ", ".join(f"{name} {output}" for name, output in zip(names, found))
        raise UsageError(f"{owner} {difference} ({given}); {remedy}") from None


def mixed(outputs: Sequence[Any], weights: Sequence[Tensor | None]) -> Any:
    """As :func:`mixture`.

    Raises:
        Different: the shapes differ, or entries that cannot be mixed.
    """
    return outputs[0] if len(outputs) == 1 and weights[0] is None else _mixed(outputs, weights)


def is_float(value: Any) -> bool:
    """Whether a value can be mixed: a tensor of floating-point or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def rebuilt(like: Sequence[Any], entries: Iterable[Any]) -> Any:
    """A tuple or list of the type of another; a named tuple, such as a packed sequence, takes entries one by one."""
    return type(like)(*entries) if hasattr(like, "_fields") else type(like)(entries)


class unchanged:
    """Refuse a candidate that changes its input in place: the others would take the change for their input.

    Args:
        inputs: what the candidate is given: tensors, also in tuples, lists and dicts.
        owner: the candidate, in the words of the error.

    Raises:
        UsageError: a tensor has been written to.
    """

    __slots__ = ("_owner", "_tensors", "_versions")

    def __init__(self, inputs: Any, owner: str) -> None:
        self._owner = owner
        # Tensors of torch's inference mode count no writes; a step of training finds the candidate all the same.
        self._tensors = [t for t in _leaves(inputs) if isinstance(t, Tensor) and not t.is_inference()]

    def __enter__(self) -> None:
        self._versions = [tensor._version for tensor in self._tensors]

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and [tensor._version for tensor in self._tensors] != self._versions:
            raise UsageError(
                f"{self._owner} changes its input in place, which the others get, too; let it make a new tensor "
                "(x = x + y, not x += y)"
            )


def _leaves(inputs: Any) -> Sequence[Any]:
    """What nested inputs hold; the usual ones are found without the general walk, which takes ten times as long."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    args, kwargs = inputs if type(inputs) is tuple and len(inputs) == 2 else (None, None)
    if type(args) is tuple and kwargs == {} and all(isinstance(value, Tensor) for value in args):
        return args
    return tree_leaves(inputs)


def _mixed(outputs: Sequence[Any], weights: Sequence[Tensor | None]) -> Any:
    first = outputs[0]
    if all(map(is_float, outputs)):
        if any(output.shape != first.shape for output in outputs):
            raise Different("outputs of different shapes", [str(tuple(output.shape)) for output in outputs])
        total = _scaled(first, weights[0])
        for output, weight in zip(outputs[1:], weights[1:]):
            total = total + _scaled(output, weight)
        return total
    for container in (dict, (tuple, list)):
        if all(isinstance(output, container) for output in outputs):
            return _mixed_entries(outputs, weights)
    agrees = [_agree(output, first) for output in outputs]
    if all(agrees):
        return first
    found = [_kind(output) for output in outputs]
    if len(set(found)) == 1:
        found = [kind if agree else f"another {kind}" for kind, agree in zip(found, agrees)]
    raise Different(
        "outputs that differ in what cannot be mixed, which is all but floating-point tensors", found
    )


def _mixed_entries(outputs: Sequence[Any], weights: Sequence[Tensor | None]) -> Any:
    first = outputs[0]
    keys = [set(output) if isinstance(output, dict) else len(output) for output in outputs]
    if any(own != keys[0] for own in keys):
        raise Different(
            "outputs of different shapes", [f"a {_kind(o)} of {k}" for o, k in zip(outputs, keys)]
        )
    if not isinstance(first, dict):
        return rebuilt(first, [_mixed(entries, weights) for entries in zip(*outputs)])
    whole = copy.copy(first)
    for key in first:
        whole[key] = _mixed([output[key] for output in outputs], weights)
    return whole


def _scaled(output: Tensor, weight: Tensor | None) -> Tensor:
    return output if weight is None else output * weight.to(output.dtype)


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

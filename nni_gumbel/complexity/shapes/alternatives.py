"""Values of a forward pass that depend on choices: the alternatives, and which network has which.

The shape of a tensor somewhere in a relaxed space may depend on a few labels, say on the widths before it.
Such a tensor is kept as its distinct alternatives, on PyTorch's meta device, and an array that says for every
combination of the labels' outcomes which alternative it is. A number read from it (``x.shape[1] // 2``) is
kept alike. Only where Python needs one plain value, in an ``if`` or a ``range``, is there none, and
:class:`Split` is raised: whoever catches it computes again, once for each alternative.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_gumbel.complexity.table import Table

if TYPE_CHECKING:
    from nni_gumbel.complexity.shapes.joint_values import JointValues

NOWHERE = -1


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Which of several values each network has.

    Args:
        index: whole numbers: position in ``values``; ``NOWHERE`` for combinations that no network has which gets
            to the value.
        values: distinct, at least one; none of them is itself varying.
        interpreter: knows which combinations are possible where the value is used.
    """

    index: Table
    values: Sequence[Any]
    interpreter: JointValues


class Split(Exception):
    """One value is needed where there are several.

    Args:
        index: as in :class:`Alternatives`; the combinations of each number but ``NOWHERE`` are to be computed on
            their own.
    """

    def __init__(self, index: Table) -> None:
        super().__init__(f"a number depends on the choices {', '.join(index.labels)}")
        self.index = index

    def conditions(self) -> list[Table]:
        """1 in the networks of an alternative and 0 in the others, for each of the alternatives."""
        return [self.index.map(partial(_is, number)) for number in numbers_in(self.index)]


def numbers_in(index: Table) -> list[int]:
    """The numbers of an index but ``NOWHERE``, ascending."""
    return [number for number in np.unique(index.values).tolist() if number != NOWHERE]


def _is(number: int, values: np.ndarray) -> np.ndarray:
    return np.int64(values == number)


class VaryingTensor(Tensor):
    """A tensor whose shape depends on choices; functions of it are taken by the interpreter."""

    alternatives: Alternatives

    @classmethod
    def of(cls, alternatives: Alternatives) -> VaryingTensor:
        """The tensor that is one of these meta tensors."""
        tensor = torch.empty(0, device="meta").as_subclass(cls)
        tensor.alternatives = alternatives
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # The interpreter's mode comes first; this is for a function that hides the tensor from it.
        if func in (Tensor.as_subclass, Tensor.__repr__):
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(f"a tensor of varying shape is hidden in an argument of {func}")


class VaryingNumber:
    """A number that depends on choices. Arithmetic gives such numbers again; used as one number, it splits."""

    def __init__(self, alternatives: Alternatives) -> None:
        self.alternatives = alternatives

    def __bool__(self) -> bool:
        return bool(self._only())

    def __int__(self) -> int:
        return int(self._only())

    def __float__(self) -> float:
        return float(self._only())

    def __index__(self) -> int:
        return operator.index(self._only())

    def __hash__(self) -> int:
        return hash(self._only())

    def __str__(self) -> str:
        return str(self._only())

    def _only(self) -> Any:
        return self.alternatives.interpreter.only(self.alternatives)


def _arithmetic(function: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    def method(self: VaryingNumber, *others: Any) -> Any:
        operands = (*others, self) if reflected else (self, *others)
        return self.alternatives.interpreter.evaluate(function, operands, {})

    return method


for _name in "add sub mul floordiv truediv mod pow".split():
    setattr(VaryingNumber, f"__{_name}__", _arithmetic(getattr(operator, _name), reflected=False))
    setattr(VaryingNumber, f"__r{_name}__", _arithmetic(getattr(operator, _name), reflected=True))
for _name in "eq ne lt le gt ge neg abs".split():
    setattr(VaryingNumber, f"__{_name}__", _arithmetic(getattr(operator, _name), reflected=False))


class VaryingShape(tuple):
    """The shape of a varying tensor: entries may be varying numbers."""

    def numel(self) -> Any:
        """The number of elements."""
        return math.prod(self)


def varying_in(value: Any) -> Iterator[Alternatives]:
    """The alternatives of everything in nested tuples, lists and dicts that varies."""
    if isinstance(value, (VaryingTensor, VaryingNumber)):
        yield value.alternatives
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from varying_in(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from varying_in(entry)


def substituted(value: Any, chosen: Mapping[int, Any]) -> Any:
    """A nested value with everything that varies replaced.

    Args:
        value: see :func:`varying_in`.
        chosen: by ``id`` of its :class:`Alternatives`, the value to put there.
    """
    if isinstance(value, (VaryingTensor, VaryingNumber)):
        return chosen[id(value.alternatives)]
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return rebuilt(value, [substituted(entry, chosen) for entry in value])
    if isinstance(value, dict):
        return {key: substituted(entry, chosen) for key, entry in value.items()}
    return value


def rebuilt(like: Any, entries: list[Any]) -> Any:
    """A tuple or a list of the kind of another, with these entries."""
    if isinstance(like, (torch.Size, VaryingShape)):
        varies = any(isinstance(entry, VaryingNumber) for entry in entries)
        return VaryingShape(entries) if varies else torch.Size(entries)
    # A named tuple takes its entries one by one; torch's own return types take them as one sequence.
    return type(like)(*entries) if hasattr(like, "_fields") else type(like)(entries)


def is_number(value: Any) -> bool:
    """Whether it is a plain number or truth value."""
    return isinstance(value, (bool, int, float))

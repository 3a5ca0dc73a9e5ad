"""Values that differ between the networks of a space, computed for all networks at a time.

The shape of a tensor somewhere in a relaxed space may depend on a few labels, say on the widths before it. Such a
tensor is kept as its distinct alternatives, on PyTorch's meta device, and a table that says for every combination of
the labels' outcomes which alternative it is. A number read from it (``x.shape[1] // 2``) is kept alike.
:class:`JointValues` calls a function once for every combination of its arguments' alternatives that some network has,
and runs what differs between networks case by case. Only where Python needs one plain value, in an ``if`` or a
``range``, is there none, and :class:`Split` is raised: whoever catches it computes again, once for each alternative.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nni_gumbel.complexity.table import ONE, Refusal, Table, combined

_NOWHERE = -1

Case = tuple[Table, Callable[[], Any]]


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Which of several values each network has.

    Args:
        index: position in ``values``; -1 for combinations that no network has which gets to the value.
        values: distinct, at least one; none of them is itself varying.
        owner: knows which combinations are possible where the value is used.
    """

    index: Table
    values: Sequence[Any]
    owner: JointValues

    def numbers(self) -> Table:
        """The values, which are numbers, as a table; 0 where no network gets to."""
        numbers = np.array([*self.values, 0])  # the last is that of -1
        return self.index.map(lambda index: numbers[index])


class Split(Exception):
    """One value is needed where there are several.

    Args:
        index: a number from 0 on for each set of networks that is to be computed on its own, else -1.
    """

    def __init__(self, index: Table) -> None:
        super().__init__(f"a number depends on the choices {', '.join(index.labels)}")
        self._index = index

    def conditions(self) -> list[Table]:
        """1 in the networks of such a set and 0 in the others, for each of the sets."""
        return [self._index.equals(number) for number in range(int(self._index.values.max()) + 1)]


class VaryingTensor(Tensor):
    """A tensor whose shape depends on choices; functions of it are taken by :class:`JointValues`."""

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
        # The mode comes first; this is for a function that hides the tensor from it.
        if func in (Tensor.as_subclass, Tensor.__repr__):
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(f"a tensor of varying shape is hidden in an argument of {func}")


class VaryingNumber:
    """A number that depends on choices. Arithmetic gives such numbers again; used as one number, it splits."""

    def __init__(self, alternatives: Alternatives) -> None:
        self.alternatives = alternatives


def _arithmetic(function: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    def method(self: VaryingNumber, *others: Any) -> Any:
        operands = (*others, self) if reflected else (self, *others)
        return self.alternatives.owner.evaluate(function, operands, {})

    return method


def _as_one(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: function(self.alternatives.owner.only(self.alternatives))


for _name in "add sub mul floordiv truediv mod pow".split():
    setattr(VaryingNumber, f"__{_name}__", _arithmetic(getattr(operator, _name), reflected=False))
    setattr(VaryingNumber, f"__r{_name}__", _arithmetic(getattr(operator, _name), reflected=True))
for _name in "eq ne lt le gt ge neg abs".split():
    setattr(VaryingNumber, f"__{_name}__", _arithmetic(getattr(operator, _name), reflected=False))
for _function in (bool, int, float, operator.index, hash, str):
    setattr(VaryingNumber, f"__{_function.__name__}__", _as_one(_function))

_NUMBERS = (VaryingNumber, bool, int, float, str)


class VaryingShape(tuple):
    """The shape of a varying tensor: entries may be varying numbers."""

    def numel(self) -> Any:
        """The number of elements."""
        return math.prod(self)


class JointValues(TorchFunctionMode):
    """See the module; while it is entered, functions of torch take what varies.

    Args:
        refusal: the error where a value depends on too many combinations of choices.
        most: how many it may depend on, a million if omitted.

    Attributes:
        presence: 1 in the networks that run what is being run.
        unanswered: the latest question for one value where there are several.
        functions: how many functions of torch have been called.
    """

    def __init__(self, refusal: Refusal, most: int | None = None) -> None:
        super().__init__()
        self.presence = ONE
        self.unanswered: Split | None = None
        self.functions = 0
        self._refusal, self._most = refusal, most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.functions += 1
        return self.evaluate(func, args, kwargs or {})

    def evaluate(self, function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """A function of values that vary: called once for each combination that some network has."""
        found = list({id(one): one for one in _varying_in((args, kwargs))}.values())
        if not found:
            return function(*args, **kwargs)
        index, combinations = self._combinations(found)
        outputs = []
        for places in combinations:
            chosen = {id(one): one.values[place] for one, place in zip(found, places)}
            these, named = _replaced(lambda one, chosen=chosen: chosen[id(one)], (args, dict(kwargs)))
            outputs.append(function(*these, **named))
        return self._merged(index, outputs)

    def only(self, alternatives: Alternatives) -> Any:
        """The one value that there is in the networks that run what is being run.

        Raises:
            Split: there are several.
        """
        index, ((place,), *others) = self._combinations([alternatives])
        if others:
            self.unanswered = Split(index)
            raise self.unanswered
        return alternatives.values[place]

    def cases(self, cases: Iterable[Case]) -> Any:
        """Run each case in the networks where its condition holds; the conditions exclude each other."""
        conditions, outputs = [], []
        for condition, run in cases:
            with self.where(condition) as possible:
                if possible:
                    outputs.append(run())
                    conditions.append(condition)

        def number(possible: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
            return _first_that_holds([(c != 0) & (possible != 0) for c in conditions], range(len(conditions)))

        return self._merged(self._combined(number, conditions), outputs)

    @contextmanager
    def where(self, condition: Table) -> Iterator[bool]:
        """Run the body in fewer networks; gives whether there are any."""
        outer = self.presence
        self.presence = combined(np.multiply, [outer, condition], self._refusal, self._most)
        try:
            yield bool(self.presence.values.any())
        finally:
            self.presence = outer

    def _combined(self, function: Callable[..., np.ndarray], tables: Sequence[Table]) -> Table:
        """A function of what some networks have that run what is being run: not 0 for these, then the tables."""
        labels = {label for table in tables for label in table.labels}
        possible = self.presence.largest_over(set(self.presence.labels) - labels)
        return combined(function, [possible, *tables], self._refusal, self._most)

    def _combinations(self, found: Sequence[Alternatives]) -> tuple[Table, list[tuple[int, ...]]]:
        """The combinations of alternatives that some networks have, each as places in their values.

        Before them the number of the combination that a network has, -1 where no network gets to.
        """
        combinations: list[tuple[int, ...]] = [()]

        def number(possible: np.ndarray, *several: np.ndarray) -> np.ndarray:
            is_possible, *places = np.broadcast_arrays(possible != 0, *several)
            codes = np.zeros(np.count_nonzero(is_possible), dtype=np.int64)
            for alternatives, place in zip(found, places):
                those, size = place[is_possible], len(alternatives.values)
                if (those == _NOWHERE).any():
                    raise RuntimeError("a value is used in networks that do not compute it")
                # Numbered anew each time: there are few combinations, and products of many would overflow.
                distinct, codes = np.unique(codes * size + those, return_inverse=True)
                combinations[:] = [(*combinations[code // size], code % size) for code in distinct.tolist()]
            numbers = np.full(is_possible.shape, _NOWHERE)
            numbers[is_possible] = codes
            return numbers

        index = self._combined(number, [alternatives.index for alternatives in found])
        return index, combinations

    def _merged(self, index: Table, outputs: Sequence[Any]) -> Any:
        """One value that is ``outputs[index]`` in each network; entry by entry, if all are alike."""
        first = outputs[0]
        if len(outputs) == 1:
            return first
        if all(isinstance(output, Tensor) for output in outputs):
            return self._merged_entries(index, outputs, VaryingTensor.of)
        if all(isinstance(output, _NUMBERS) for output in outputs):
            return self._merged_entries(index, outputs, VaryingNumber)
        if isinstance(first, (tuple, list)) and all(isinstance(o, (tuple, list)) for o in outputs):
            if all(len(output) == len(first) for output in outputs):
                return _rebuilt(first, [self._merged(index, entries) for entries in zip(*outputs)])
        elif isinstance(first, dict) and all(
            isinstance(o, dict) and o.keys() == first.keys() for o in outputs
        ):
            return {key: self._merged(index, [output[key] for output in outputs]) for key in first}
        elif all(type(output) is type(first) and output == first for output in outputs):
            return first
        raise Split(index)

    def _merged_entries(
        self, index: Table, outputs: Sequence[Any], varying: Callable[[Alternatives], Any]
    ) -> Any:
        """As :meth:`_merged` for tensors or numbers, without the labels that the result does not depend on."""
        places: dict[Any, int] = {}  # by what tells values apart
        values: list[Any] = []
        inside: list[Table] = []  # of each output, which of these values it is
        for output in outputs:
            own = getattr(output, "alternatives", None) or Alternatives(_ALWAYS_FIRST, [output], self)
            numbers = []
            for value in own.values:
                numbers.append(places.setdefault(identity(value), len(values)))
                if len(places) > len(values):
                    values.append(value)
            inside.append(_renumbered(own.index, numbers))

        def merge(place: np.ndarray, *inside: np.ndarray) -> np.ndarray:
            return _first_that_holds([place == number for number in range(len(inside))], inside)

        merged = _without_idle_labels(combined(merge, [index, *inside], self._refusal, self._most))
        used = [number for number in np.unique(merged.values).tolist() if number != _NOWHERE]
        if len(used) == 1:
            return values[used[0]]
        numbers = np.zeros(len(values), dtype=np.int64)
        numbers[used] = range(len(used))
        return varying(Alternatives(_renumbered(merged, numbers), [values[number] for number in used], self))


def identity(value: Any) -> Any:
    """Equal for what is alike: tensors of one shape and dtype, equal numbers of one type."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value), value)


_ALWAYS_FIRST = Table.of((), 0)


def _first_that_holds(conditions: Sequence[np.ndarray], values: Sequence[Any]) -> np.ndarray:
    """In each place the value whose condition holds there, or -1; the conditions exclude each other."""
    result = np.full((), _NOWHERE)
    for condition, value in zip(conditions, values):
        result = np.where(condition, value, result)
    return result


def _renumbered(index: Table, numbers: Sequence[int]) -> Table:
    new = np.append(np.asarray(numbers, dtype=np.int64), _NOWHERE)  # the last is that of -1
    return index.map(lambda values: new[values])


def _without_idle_labels(index: Table) -> Table:
    """Drop the labels that change nothing wherever there is something."""
    for label in reversed(index.labels):
        if label in index.labels:
            largest = index.values.max(axis=index.labels.index(label), keepdims=True)
            if ((index.values == largest) | (index.values == _NOWHERE)).all():
                index = index.largest_over([label])
    return index


def _varying_in(value: Any) -> Iterator[Alternatives]:
    """The alternatives of everything in nested tuples, lists and dicts that varies."""
    if isinstance(value, (VaryingTensor, VaryingNumber)):
        yield value.alternatives
    elif isinstance(value, (tuple, list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _varying_in(entry)


def _replaced(function: Callable[[Alternatives], Any], value: Any) -> Any:
    """A nested value with a function of the alternatives in the place of everything that varies."""
    if isinstance(value, (VaryingTensor, VaryingNumber)):
        return function(value.alternatives)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return _rebuilt(value, [_replaced(function, entry) for entry in value])
    if isinstance(value, dict):
        return {key: _replaced(function, entry) for key, entry in value.items()}
    return value


def _rebuilt(like: Any, entries: list[Any]) -> Any:
    """A tuple or a list of the kind of another, with these entries."""
    if isinstance(like, (torch.Size, VaryingShape)):
        varies = any(isinstance(entry, VaryingNumber) for entry in entries)
        return VaryingShape(entries) if varies else torch.Size(entries)
    # A named tuple takes its entries one by one; torch's own return types take them as one sequence.
    return type(like)(*entries) if hasattr(like, "_fields") else type(like)(entries)

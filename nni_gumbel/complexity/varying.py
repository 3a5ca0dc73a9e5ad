"""Values that differ between the networks of a space, computed for all networks at a time.

The shape of a tensor somewhere in a relaxed space may depend on a few labels, say on the widths before it. All values
that occur, numbers and shapes of tensors, stand in one list; what a tensor or a number is in each network is a table of
places in that list. :class:`JointValues` calls a function once for every combination of its arguments' values that some
network has, and runs what differs between networks case by case. Only where Python needs one plain value, in an ``if``
or a ``range``, is there none, and :class:`Split` is raised: whoever catches it computes again, once for each value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from nni_gumbel.complexity.table import ONE, Table, combined

# The place of a value in networks that do not compute it.
_NOWHERE = -1


class Split(Exception):
    """One value is needed where there are several: a number from 0 on for each set of networks, else -1."""

    def __init__(self, index: Table) -> None:
        super().__init__(f"a number depends on the choices {', '.join(index.labels)}")
        self._index = index

    def conditions(self) -> list[Table]:
        """1 in the networks of a set and 0 in the others, for each of the sets."""
        return [self._index.equals(number) for number in range(int(self._index.values.max()) + 1)]


class VaryingTensor(Tensor):
    """A tensor whose shape depends on choices; functions of it are taken by :class:`JointValues`."""

    index: Table

    @classmethod
    def of(cls, index: Table) -> VaryingTensor:
        """The tensor whose shapes have these places."""
        tensor = torch.empty(0, device="meta").as_subclass(cls)
        tensor.index = index
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

    def __init__(self, index: Table, owner: JointValues) -> None:
        self.index, self.owner = index, owner


def _arithmetic(function: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    def method(self: VaryingNumber, *others: Any) -> Any:
        return self.owner.evaluate(function, (*others, self) if reflected else (self, *others), {})

    return method


for _name in "add sub mul floordiv truediv mod pow eq ne lt le gt ge neg abs".split():
    setattr(VaryingNumber, f"__{_name}__", _arithmetic(getattr(operator, _name), reflected=False))
for _name in "add sub mul floordiv truediv mod pow".split():
    setattr(VaryingNumber, f"__r{_name}__", _arithmetic(getattr(operator, _name), reflected=True))
for _function in (bool, int, float, operator.index, hash, str):
    setattr(VaryingNumber, f"__{_function.__name__}__", lambda self, f=_function: f(self.owner.only(self)))

_VARYING = (VaryingTensor, VaryingNumber)
_NUMBERS = (VaryingNumber, bool, int, float, str)


class JointValues(TorchFunctionMode):
    """See the module; while it is entered, functions of torch take what varies.

    Attributes:
        presence: 1 in the networks that run what is being run.
        unanswered: the latest question for one value where there are several.
        functions: how many functions of torch have been called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.presence, self.functions = ONE, 0
        self.unanswered: Split | None = None
        self._keys: list[Any] = []  # all different values, as `kind_of` has them
        self._places: dict[Any, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.functions += 1
        return self.evaluate(func, args, kwargs or {})

    def numbers(self, number: VaryingNumber) -> Table:
        """The number in each network; 0 where no network gets to."""

        def at(index: np.ndarray) -> np.ndarray:
            places, inverse = np.unique(index, return_inverse=True)
            values = [0 if place == _NOWHERE else self._value(place) for place in places.tolist()]
            return np.array(values)[inverse].reshape(index.shape)

        return number.index.map(at)

    def evaluate(self, function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """A function of values that vary: called once for each combination that some network has."""
        leaves, structure = tree_flatten((args, dict(kwargs)))
        varying = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, _VARYING)}.values())
        if not varying:
            return function(*args, **kwargs)
        code, combinations = self._combinations([one.index for one in varying])
        inputs = [[self._value(place) for place in places] for places in combinations]
        outputs = []
        for values in inputs:
            given = {id(one): value for one, value in zip(varying, values)}
            these, named = tree_unflatten([given.get(id(leaf), leaf) for leaf in leaves], structure)
            outputs.append(function(*these, **named))
        for one, places, values in zip(varying, zip(*combinations), zip(*inputs)):
            if any(kind_of(value) != self._keys[place] for place, value in zip(places, values)):
                one.index = self._selected(code, values)  # unsqueeze_ and the like have changed the shape
        return self._merged(code, outputs)

    def only(self, number: VaryingNumber) -> Any:
        """The one value that there is in the networks that run what is being run; else a :class:`Split`."""
        code, ((place,), *others) = self._combinations([number.index])
        if others:
            self.unanswered = Split(code)
            raise self.unanswered
        return self._value(place)

    def cases(self, cases: Iterable[tuple[Table, Callable[[], Any]]]) -> Any:
        """Run each case in the networks where its condition holds; the conditions exclude each other."""
        conditions, outputs = [], []
        for condition, run in cases:
            with self.where(condition) as possible:
                if possible:
                    outputs.append(run())
                    conditions.append(condition)

        def number(possible: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
            holds = [(condition != 0) & (possible != 0) for condition in conditions]
            return np.select(holds, range(len(holds)), _NOWHERE)

        return self._merged(self._combined(number, conditions), outputs)

    @contextmanager
    def where(self, condition: Table) -> Iterator[bool]:
        """Run the body in fewer networks; gives whether there are any."""
        outer = self.presence
        self.presence = outer * condition
        try:
            yield bool(self.presence.values.any())
        finally:
            self.presence = outer

    def _value(self, place: int) -> Any:
        kind, value = self._keys[place]
        return torch.empty(value, dtype=kind, device="meta") if isinstance(kind, torch.dtype) else value

    def _place(self, value: Any) -> int:
        key = kind_of(value)
        if key not in self._places:
            self._places[key] = len(self._keys)
            self._keys.append(key)
        return self._places[key]

    def _combined(self, function: Callable[..., np.ndarray], tables: Sequence[Table]) -> Table:
        """A function of what some networks have that run what is being run: not 0 for these, then the tables."""
        labels = {label for table in tables for label in table.labels}
        possible = self.presence.largest_over(set(self.presence.labels) - labels)
        return combined(function, [possible, *tables])

    def _combinations(self, indices: Sequence[Table]) -> tuple[Table, list[tuple[int, ...]]]:
        """The number of the combination of places that a network has, or -1; and the combinations that there are."""
        combinations: list[tuple[int, ...]] = []

        def number(possible: np.ndarray, *several: np.ndarray) -> np.ndarray:
            is_possible, *several = np.broadcast_arrays(possible != 0, *several)
            places = np.stack([some[is_possible] for some in several])
            if (places == _NOWHERE).any():
                raise RuntimeError("a value is used in networks that do not compute it")
            distinct, codes = np.unique(places, axis=1, return_inverse=True)
            combinations.extend(zip(*distinct.tolist()))
            numbers = np.full(is_possible.shape, _NOWHERE)
            numbers[is_possible] = codes.reshape(-1)
            return numbers

        return self._combined(number, indices), combinations

    def _merged(self, code: Table, outputs: Sequence[Any]) -> Any:
        """One value that is ``outputs[code]`` in each network; entry by entry, if all are alike."""
        if len(outputs) == 1:
            return outputs[0]
        trees = [tree_flatten(tuple(o) if isinstance(o, torch.Size) else o) for o in outputs]
        structure = trees[0][1]
        if any(other != structure for _, other in trees):
            raise Split(code)
        entries = zip(*(leaves for leaves, _ in trees))
        return tree_unflatten([self._merged_entry(code, several) for several in entries], structure)

    def _merged_entry(self, code: Table, outputs: Sequence[Any]) -> Any:
        are_tensors = all(isinstance(output, Tensor) for output in outputs)
        if not are_tensors and not all(isinstance(output, _NUMBERS) for output in outputs):
            if all(type(output) is type(outputs[0]) and output == outputs[0] for output in outputs):
                return outputs[0]
            raise Split(code)
        index = self._selected(code, outputs)
        places = np.unique(index.values[index.values != _NOWHERE]).tolist()
        if len(places) == 1:
            return self._value(places[0])
        return VaryingTensor.of(index) if are_tensors else VaryingNumber(index, self)

    def _selected(self, code: Table, outputs: Sequence[Any]) -> Table:
        """The place of ``outputs[code]``, without the labels that it does not depend on where it is computed."""
        inside = [o.index if isinstance(o, _VARYING) else Table.of((), self._place(o)) for o in outputs]

        def select(code: np.ndarray, *inside: np.ndarray) -> np.ndarray:
            return np.select([code == number for number in range(len(inside))], inside, _NOWHERE)

        index = combined(select, [code, *inside])
        for label in reversed(index.labels):
            if label in index.labels:
                largest = index.values.max(axis=index.labels.index(label), keepdims=True)
                if ((index.values == largest) | (index.values == _NOWHERE)).all():
                    index = index.largest_over([label])
        return index


def kind_of(value: Any) -> tuple[Any, Any]:
    """Equal for what is alike: tensors of one shape and dtype, equal numbers of one type."""
    return (value.dtype, value.shape) if isinstance(value, Tensor) else (type(value), value)

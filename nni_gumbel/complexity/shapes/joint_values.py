"""Values that depend on choices, computed for all networks at a time.

:class:`JointValues` knows which networks run what is being run. It calls a function once for every combination of
its arguments' alternatives that some of them have, and it runs what differs between networks case by case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nni_gumbel.complexity.shapes.alternatives import (
    NOWHERE,
    Alternatives,
    Split,
    VaryingNumber,
    VaryingTensor,
    is_number,
    numbers_in,
    rebuilt,
    substituted,
    varying_in,
)
from nni_gumbel.complexity.table import MOST_COMBINATIONS, ONE, Table, combined
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution

# Outcomes of one label that are told apart: the subsets of 14 inputs. What depends on one label alone must be added up
# over all of them at every step.
MOST_OUTCOMES = 20_000

Case = tuple[Table, Callable[[], Any]]


class JointValues(TorchFunctionMode):
    """See the module; while it is entered, functions of torch take what varies.

    Args:
        distribution: whose laws list the outcomes of every label.
        what: is computed, in the words of errors.

    Attributes:
        presence: 1 in the networks that run what is being run.
        unanswered: the latest question for one value where there are several.
        functions: how many functions of torch have been called.
        path: names of the modules that are being run, the innermost last.
    """

    def __init__(self, distribution: Distribution, what: str) -> None:
        super().__init__()
        self.presence = ONE
        self.unanswered: Split | None = None
        self.functions = 0
        self.path: list[str] = []
        self._what = what
        self._laws = distribution.laws
        self._sets: dict[str, list[tuple[int, ...]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.functions += 1
        return self.evaluate(func, args, kwargs or {})

    def evaluate(self, function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """A function of values that vary: called once for each combination that some network has."""
        found = list({id(a): a for a in varying_in((args, kwargs))}.values())
        if not found:
            return function(*args, **kwargs)
        code, combinations = self._joint_code(found)
        outputs, places = [], {}
        for number in numbers_in(code):
            places[number] = len(outputs)
            chosen = {id(a): a.values[place] for a, place in zip(found, combinations[number])}
            outputs.append(function(*substituted(args, chosen), **substituted(kwargs, chosen)))
        return self._merged(_renumbered(code, places), outputs)

    def only(self, alternatives: Alternatives) -> Any:
        """The one value that there is in the networks that run what is being run.

        Raises:
            Split: there are several.
        """
        code, combinations = self._joint_code([alternatives])
        first, *others = numbers_in(code)
        if others:
            self.unanswered = Split(code)
            raise self.unanswered
        return alternatives.values[combinations[first][0]]

    def _joint_code(self, found: Sequence[Alternatives]) -> tuple[Table, list[tuple[int, ...]]]:
        """One number for each combination of alternatives, ``NOWHERE`` where no network gets to.

        With it, by number, the place of each of the alternatives in its values.
        """
        combinations: list[tuple[int, ...]] = [()]

        def code(possible: np.ndarray, *several: np.ndarray) -> np.ndarray:
            nonlocal combinations
            joint = np.zeros((), dtype=np.int64)
            for alternatives, index in zip(found, several):
                if ((index == NOWHERE) & (possible != 0)).any():
                    raise RuntimeError("a value is used in networks that do not compute it")
                size = len(alternatives.values)
                # Numbered anew each time: there are few combinations, and products of many would overflow.
                pairs = joint * size + np.maximum(index, 0)
                distinct, joint = np.unique(pairs, return_inverse=True)
                joint = joint.reshape(pairs.shape)
                combinations = [(*combinations[pair // size], pair % size) for pair in distinct.tolist()]
            return np.where(possible != 0, joint, NOWHERE)

        return self._combined(code, [alternatives.index for alternatives in found]), combinations

    def _merged(self, index: Table, outputs: Sequence[Any]) -> Any:
        """One value that is ``outputs[index]`` in each network; entry by entry, if all are alike."""
        first = outputs[0]
        if len(outputs) == 1:
            return first
        if all(isinstance(output, (Tensor, VaryingTensor)) for output in outputs):
            return self._merged_entries(index, outputs, VaryingTensor.of)
        if all(isinstance(output, VaryingNumber) or is_number(output) for output in outputs):
            return self._merged_entries(index, outputs, VaryingNumber)
        if isinstance(first, (tuple, list)) and all(isinstance(o, (tuple, list)) for o in outputs):
            if all(len(output) == len(first) for output in outputs):
                return rebuilt(first, [self._merged(index, entries) for entries in zip(*outputs)])
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
        values: dict[Any, int] = {}
        kept: list[Any] = []
        inside: list[Table] = []  # of each output, the positions of its values in `kept`
        for output in outputs:
            alternatives = next(varying_in(output), None)
            numbers = []
            for value in [output] if alternatives is None else alternatives.values:
                numbers.append(values.setdefault(identity(value), len(values)))
                if len(values) > len(kept):
                    kept.append(value)
            inside.append(
                Table.of((), numbers[0])
                if alternatives is None
                else _renumbered(alternatives.index, dict(enumerate(numbers)))
            )

        def merge(place: np.ndarray, *inside: np.ndarray) -> np.ndarray:
            return _first_that_holds([place == number for number in range(len(inside))], inside)

        merged = _without_idle_labels(combined(merge, [index, *inside], self._refusal))
        used = numbers_in(merged)
        if len(used) == 1:
            return kept[used[0]]
        places = {number: place for place, number in enumerate(used)}
        return varying(Alternatives(_renumbered(merged, places), [kept[number] for number in used], self))

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
        self.presence = combined(np.multiply, [outer, condition], self._refusal)
        try:
            yield bool(self.presence.values.any())
        finally:
            self.presence = outer

    def chosen(self, label: str, candidate: int) -> Table:
        """1 in the networks that choose a candidate, and others beside it if the label chooses several."""
        chosen = [outcome for outcome, members in enumerate(self.sets(label)) if candidate in members]
        return self.outcomes(label, chosen)

    def outcomes(self, label: str, outcomes: list[int]) -> Table:
        """1 in the networks where a label has one of these outcomes."""
        values = np.zeros(self._laws[label].outcomes, dtype=np.int64)
        values[outcomes] = 1
        return Table.of((label,), values)

    def any_set(self, label: str) -> tuple[int, ...]:
        """One of the outcomes of a label."""
        return next(self._laws[label].sets())

    def sets(self, label: str) -> list[tuple[int, ...]]:
        """The outcomes of a label, as :meth:`Law.sets <nni_gumbel.relaxation.law.Law.sets>` lists them.

        Raises:
            UsageError: there are too many to tell them apart.
        """
        if label not in self._sets:
            number = self._laws[label].outcomes
            if number > MOST_OUTCOMES:
                raise UsageError(
                    f"choice {label!r}: its {number:,} sets of inputs lead to different {self._what} (at most "
                    f"{MOST_OUTCOMES:,} can be told apart); give it inputs of one shape, fewer of them or an n_chosen"
                )
            self._sets[label] = list(self._laws[label].sets())
        return self._sets[label]

    def _combined(self, function: Callable[..., np.ndarray], tables: Sequence[Table]) -> Table:
        """A function of what some networks have that run what is being run: not 0 for these, then the tables."""
        labels = {label for table in tables for label in table.labels}
        possible = self.presence.largest_over(set(self.presence.labels) - labels)
        return combined(function, [possible, *tables], self._refusal)

    def _refusal(self, labels: Sequence[str], combinations: int) -> UsageError:
        return UsageError(
            f"module {self.path[-1]!r}: its {self._what} depend on {combinations:,} "
            f"combinations of the choices {', '.join(map(repr, labels))}; let fewer choices meet there (at most "
            f"{MOST_COMBINATIONS:,} combinations)"
        )


def _first_that_holds(conditions: Sequence[np.ndarray], values: Sequence[Any]) -> np.ndarray:
    """In each place the value whose condition holds there, or ``NOWHERE``; they exclude each other."""
    result = np.full((), NOWHERE)
    for condition, value in zip(conditions, values):
        result = np.where(condition, value, result)
    return result


def _renumbered(index: Table, numbers: Mapping[int, int]) -> Table:
    new = np.full(max(numbers) + 2, NOWHERE)  # the last is that of NOWHERE
    new[list(numbers)] = list(numbers.values())
    return index.map(lambda values: new[values])


def _without_idle_labels(index: Table) -> Table:
    """Drop the labels that change nothing wherever there is something."""
    for label in reversed(index.labels):
        if label in index.labels:
            largest = index.values.max(axis=index.labels.index(label), keepdims=True)
            if ((index.values == largest) | (index.values == NOWHERE)).all():
                index = index.largest_over([label])
    return index


def identity(value: Any) -> Any:
    """Equal for what is alike: tensors of one shape and dtype, equal numbers of one type."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value), value)

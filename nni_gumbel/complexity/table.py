"""Numbers that depend on choices: one axis per label.

A count that depends on a few choices is written down for every combination of them; its expectation
under independent labels is the table contracted with one vector of probabilities per axis. A label that
occurs twice in a product of tables is one axis, which is what makes shared labels exact.

The outcomes of a label are those of its law, as :meth:`Distribution.outcome_probs
<nni_gumbel.supernet.distribution.Distribution.outcome_probs>` lists them: the candidates of a choice of one. Most
numbers tell few of them apart: whether a node of a cell is taken by another one is a matter of two classes, however
many inputs that one may choose from. So an axis has one entry for each class of outcomes, and two outcomes are of one
class exactly if they are alike in all combinations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import Condition

MOST_COMBINATIONS = 1_000_000

# Tables that are added up in one step: all of them are in memory then, over the classes of their sum.
_AT_ONCE = 16


class TooManyCombinations(UsageError):
    """A table of ``labels`` has a ``number`` of combinations of classes that is more than may be."""

    def __init__(self, labels: Sequence[str], number: int) -> None:
        self.labels, self.number = labels, number
        super().__init__(
            f"choices {', '.join(labels)}: a term of the cost depends on {number:,} combinations of them; "
            f"nest fewer choices (at most {MOST_COMBINATIONS:,} combinations)"
        )


@dataclass(frozen=True, eq=False)
class Table:
    """A number for every combination of outcomes; made by :meth:`of` and by arithmetic, which keep it reduced.

    Args:
        labels: what it depends on, sorted, each once.
        values: one axis per label over its classes, at least two; no two slices along an axis are equal.
        classes: per label, of every outcome its class: integers, numbered by first appearance.
    """

    labels: tuple[str, ...]
    values: np.ndarray
    classes: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, labels: Sequence[str], values: Any) -> Table:
        """Of labels in any order, and values with one axis per label, over all its outcomes."""
        order = sorted(range(len(labels)), key=lambda axis: labels[axis])
        values = np.transpose(np.asarray(values), order)
        return _reduced([labels[axis] for axis in order], values, [np.arange(n) for n in values.shape])

    def at(self, outcomes: Mapping[str, Any]) -> Any:
        """The number at outcomes of the labels: an index each, or arrays of them, all of one shape.

        Raises:
            UsageError: a label is missing and the number depends on it. That of a choice inside a candidate that is not
                taken may be missing.
        """
        missing = [label for label in self.labels if label not in outcomes]
        numbers = self.values[
            tuple(
                slice(None) if label in missing else classes[outcomes[label]]
                for label, classes in zip(self.labels, self.classes)
            )
        ]
        for axis, label in enumerate(missing):
            if (numbers != numbers.take([0], axis=axis)).any():
                raise UsageError(
                    f"choice {label!r}: the cost depends on it and the sample does not name it; give its value"
                )
        return numbers.flat[0] if missing else numbers

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Table:
        """An elementwise function of the numbers."""
        return _reduced(self.labels, np.asarray(function(self.values)), self.classes)

    def equals(self, number: Any) -> Table:
        """1 where it is this number and 0 elsewhere."""
        return self.map(lambda values: np.int64(values == number))

    def largest_over(self, others: Collection[str]) -> Table:
        """The largest number over all outcomes of some labels, in every combination of the others."""
        axes = tuple(axis for axis, label in enumerate(self.labels) if label in others)
        return self._without(axes, self.values.max(axis=axes))

    def summed_over(self, label: str, outcomes: int) -> Table:
        """The sum over all outcomes of a label, of which there are so many, in every combination of the others."""
        if label not in self.labels:
            return self * outcomes
        axis = self.labels.index(label)
        numbers = np.bincount(self.classes[axis]).reshape(-1, *[1] * (self.values.ndim - axis - 1))
        return self._without((axis,), (self.values * numbers).sum(axis))

    def _without(self, axes: tuple[int, ...], values: Any) -> Table:
        kept = [axis for axis in range(len(self.labels)) if axis not in axes]
        return _reduced(
            [self.labels[axis] for axis in kept], np.asarray(values), [self.classes[axis] for axis in kept]
        )

    def __mul__(self, other: Table | float) -> Table:
        if not isinstance(other, Table):
            return self if other == 1 else self.map(lambda values: values * other)
        if not other.labels:
            return self * other.values.item()
        return combined(np.multiply, (self, other)) if self.labels else other * self.values.item()

    def __add__(self, other: Table) -> Table:
        return combined(np.add, (self, other))

    def __neg__(self) -> Table:
        return self.map(np.negative)


class ExpectedSum:
    """The expectation of a sum of tables under independent labels; differentiable.

    Attributes:
        tables: of the sum, one for each set of labels.
        labels: all labels that it depends on.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = tuple(added_up(tables))
        self.labels = tuple(dict.fromkeys(label for table in self.tables for label in table.labels))
        # float64: counts stay exact integers up to 2^53.
        self._values = [torch.from_numpy(table.values.astype(np.float64)) for table in self.tables]
        self._classes = [[torch.from_numpy(classes) for classes in table.classes] for table in self.tables]

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Scalar: ``sum_t sum_z t(z) prod_label P(z_label)``, added up in float64, in the dtype of the probabilities.

        Args:
            probabilities: per label the probabilities of its outcomes, on the simplex, float; at least one label.
        """
        first = next(iter(probabilities.values()))
        self._move_to(first.device)
        double = {label: probabilities[label].double() for label in self.labels}
        total = torch.zeros((), dtype=torch.float64, device=first.device)
        for table, values, classes in zip(self.tables, self._values, self._classes):
            for label, of_outcome in zip(table.labels, classes):
                probability = double[label].new_zeros(len(values)).index_add(0, of_outcome, double[label])
                # Not a matrix product, which autocast would lower to half precision.
                values = (probability.view(-1, *[1] * (values.dim() - 1)) * values).sum(dim=0)
            total = total + values
        return total.to(first.dtype)

    def at(self, outcomes: Mapping[str, Any]) -> Any:
        """The sum for one network, a float, or for many: see :meth:`Table.at`."""
        total = sum((table.at(outcomes) for table in self.tables), np.float64(0))
        return total if total.ndim else float(total)

    def _move_to(self, device: torch.device) -> None:
        if self._values and self._values[0].device != device:
            with torch.inference_mode(False):  # autograd would refuse a kept tensor that was made in it
                self._values = [values.to(device) for values in self._values]
                self._classes = [[one.to(device) for one in classes] for classes in self._classes]


def cost_of(distribution: Distribution, cost: ExpectedSum, sample: Mapping[str, Any]) -> float:
    """What one network costs, exactly: an NNI sample that names at least the labels that the network uses.

    Raises:
        UsageError: the sample lacks a label on which the cost of the network depends.
    """
    labels = set(cost.labels) & set(sample)
    return cost.at({label: distribution.outcome_index(label, sample[label]) for label in labels})


def combined(function: Callable[..., np.ndarray], tables: Sequence[Table]) -> Table:
    """An elementwise function of the numbers of several tables, in every combination of outcomes.

    Args:
        function: takes an array of each table; they broadcast against each other.
        tables: at least one.

    Raises:
        TooManyCombinations: there are more than a million.
    """
    found: dict[str, list[np.ndarray]] = {}
    for table in tables:
        for label, classes in zip(table.labels, table.classes):
            found.setdefault(label, []).append(classes)
    labels = tuple(sorted(found))
    joint = {label: _joint_classes(found[label]) for label in labels}
    firsts = {label: places for label, (_, places) in joint.items()}
    sizes = [len(firsts[label]) for label in labels]
    if math.prod(sizes) > MOST_COMBINATIONS:
        raise TooManyCombinations(labels, math.prod(sizes))
    values = np.asarray(function(*(_spread(table, labels, firsts) for table in tables)))
    return _reduced(labels, np.broadcast_to(values, sizes), [joint[label][0] for label in labels])


def added_up(tables: Iterable[Table]) -> list[Table]:
    """Fewer tables of the same sum, one for each set of labels."""
    groups: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        groups.setdefault(table.labels, []).append(table)
    sums: dict[tuple[str, ...], Table] = {}
    for labels in list(groups):
        # Many at a time: a space has tens of thousands of layers, which depend on the same few labels.
        for first in range(0, len(groups[labels]), _AT_ONCE):
            some = groups[labels][first : first + _AT_ONCE]
            # A sum may depend on less than what is added up; there may be a table of that, too.
            while (known := sums.pop(some[0].labels, None)) is not None or len(some) > 1:
                some = [combined(_sum, some if known is None else [*some, known])]
            sums[some[0].labels] = some[0]
    return list(sums.values())


def elementwise_maximum(tables: Sequence[Table]) -> Table:
    """The largest of several numbers in every combination of what they depend on."""
    return tables[0] if len(tables) == 1 else combined(lambda *values: reduce(np.maximum, values), tables)


def where(condition: Condition | None) -> Table:
    """1 in the networks that meet a condition and 0 in the others; ``None`` is met by all."""
    return ONE if condition is None else Table.of(condition.labels, condition.holds.astype(np.int64))


def _sum(*values: np.ndarray) -> np.ndarray:
    return reduce(np.add, values)


def _joint_classes(several: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The coarsest classes that tell apart what any of several does, and the first outcome of each class."""
    different = list({id(classes): classes for classes in several}.values())
    if len(different) == 1:
        return different[0], np.unique(different[0], return_index=True)[1]
    code, *others = different
    for classes in others:
        # Numbered anew each time: there are never more classes than outcomes, and products of many would overflow.
        code = np.unique(code * (int(classes.max()) + 1) + classes, return_inverse=True)[1]
    return _numbered(code.tolist())


def _numbered(keys: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Equal keys get one number, by first appearance; with the place where each number first appears."""
    known: dict[Any, tuple[int, int]] = {}
    found = [known.setdefault(key, (len(known), place)) for place, key in enumerate(keys)]
    return np.array([number for number, _ in found]), np.array([place for _, place in known.values()])


def _spread(table: Table, labels: Sequence[str], firsts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values of a table with an axis for each of more labels, over finer classes."""
    places = [classes[firsts[label]] for label, classes in zip(table.labels, table.classes)]
    values = table.values[np.ix_(*places)] if places else table.values
    return values.reshape([len(firsts[label]) if label in table.labels else 1 for label in labels])


def _reduced(labels: Sequence[str], values: np.ndarray, classes: Sequence[np.ndarray]) -> Table:
    """Equal slices merged, and the axes dropped along which nothing changes.

    One pass is enough: slices that differ do so in an entry that is kept when the other axes are merged.
    """
    kept_labels, kept_classes = [], []
    values = values + values.dtype.type(0) if values.dtype.kind == "f" else values  # -0.0 is 0.0
    for axis in reversed(range(values.ndim)):
        entries = values.swapaxes(axis, 0)
        if values.dtype == object:
            slices = list(map(repr, entries.tolist()))
        else:
            slices = entries.tolist() if values.ndim == 1 else [entry.tobytes() for entry in entries]
        numbers, firsts = _numbered(slices)
        if len(firsts) < len(slices):
            values = values.take(firsts, axis=axis)
        if len(firsts) > 1:
            kept_labels.append(labels[axis])
            kept_classes.append(numbers[classes[axis]])
        else:
            values = values.take(0, axis=axis)
    return Table(tuple(reversed(kept_labels)), np.asarray(values), tuple(reversed(kept_classes)))


ONE = Table.of((), 1)

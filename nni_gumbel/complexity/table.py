"""Numbers that depend on choices: one axis per label.

A count that depends on a few choices is written down for every combination of them; its expectation
under independent labels is the table contracted with one vector of probabilities per axis. A label that
occurs twice in a product of tables is one axis, which is what makes shared labels exact. The entries of
an axis are the outcomes of the label's law, as :meth:`Distribution.outcome_probs
<nni_gumbel.supernet.distribution.Distribution.outcome_probs>` lists them: the candidates of a choice of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from nni_gumbel.errors import UsageError

LARGEST_TABLE = 1_000_000


@dataclass(frozen=True)
class Table:
    """A number for every combination of candidates.

    Args:
        labels: what it depends on, sorted, each once.
        values: one axis per label, as long as the label has candidates.
    """

    labels: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[str], values: np.ndarray) -> Table:
        """A table whose labels come in any order, without the axes along which nothing changes."""
        order = sorted(range(len(labels)), key=lambda axis: labels[axis])
        values = np.transpose(np.asarray(values), order)
        kept = [axis for axis in range(values.ndim) if not (values == values.take([0], axis=axis)).all()]
        for axis in reversed([axis for axis in range(values.ndim) if axis not in kept]):
            values = values.take(0, axis=axis)
        return cls(tuple(labels[order[axis]] for axis in kept), values)

    def __mul__(self, other: Table) -> Table:
        return _combine(np.multiply, (self, other))

    def __add__(self, other: Table) -> Table:
        return _combine(np.add, (self, other))


ONE = Table((), np.array(1))


class ExpectedSum:
    """The expectation of a sum of tables under independent labels; differentiable.

    Args:
        tables: numbers that depend on choices; those of the same labels are added up once.

    Attributes:
        tables: their sum, one table for each set of labels.
        labels: all labels that it depends on.
        largest: an upper bound of the sum over all combinations.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        sums: dict[tuple[str, ...], Table] = {}
        for table in tables:
            sums[table.labels] = sums[table.labels] + table if table.labels in sums else table
        self.tables: tuple[Table, ...] = tuple(sums.values())
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(label for labels in sums for label in labels))
        # float64: counts stay exact integers up to 2^53.
        self._values = [torch.from_numpy(table.values.astype(np.float64)) for table in self.tables]
        self.largest = sum(float(values.max()) for values in self._values)

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Scalar: ``sum_t sum_z t(z) prod_label P(z_label)``.

        Args:
            probabilities: per label the probabilities of its outcomes, on the simplex, float; at least one label.

        Returns:
            Scalar in the dtype of the probabilities, added up in float64.
        """
        first = next(iter(probabilities.values()))
        total = torch.zeros((), dtype=torch.float64, device=first.device)
        for place, table in enumerate(self.tables):
            values = self._values[place]
            if values.device != first.device:
                with torch.inference_mode(False):  # autograd would refuse a kept tensor that was made in it
                    values = self._values[place] = values.to(first.device)
            for label in table.labels:
                # Not a matrix product, which autocast would lower to half precision.
                probability = probabilities[label].double()
                values = (probability.view(-1, *[1] * (values.dim() - 1)) * values).sum(dim=0)
            total = total + values
        return total.to(first.dtype)

    def at(self, outcomes: Mapping[str, int]) -> float:
        """The sum for one network.

        Args:
            outcomes: per label the index of its outcome; a label that the network does not use may be missing.
        """
        return sum(
            float(table.values[tuple(outcomes.get(label, 0) for label in table.labels)])
            for table in self.tables
        )


def elementwise_maximum(tables: Sequence[Table]) -> Table:
    """The largest of several numbers in every combination of what they depend on."""
    return _combine(np.maximum, tables)


def _combine(operation: Callable[[np.ndarray, np.ndarray], np.ndarray], tables: Sequence[Table]) -> Table:
    sizes: Mapping[str, int] = {
        label: size for table in tables for label, size in zip(table.labels, table.values.shape)
    }
    labels = tuple(sorted(sizes))
    combinations = int(np.prod([sizes[label] for label in labels], dtype=np.int64))
    if combinations > LARGEST_TABLE:
        raise UsageError(
            f"choices {', '.join(labels)}: a parameter depends on {combinations:,} combinations of them; "
            f"nest fewer choices (at most {LARGEST_TABLE:,} combinations)"
        )
    spread = [
        table.values.reshape([sizes[label] if label in table.labels else 1 for label in labels])
        for table in tables
    ]
    values = np.broadcast_to(reduce(operation, spread), [sizes[label] for label in labels])
    return Table(labels, values)

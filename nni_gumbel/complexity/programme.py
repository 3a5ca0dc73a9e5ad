"""A space as an integer programme: its solutions are the networks, its costs are linear in the columns.

Binary columns say which outcome of its law each label takes. A label that a network does not use has none: its
columns are 0, so that each network is one solution. Whether a label is used is itself linear in the columns of the
labels above it. The first column is 1 in all networks: its coefficient is the constant of a linear function.

A table over several labels gets one column in [0, 1] for each of its cells, whose sums along each axis are the
columns of that axis' label (the local polytope). Where those are 0 or 1 exactly one cell is 1, the right one, so
the programme is exact. A table that is too large even so is replaced by its minimum over some of its labels:
the cost in the programme is then a lower bound, and whoever asks compares with the cost itself.

Source: Wainwright, Jordan, Graphical Models, Exponential Families, and Variational Inference (2008), section 4.1
(the local polytope). The solver is HiGHS (Huangfu, Hall, 2018), through ``scipy.optimize.milp``.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nni.nas.nn.pytorch import ModelSpace
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from nni_gumbel.complexity.table import ExpectedSum, Table, where
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import Condition, Place, structure_of

# The labels that a network uses, each with the indices of its chosen candidates, ascending.
Network = Mapping[str, tuple[int, ...]]

# A linear function of the columns: the coefficient of each.
Linear = Mapping[int, float]

# Cells of one table in the programme: 16,000 take the solver some seconds.
MOST_CELLS = 20_000

# The solver's tolerances are absolute, 1e-6 and less: coefficients are scaled up so that they matter little.
_LARGEST_COEFFICIENT = 1e4
_OUT_OF_TIME, _INFEASIBLE, _FAILED = 1, 2, 4  # statuses of scipy.optimize.milp

_CONSTANT = 0
_ONE: Linear = {_CONSTANT: 1.0}

_log = logging.getLogger(__name__)


class Programme:
    """The networks of a space: the best one by a linear function, and what each costs exactly.

    Args:
        space: the space of the distribution, mutated to a supernet or not.
        distribution: its logits, as they are now.
        costs: what limits and objectives are made of.

    Attributes:
        costs: each of ``costs`` as a linear function, or a lower bound of it if a table is too large.
        negative_log_prob: of the labels that a network uses, as a linear function.
    """

    def __init__(self, space: ModelSpace, distribution: Distribution, costs: Sequence[ExpectedSum]) -> None:
        self._distribution, self._exact = distribution, costs
        self._integral = [True]  # per column
        self._rows: list[tuple[Linear, float, float]] = [(_ONE, 1.0, 1.0)]  # each at least and at most
        structure = structure_of(space)
        self._listed = {label for cost in costs for label in cost.labels}
        self._listed.update(x for place in structure.all() for when, _ in place.inner for x in when.labels)
        self._choices: dict[str, _Choice] = {}
        for label in space.simplify():
            first = len(self._integral)
            self._choices[label] = choice = _Choice.of(distribution, label, label in self._listed, first)
            self._integral += [True] * len(choice.columns)
        self._used: dict[str, Linear] = {}  # by label, 1 in the networks that use it and 0 in the others
        self._require_used(structure)
        scores = {
            column: -math.fsum(choice.theta[i] for i in members)
            for choice in self._choices.values()
            for column, members in zip(choice.columns, choice.members)
        }
        partitions = ((choice.log_partition, self._used[label]) for label, choice in self._choices.items())
        self.negative_log_prob = _sum((1.0, scores), *partitions)
        self.costs = [self._value(cost.tables, MOST_CELLS) for cost in costs]

    # -- one network -----------------------------------------------------------------------------------

    def sample(self, network: Network) -> dict[str, Any]:
        """The NNI sample."""
        return {label: self._distribution.value_of(label, members) for label, members in network.items()}

    def prices(self, network: Network) -> list[float]:
        """What each of the costs is, added up without tolerances."""
        laws = self._distribution.laws
        outcomes = {x: laws[x].index_of(network[x]) for x in self._listed if x in network}
        return [cost.at(outcomes) for cost in self._exact]

    def log_prob(self, network: Network) -> float:
        """Of the labels that it uses."""
        choices = ((self._choices[label], members) for label, members in network.items())
        return math.fsum(math.fsum(c.theta[i] for i in members) - c.log_partition for c, members in choices)

    def priced(self, network: Network) -> Network:
        """The part of a network that its costs, and what else it uses, depend on."""
        return {label: network[label] for label in network if label in self._listed}

    # -- the best network ------------------------------------------------------------------------------

    def minimum(
        self, objective: Linear, maxima: Sequence[float], excluded: Iterable[Network], end: float
    ) -> tuple[Network, float] | None:
        """The network where an objective is smallest, ties broken in the same way every time.

        Args:
            objective: a linear function.
            maxima: of each cost, the most that it may be, or infinity; kept to about 1e-9 of that.
            excluded: networks to leave out; a part of one leaves out all that have the part.
            end: when, by ``time.monotonic``, the best network found so far is taken, with a warning.

        Returns:
            The network, and what the objective is nowhere below, but for about 1e-10 of its largest coefficient;
            ``None`` if no network is left, or, with a warning, if none was found in time.
        """
        rows = list(self._rows)
        for function, most in zip(self.costs, maxima):
            if most < math.inf:
                scale = _LARGEST_COEFFICIENT / max(largest_coefficient(function), abs(most), 1e-300)
                rows.append((_sum((scale, function)), -math.inf, scale * most))
        for network in excluded:
            # A network that agrees with another one in all labels that it uses is that one.
            agreement: dict[int, float] = {}
            for label, members in network.items():
                agreement |= self._choices[label].agreement(members)
            rows.append((agreement, -math.inf, sum(value > 0 for value in agreement.values()) - 1))
        scale = _LARGEST_COEFFICIENT / (largest_coefficient(objective) or 1.0)
        coefficients = np.zeros(len(self._integral))
        coefficients[list(objective)] = scale * np.array(list(objective.values()))
        matrix = csr_array(
            (
                np.fromiter((value for row, *_ in rows for value in row.values()), np.float64),
                np.fromiter((column for row, *_ in rows for column in row), np.int32),
                np.cumsum([0, *(len(row) for row, *_ in rows)]).astype(np.int32),
            ),
            shape=(len(rows), len(self._integral)),
        )
        constraints = LinearConstraint(matrix, [least for _, least, _ in rows], [most for *_, most in rows])
        options = {"mip_rel_gap": 0.0, "time_limit": max(end - time.monotonic(), 0.0)}
        # A limit that is hardly above what a network costs can make HiGHS's presolve a programme whose solutions do not
        # solve this one (a solve error); without it the answer is found, more slowly.
        for presolve in (True, False):
            found = milp(
                coefficients,
                integrality=np.array(self._integral, dtype=np.int8),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options=options | {"presolve": presolve},
            )
            if found.status != _FAILED:
                break
        else:
            raise RuntimeError(f"the integer programme of a budget was not solved: {found.message}")
        if found.status == _INFEASIBLE:
            return None
        if found.status == _OUT_OF_TIME:
            what = "none was found" if found.x is None else "the best one found by then is taken"
            _log.warning(
                "space: its choices depend on each other so that the time for a network is over; %s", what
            )
        if found.x is None:
            return None
        chosen = {label: choice.chosen(found.x) for label, choice in self._choices.items()}
        bounds = [bound for bound in (found.fun, found.mip_dual_bound) if bound is not None]
        return {label: members for label, members in chosen.items() if members}, min(bounds) / scale

    # -- which labels a network uses -------------------------------------------------------------------

    def _column(self) -> Linear:
        self._integral.append(False)
        return {len(self._integral) - 1: 1.0}

    def _require(self, least: float, most: float, *parts: tuple[float, Linear]) -> None:
        self._rows.append((_sum(*parts), least, most))

    def _require_used(self, structure: Place) -> None:
        """A label is used in the networks that have one of the places that name it; others have no outcome of it."""
        homes = Counter(label for place in structure.all() for label in place.labels)
        self._used = {label: self._column() for label, number in homes.items() if number > 1}
        present: dict[str, list[Linear]] = {label: [] for label in self._choices}

        def visit(place: Place, here: Linear) -> None:
            for label in place.labels:
                present[label].append(here)
                self._used.setdefault(label, here)
            for condition, inner in place.inner:
                visit(inner, self._both(here, condition))

        visit(structure, _ONE)
        for label, choice in self._choices.items():
            used = self._used.setdefault(label, {})
            if homes[label] > 1:
                for here in present[label]:
                    self._require(0.0, math.inf, (1.0, used), (-1.0, here))
                self._require(-math.inf, 0.0, (1.0, used), *((-1.0, here) for here in present[label]))
            outcome = (1.0, dict.fromkeys(choice.columns, 1.0))
            if choice.number is not None:
                self._require(0.0, 0.0, outcome, (-choice.number, used))
                continue
            self._require(0.0, math.inf, outcome, (-1.0, used))
            for column in choice.columns:
                self._require(-math.inf, 0.0, (1.0, {column: 1.0}), (-1.0, used))

    def _both(self, here: Linear, condition: Condition) -> Linear:
        """1 in the networks that have a place and meet a condition on labels which those use."""
        if len(condition.labels) == 1:
            (label,) = condition.labels
            columns = self._choices[label].columns
            chosen = {columns[k]: 1.0 for k in np.flatnonzero(condition.holds).tolist()}
            if self._used[label] is here:
                return chosen  # where the place is not, its label has no outcome
        else:
            chosen = self._value([where(condition)], condition.holds.size)
        if here is _ONE:
            return chosen
        both = self._column()
        self._require(-math.inf, 0.0, (1.0, both), (-1.0, here))
        self._require(-math.inf, 0.0, (1.0, both), (-1.0, chosen))
        self._require(-1.0, math.inf, (1.0, both), (-1.0, here), (-1.0, chosen))
        return both

    # -- tables ----------------------------------------------------------------------------------------

    def _value(self, tables: Iterable[Table], largest: int) -> Linear:
        """The sum of tables; a label that is not used counts as its first outcome: there they do not depend on it."""
        parts: list[tuple[float, Linear]] = []
        for table in tables:
            values = _lower_bound(table.values.astype(np.float64), largest)
            axes = [
                self._entries(label, of_outcome)
                for label, of_outcome, size in zip(table.labels, table.classes, values.shape)
                if size > 1
            ]
            values = values.squeeze()
            if values.ndim < 2:
                parts += zip(values.reshape(-1).tolist(), axes[0] if axes else [_ONE])
                continue
            cells = len(self._integral) + np.arange(values.size).reshape(values.shape)
            self._integral += [False] * values.size
            for axis, functions in enumerate(axes):
                for slice_of_cells, function in zip(np.moveaxis(cells, axis, 0), functions):
                    total = dict.fromkeys(slice_of_cells.reshape(-1).tolist(), 1.0)
                    self._require(0.0, 0.0, (1.0, total), (-1.0, function))
            parts.append((1.0, dict(zip(cells[values != 0].tolist(), values[values != 0].tolist()))))
        return _sum(*parts)

    def _entries(self, label: str, of_outcome: np.ndarray) -> list[Linear]:
        """For each entry of an axis, 1 where the label has one of its outcomes."""
        terms: list[dict[int, float]] = [{} for _ in range(int(of_outcome.max()) + 1)]
        for column, entry in zip(self._choices[label].columns, of_outcome.tolist()):
            terms[entry][column] = 1.0
        first, *others = terms
        return [_sum((1.0, first), (1.0, _ONE), (-1.0, self._used[label])), *others]


def largest_coefficient(function: Linear) -> float:
    """Absolute, but for the constant; 0 without any."""
    return max((abs(value) for column, value in function.items() if column != _CONSTANT), default=0.0)


@dataclass(frozen=True)
class _Choice:
    """The columns of one label: one for each outcome, or for each candidate that can be in one.

    Attributes:
        theta: the logits.
        members: per column the candidates that it stands for.
        number: how many columns are 1 in a network that uses the label; ``None`` for any but 0.
    """

    columns: range
    theta: list[float]
    log_partition: float
    members: list[tuple[int, ...]]
    number: int | None

    @classmethod
    def of(cls, distribution: Distribution, label: str, listed: bool, first: int) -> _Choice:
        """``listed``: one column for each outcome; of a subset there are exponentially many."""
        law, logits = distribution.laws[label], distribution.logits[label].detach().double()
        listed = listed or law.outcomes <= law.size + 1
        members = list(law.sets()) if listed else [(i,) for i in range(law.size)]
        number = 1 if listed else law.least if law.least == law.most else None
        columns = range(first, first + len(members))
        return cls(columns, logits.tolist(), float(law.log_partition(logits)), members, number)

    def chosen(self, solution: np.ndarray) -> tuple[int, ...]:
        """The candidates of a solution, none if the label is not used."""
        taken = [members for column, members in zip(self.columns, self.members) if solution[column] > 0.5]
        return tuple(index for members in taken for index in members)

    def agreement(self, chosen: tuple[int, ...]) -> dict[int, float]:
        """A function of the columns that is largest, the number of its positive terms, at one outcome alone."""
        chosen_columns = {
            column
            for column, indices in zip(self.columns, self.members)
            if indices == chosen or (self.number != 1 and indices[0] in chosen)
        }
        others = () if self.number is not None else set(self.columns) - chosen_columns
        return dict.fromkeys(chosen_columns, 1.0) | dict.fromkeys(others, -1.0)


def _sum(*parts: tuple[float, Linear]) -> dict[int, float]:
    """``sum(factor * function)``."""
    terms: dict[int, float] = {}
    for factor, function in parts:
        for column, value in function.items():
            terms[column] = terms.get(column, 0.0) + factor * value
    return terms


def _lower_bound(values: np.ndarray, largest: int) -> np.ndarray:
    """A table of at most ``largest`` cells, with axes of length 1, that is nowhere above this one."""
    while values.size > largest:
        lows = [values.min(axis, keepdims=True) for axis in range(values.ndim)]
        loss = [float((values - low).sum()) if low.size < values.size else math.inf for low in lows]
        values = lows[loss.index(min(loss))]
    return values

"""The expectation of an NNI expression over independent labels.

A profiler of NNI is a symbolic expression in the choices of a space, and formally depends on nearly all of them.
Its expectation is nevertheless cheap: that of a sum is the sum of the expectations, and each summand really depends
on few labels. The summands are tabulated once, and contracted with the probabilities at every step.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from nni.mutable import Categorical, MutableExpression

from nni_gumbel.complexity.table import ExpectedSum, Table
from nni_gumbel.errors import UsageError

# NNI evaluates an expression in Python, one combination of candidates after the other. What can be taken apart is
# tabulated only while that is cheaper than taking it apart.
MOST_VALUES = 20_000
LARGEST_SEPARABLE_TABLE = 500


def expectation_of(expression: Any, variables: Mapping[str, Any]) -> ExpectedSum:
    """``E[expression]``, exact and differentiable in the probabilities of the labels.

    Args:
        expression: a number, or an NNI expression in labels of the space that evaluates to numbers.
        variables: the NNI variable of each label of the space.

    Raises:
        UsageError: the expression depends on a label that the space does not have or that is no ``nni.choice``,
            or a part of it that cannot be taken apart depends on more than 20,000 combinations of candidates.
    """
    if isinstance(expression, MutableExpression):
        for label, variable in expression.simplify().items():
            _check_label(label, variable, variables)
    summands = _Tabulation(variables).summands(expression)
    return ExpectedSum(Table.of(s.labels, np.asarray(s.values[0], dtype=np.float64)) for s in summands)


def _check_label(label: str, variable: Any, variables: Mapping[str, Any]) -> None:
    if not isinstance(variable, Categorical):
        raise UsageError(
            f"penalty: its profiler depends on {label!r}, a {type(variable).__name__}; "
            "only a LayerChoice, a Repeat and an nni.choice have an expected cost"
        )
    if label not in variables or list(variables[label].values) != list(variable.values):
        raise UsageError(
            f"penalty: its profiler depends on a choice {label!r} that the space which is searched does not have; "
            "give a profiler of the same space"
        )


@dataclass(frozen=True)
class _Values:
    """Values of an expression, as objects: an axis of length 1, then one for each label, in the space's order."""

    labels: tuple[str, ...]
    values: np.ndarray


class _Tabulation:
    """The values of expressions at every combination of the labels that they really depend on.

    Built from the leaves upwards, a label is dropped as soon as the value no longer depends on it: the size of a
    feature map formally depends on every kernel before it, and not at all where the padding follows the kernel.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._candidates = {label: list(variable.values) for label, variable in variables.items()}
        # With the expression itself, so that no other one is ever given the same id.
        self._known: dict[tuple[int, int], tuple[Any, _Values | None]] = {}

    def summands(self, expression: Any) -> Iterator[_Values]:
        """Tables whose sum is the expression: what is too large for one table is taken apart."""
        pending: list[tuple[Any, ...]] = [(expression,)]
        while pending:
            factors = pending.pop()
            tables = [self._factor(factor) for factor in factors]
            if None in tables:
                large = tables.index(None)
                for parts in _taken_apart(factors[large]):
                    pending.append((*factors[:large], *parts, *factors[large + 1 :]))
            else:
                yield self._combined(_product, tables, MOST_VALUES) or _refuse(*factors)

    def _factor(self, expression: Any) -> _Values | None:
        """``None`` if the expression has to be taken apart."""
        if _is_inner(expression) and _is_separable(expression):
            return self._table_of(expression, LARGEST_SEPARABLE_TABLE)
        return self._table_of(expression, MOST_VALUES) or _refuse(expression)

    def _table_of(self, expression: Any, largest: int) -> _Values | None:
        """``None`` if it would be too large. Not recursive: a cost is a chain of thousands of additions."""
        waiting = [expression]
        while waiting:
            node = waiting[-1]
            arguments = node.arguments if _is_inner(node) else []
            unknown = [argument for argument in arguments if (id(argument), largest) not in self._known]
            waiting += unknown
            if not unknown:
                waiting.pop()
                if (id(node), largest) not in self._known:
                    tables = [self._known[id(argument), largest][1] for argument in arguments]
                    self._known[id(node), largest] = (node, self._built(node, tables, largest))
        return self._known[id(expression), largest][1]

    def _built(self, node: Any, arguments: list[_Values | None], largest: int) -> _Values | None:
        if _is_inner(node):
            return None if None in arguments else self._combined(node.function, arguments, largest)
        if isinstance(node, Categorical):
            return _Values((node.label,), _objects(self._candidates[node.label]).reshape(1, -1))
        return _Values((), _objects([node]))

    def _combined(self, function: Any, arguments: list[_Values], largest: int) -> _Values | None:
        """The function of all arguments, without the labels that it does not depend on; ``None`` if too large."""
        labels = [label for label in self._candidates if any(label in table.labels for table in arguments)]
        shape = [len(self._candidates[label]) for label in labels]
        if math.prod(shape) > largest:
            return None
        aligned = [
            table.values.reshape(
                1, *(size if label in table.labels else 1 for label, size in zip(labels, shape))
            )
            for table in arguments
        ]
        rows = zip(*(np.broadcast_to(values, (1, *shape)).reshape(-1) for values in aligned))
        values = _objects([function(*row) for row in rows]).reshape(1, *shape)
        for axis in reversed(range(len(labels))):
            first = values.take([0], axis=axis + 1)
            if (values == first).all():
                values = first.squeeze(axis + 1)
                del labels[axis]
        return _Values(tuple(labels), values)


def _is_inner(node: Any) -> bool:
    return isinstance(node, MutableExpression) and not isinstance(node, Categorical)


def _is_switch(node: Any) -> bool:
    return getattr(node.function, "__name__", "") == "_switch_fn"


def _is_separable(node: Any) -> bool:
    return node.function in (operator.add, operator.sub, operator.neg, operator.mul) or _is_switch(node)


def _taken_apart(node: Any) -> list[tuple[Any, ...]]:
    """Products whose sum is the expression."""
    arguments = node.arguments
    if node.function is operator.add:
        return [(argument,) for argument in arguments]
    if node.function is operator.sub:
        return [(arguments[0],), (-1, arguments[1])]
    if node.function is operator.neg:
        return [(-1, arguments[0])]
    if node.function is operator.mul:
        return [tuple(arguments)]
    branch, *cases = arguments
    return [
        (MutableExpression(operator.eq, "{} == {}", [branch, key]), case)
        for key, case in zip(cases[::2], cases[1::2])
    ]


def _product(*factors: Any) -> float:
    return math.prod(map(float, factors))


def _objects(values: list[Any]) -> np.ndarray:
    """``(n,)`` objects, also where a value is itself a sequence."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _refuse(*factors: Any) -> NoReturn:
    variables = {k: v for f in factors if isinstance(f, MutableExpression) for k, v in f.simplify().items()}
    count = math.prod(len(variable.values) for variable in variables.values())
    labels = ", ".join(map(repr, list(variables)[:3])) + (" …" if len(variables) > 3 else "")
    raise UsageError(
        f"penalty: a part of its profiler's expression depends on {count:,} combinations of choices ({labels}); "
        f"at most {MOST_VALUES:,} can be tabulated, so give these fewer candidates, or use the word params"
    )

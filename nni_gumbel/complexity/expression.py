"""The expectation of an NNI expression over independent labels.

A profiler of NNI is a symbolic expression in the choices of a space, and formally depends on nearly all of them.
Its expectation is nevertheless cheap: that of a sum is the sum of the expectations, and each summand really depends
on few labels. The summands are tabulated once, and contracted with the probabilities at every step.

From the leaves upwards, every part of an expression becomes a sum of tables of the labels that they really depend on:
the size of a feature map formally depends on every kernel before it, and not at all where the padding follows the
kernel.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from nni.mutable import Categorical, MutableExpression

from nni_gumbel.complexity.table import ExpectedSum, Table, TooManyCombinations, added_up, combined
from nni_gumbel.errors import UsageError

# Combinations of candidates that a summand may depend on: a function in Python is called for each.
MOST_VALUES = 20_000


def expectation_of(expression: Any, variables: Mapping[str, Any]) -> ExpectedSum:
    """``E[expression]``, exact and differentiable in the probabilities of the labels.

    Args:
        expression: a number, or an NNI expression in labels of the space that evaluates to numbers.
        variables: the NNI variable of each label of the space.

    Raises:
        UsageError: the expression depends on a label that the space does not have or that is no ``nni.choice``,
            or a part of it that is no sum depends on more than 20,000 combinations of candidates.
    """
    for label, variable in expression.simplify().items() if isinstance(expression, MutableExpression) else ():
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
    try:
        return ExpectedSum(_terms_of(expression))
    except TooManyCombinations as error:
        told = ", ".join(map(repr, error.labels[:3])) + (" …" if len(error.labels) > 3 else "")
        raise UsageError(
            f"penalty: a part of its profiler's expression depends on {error.number:,} combinations of choices "
            f"({told}); at most {MOST_VALUES:,} can be tabulated, so give these fewer candidates, or use the word "
            "params"
        ) from error


def _terms_of(expression: Any) -> list[Table]:
    """Not recursive: a cost is a chain of thousands of additions."""
    known: dict[int, list[Table]] = {}
    waiting = [expression]
    while waiting:
        node = waiting[-1]
        is_inner = isinstance(node, MutableExpression) and not isinstance(node, Categorical)
        arguments = node.arguments if is_inner else []
        unknown = [argument for argument in arguments if id(argument) not in known]
        waiting += unknown
        if not unknown:
            waiting.pop()
            if is_inner:
                known[id(node)] = _inner(node.function, [known[id(argument)] for argument in arguments])
            elif isinstance(node, Categorical):
                known[id(node)] = [Table.of((node.label,), _objects(node.values))]
            else:
                known[id(node)] = [Table.of((), _objects([node]).reshape(()))]
    return known[id(expression)]


def _inner(function: Any, arguments: Sequence[list[Table]]) -> list[Table]:
    if function is operator.mul:
        return _product(*arguments)
    if function is operator.add:
        return added_up(itertools.chain(*arguments), MOST_VALUES)
    if function in (operator.sub, operator.neg):
        *first, last = arguments
        return added_up(itertools.chain(*first, (-term for term in last)), MOST_VALUES)
    if getattr(function, "__name__", "") == "_switch_fn":
        branch, keys, cases = arguments[0], arguments[1::2], arguments[2::2]
        chosen = ([_of_sums(operator.eq, branch, key)] for key in keys)
        return added_up(itertools.chain(*map(_product, chosen, cases)), MOST_VALUES)
    return [_of_sums(function, *arguments)]


def _product(*factors: list[Table]) -> list[Table]:
    products = (combined(np.multiply, some, MOST_VALUES) for some in itertools.product(*factors))
    return added_up(products, MOST_VALUES)


def _of_sums(function: Any, *arguments: list[Table]) -> Table:
    """A function that is no sum, of the sums themselves."""

    def of_each(*values: np.ndarray) -> np.ndarray:
        values = np.broadcast_arrays(*values)
        results = [function(*some) for some in zip(*(value.flat for value in values))]
        return _objects(results).reshape(values[0].shape)

    sums = (
        reduce(lambda one, other: combined(np.add, (one, other), MOST_VALUES), terms) for terms in arguments
    )
    return combined(of_each, list(sums), MOST_VALUES)


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Python's own values, tuples among them; numpy's whole numbers would overflow."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array

"""The expectation of an NNI expression over independent labels.

A profiler of NNI is a symbolic expression in the choices of a space, and formally depends on nearly all of them.
Its expectation is nevertheless cheap: that of a sum is the sum of the expectations, and each summand really depends
on few labels. The summands are tabulated once, and contracted with the probabilities at every step.

From the leaves upwards, every part of an expression becomes a sum of values that vary with the labels that they really
depend on: the size of a feature map formally depends on every kernel before it, and not at all where the padding
follows the kernel.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

from nni.mutable import Categorical, MutableExpression

from nni_gumbel.complexity.table import ExpectedSum, Table
from nni_gumbel.complexity.varying import JointValues, VaryingNumber
from nni_gumbel.errors import UsageError

# Combinations of candidates that a summand may depend on.
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
    if isinstance(expression, MutableExpression):
        for label, variable in expression.simplify().items():
            _check_label(label, variable, variables)
    terms = _Sums().of(expression)
    return ExpectedSum(
        term.owner.numbers(term) if isinstance(term, VaryingNumber) else Table.of((), term) for term in terms
    )


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


class _Sums:
    """Expressions as sums of terms: values, most of which vary; a value that is no number is its only term."""

    def __init__(self) -> None:
        self._values = JointValues(_too_many, most=MOST_VALUES)
        self._add, self._multiply = (partial(self._of_values, f) for f in (operator.add, operator.mul))

    def of(self, expression: Any) -> list[Any]:
        """Not recursive: a cost is a chain of thousands of additions."""
        known: dict[int, list[Any]] = {}
        waiting = [expression]
        while waiting:
            node = waiting[-1]
            arguments = node.arguments if _is_inner(node) else []
            unknown = [argument for argument in arguments if id(argument) not in known]
            waiting += unknown
            if not unknown:
                waiting.pop()
                if id(node) not in known:
                    known[id(node)] = self._terms(node, [known[id(argument)] for argument in arguments])
        return known[id(expression)]

    def _terms(self, node: Any, arguments: list[list[Any]]) -> list[Any]:
        if isinstance(node, Categorical):
            return [self._values.number((node.label,), node.values)]
        if not _is_inner(node):
            return [node]
        if node.function is operator.mul:
            return self._product(*arguments)
        if node.function in (operator.add, operator.sub, operator.neg):
            *first, last = arguments
            last = last if node.function is operator.add else self._product([-1], last)
            return self._sum(itertools.chain(*first, last))
        if getattr(node.function, "__name__", "") == "_switch_fn":
            branch, keys, cases = arguments[0], arguments[1::2], arguments[2::2]
            chosen = ([self._of_one(operator.eq, branch, key)] for key in keys)
            return self._sum(itertools.chain(*map(self._product, chosen, cases)))
        return [self._of_one(node.function, *arguments)]

    def _sum(self, terms: Any) -> list[Any]:
        """Those of the same labels added up, as in :class:`ExpectedSum`."""
        sums: dict[tuple[str, ...], Any] = {}
        for term in terms:
            while (labels := _labels_of(term)) in sums:
                term = self._add(sums.pop(labels), term)
            sums[labels] = term
        return list(sums.values())

    def _product(self, *factors: list[Any]) -> list[Any]:
        return self._sum(reduce(self._multiply, some) for some in itertools.product(*factors))

    def _of_one(self, function: Any, *arguments: list[Any]) -> Any:
        """A function that is no sum: of the sums themselves, one value each."""
        return self._of_values(function, *(reduce(self._add, terms) for terms in arguments))

    def _of_values(self, function: Any, *values: Any) -> Any:
        return self._values.evaluate(function, values, {})


def _is_inner(node: Any) -> bool:
    return isinstance(node, MutableExpression) and not isinstance(node, Categorical)


def _labels_of(value: Any) -> tuple[str, ...]:
    return value.index.labels if isinstance(value, VaryingNumber) else ()


def _too_many(labels: Sequence[str], combinations: int) -> UsageError:
    told = ", ".join(map(repr, labels[:3])) + (" …" if len(labels) > 3 else "")
    return UsageError(
        f"penalty: a part of its profiler's expression depends on {combinations:,} combinations of choices ({told}); "
        f"at most {MOST_VALUES:,} can be tabulated, so give these fewer candidates, or use the word params"
    )

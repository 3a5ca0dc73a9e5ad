"""Values that depend on choices, tabulated: ``nni.choice('c', [8, 16]) * 2`` and the like.

NNI writes the arguments of a module, or the depth of a ``Repeat``, as expressions over choices. An
expression over a few discrete choices is a finite table, and a joint sample turns it into a
distribution over its values. Both are here, and nothing else knows how a combination of candidates
becomes a value and a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nni.mutable import Categorical, Mutable, MutableExpression
from torch import Tensor

from nni_gumbel.errors import UsageError, first_line

if TYPE_CHECKING:
    from nni_gumbel.supernet.joint_sample import JointSample

LARGEST_TABLE = 10_000


class Tabulated:
    """Several values that depend on the same choices, for every combination of their candidates.

    Args:
        expressions: NNI expressions (choices, arithmetic on them, ``MutableList`` …) or constants.
        owner: what the values belong to, as it is named in errors.

    Attributes:
        labels: those that the values depend on, in the order in which they appear.
        candidates: of each label.
        told: the labels in the words of an error: ``'width', 'kernel'``.
        labels_of: of each expression the labels that it depends on.
        distinct: the different values, each a dict with the keys of ``expressions``, by first appearance.
        samples: per entry of ``distinct`` the first combination that gives it, as an NNI sample.
        index: integers, one axis per label over its candidates: position in ``distinct`` of each combination.

    Raises:
        UsageError: an expression depends on a choice that is not discrete or on one hidden in a tuple,
            cannot be evaluated, or there are more than 10,000 combinations.

    Example:
        >>> import nni
        >>> table = Tabulated({"width": nni.choice("c", [8, 16]) * 2, "bias": True})
        >>> table.labels, table.distinct
        (('c',), [{'width': 16, 'bias': True}, {'width': 32, 'bias': True}])
        >>> table.distinct[table.position({"c": 16})]
        {'width': 32, 'bias': True}
    """

    def __init__(self, expressions: Mapping[str, Any], owner: str = "expression") -> None:
        self._owner = owner
        choices = {name: self._choices(name, expression) for name, expression in expressions.items()}
        self.labels_of = {name: tuple(own) for name, own in choices.items()}
        self.candidates = {label: one.values for own in choices.values() for label, one in own.items()}
        self.labels = tuple(self.candidates)
        self.told = ", ".join(map(repr, self.labels))
        sizes = [len(values) for values in self.candidates.values()]
        if math.prod(sizes) > LARGEST_TABLE:
            raise UsageError(
                f"{owner}: it depends on {math.prod(sizes):,} combinations of the choices "
                f"{self.told}; let it depend on fewer (at most {LARGEST_TABLE:,} combinations)"
            )
        self.index = np.empty(sizes, dtype=np.int64)
        self.distinct: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        positions: dict[tuple[Any, ...], int] = {}
        known: dict[Any, Any] = {}  # of each expression its values at the candidates of its own labels
        for place in np.ndindex(*sizes):
            at = dict(zip(self.candidates, place))
            sample = {label: self.candidates[label][k] for label, k in at.items()}
            values = {}
            for name, expression in expressions.items():
                key = name, *(at[label] for label in self.labels_of[name])
                if key not in known:
                    known[key] = self._evaluated(name, expression, sample)
                values[name] = known[key]
            self.index[place] = positions.setdefault(tuple(map(_comparable, values.values())), len(positions))
            if len(positions) > len(self.distinct):
                self.distinct.append(values)
                self.samples.append(sample)
        self._latest: tuple[Any, list[int], Tensor | None] = (None, [], None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tabulated:
        return self  # nothing in it changes but what is kept from the latest step

    def position(self, sample: Mapping[str, Any]) -> int:
        """Where the values at an NNI sample stand in ``distinct``; a ``UsageError`` where it names no candidate."""
        for label, candidates in self.candidates.items():
            if label not in sample or sample[label] not in candidates:
                given = repr(sample[label]) if label in sample else "nothing"
                raise UsageError(
                    f"choice {label!r}: {given} is none of its candidates; give one of {candidates}"
                )
        chosen = tuple(candidates.index(sample[label]) for label, candidates in self.candidates.items())
        return int(self.index[chosen])

    def weighted(self, joint_sample: JointSample) -> tuple[list[int], Tensor]:
        """The values of combinations whose candidates are all active, and their weights.

        ``weight(v) = sum over combinations c with value v of prod over labels l of weight_l(c_l)``

        Returns:
            Positions in ``distinct``, ascending, and ``(n,)`` in the dtype of the weights; differentiable.
        """
        if not self.labels:
            return [0], torch.ones(1)
        chosen = list(map(joint_sample.active, self.labels))
        if joint_sample.is_network:
            place = tuple(active[0] for active in chosen)
            return [int(self.index[place])], joint_sample.weights(self.labels[0])[place[0]].unsqueeze(0)
        joint = None
        for label, active, size in zip(self.labels, chosen, self.index.shape):
            weights = joint_sample.weights(label)
            if len(active) < size:
                weights = weights[active]
            joint = weights if joint is None else (joint[:, None] * weights).flatten()
        positions, place = self._places(chosen, joint.device)
        if place is not None:
            joint = joint.new_zeros(len(positions)).index_add(0, place, joint)
        return positions, joint

    @torch.inference_mode(False)  # autograd would refuse a kept tensor that was made in inference mode
    def _places(self, chosen: list[list[int]], device: torch.device) -> tuple[list[int], Tensor | None]:
        """The positions that combinations of candidates lead to, and which of them each leads to."""
        key = ([*map(list, chosen)], device)
        if self._latest[0] != key:  # with a soft sample the same candidates are active at every step
            positions, place = np.unique(self.index[np.ix_(*chosen)], return_inverse=True)
            place = place.ravel()
            in_order = np.array_equal(place, np.arange(len(positions)))
            on_device = None if in_order else torch.from_numpy(place).to(device)
            self._latest = (key, positions.tolist(), on_device)
        return self._latest[1:]

    def _choices(self, name: str, expression: Any) -> dict[str, Categorical]:
        """The choices that one expression depends on."""
        choices = expression.simplify() if isinstance(expression, Mutable) else {}
        for hidden in [] if isinstance(expression, Mutable) else _mutables_inside(expression):
            labels = ", ".join(map(repr, hidden.simplify()))
            raise UsageError(
                f"{self._owner}: {name!r} hides choice {labels} in a {type(expression).__name__}, where NNI "
                "does not see it; give nni.choice whole values, or a MutableList"
            )
        for label, choice in choices.items():
            if not isinstance(choice, Categorical):
                raise UsageError(
                    f"{self._owner}: {name!r} depends on choice {label!r}, a {type(choice).__name__}; "
                    "only nni.choice can be tabulated"
                )
        return choices

    def _evaluated(self, name: str, expression: Any, sample: dict[str, Any]) -> Any:
        if not isinstance(expression, Mutable):
            return expression
        try:
            # `freeze` of an expression would check the sample first, at several times the cost.
            evaluate = expression.evaluate if isinstance(expression, MutableExpression) else expression.freeze
            return evaluate(sample)
        except Exception as error:  # whatever a person's expression raises
            at = ", ".join(f"{label}={sample[label]!r}" for label in self.labels_of[name])
            raise UsageError(
                f"{self._owner}: {name!r} = {expression} cannot be evaluated at {at}: {first_line(error)}"
            ) from error


def _comparable(value: Any) -> Any:
    """A hashable stand-in for a value: equal for equal numbers, and for equal values of one type."""
    if isinstance(value, (list, tuple)):
        return type(value), *map(_comparable, value)
    if isinstance(value, Mapping):
        return type(value), *((key, _comparable(entry)) for key, entry in value.items())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number", value
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value


def _mutables_inside(value: Any) -> list[Mutable]:
    """Mutables in the entries of a container."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return [value] if isinstance(value, Mutable) and not isinstance(value, torch.nn.Module) else []
    return [mutable for entry in value for mutable in _mutables_inside(entry)]

"""``LayerChoice`` in a supernet: the weighted sum of its candidates' outputs, exact and as cheap as that can be.

Candidates that are linear or elementwise run as one operation (:mod:`nni_gumbel.supernet.execution`); they stay
modules of their own, with their parameters and their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from nni_gumbel.supernet.execution import Plan, call_alone, plan
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import Describe, mixture, unchanged

# A cooling distribution meets few sets of active candidates; a bound for those that meet many.
_PLANS_KEPT = 128


class MixedLayer(LayerChoice, BaseSuperNetModule):
    """Computes ``sum_k weight_k * candidate_k(input)`` over the active candidates.

    Args:
        choice: the layer choice to replace; its candidates are taken over, not copied.
        joint_sample: where the current weights are read.
        merged: whether candidates may run as one operation; if not, every one runs by itself.
    """

    def __init__(self, choice: LayerChoice, joint_sample: JointSample, merged: bool = True) -> None:
        super().__init__(choice.candidates, label=choice.label)
        self._joint_sample = joint_sample
        self._merged = merged
        self._plans: dict[tuple[tuple[int, ...], ...], Plan] = {}

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook: replaces exactly ``LayerChoice``, not its subclasses."""
        if type(module) is LayerChoice:
            return cls(module, mutate_kwargs["joint_sample"], mutate_kwargs.get("merged", True))
        return None

    def __getstate__(self) -> dict[str, Any]:
        # A copy plans with its own modules.
        return {**self.__dict__, "_plans": {}}

    def plan(self, active: Sequence[int] | None = None) -> Plan:
        """How candidates at these places, or all of them, are executed on one tensor."""
        names = self.names if active is None else [self.names[place] for place in active]
        candidates = {name: self[name] for name in self.names}
        if not self._merged:
            return Plan((), dict.fromkeys(names, "merging is off"))
        return plan(candidates, names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Accepts what the candidates accept; returns what they return.

        Raises:
            UsageError: candidates return outputs of different shapes, or one changes its input in place.
        """
        active = self._joint_sample.active(self.label)
        weights = self._joint_sample.weights(self.label)
        if self._merged and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return self._of_tensor(args[0], active, weights)
        names = [self.names[k] for k in active]
        outputs = [self._called(name, (args, kwargs), self[name], *args, **kwargs) for name in names]
        if self._joint_sample.is_network:
            return outputs[0]
        return mixture(outputs, [weights[k] for k in active], self._describe(names))

    def _of_tensor(self, x: Tensor, active: Sequence[int], weights: Tensor) -> Any:
        if self._joint_sample.is_network:
            name = self.names[active[0]]
            return self._called(name, x, call_alone, self[name], x)
        current = self._plan_of(active)
        # Whole numbers have no gradients, and a convolution does not take them.
        is_planned = x.is_floating_point()
        operations = [one for one in current.operations if one.repays(x)] if is_planned else []
        together = {name for one in operations for name in one.names}
        names: list[Any] = [", ".join(map(str, operation.names)) for operation in operations]
        outputs = [operation(x, weights) for operation in operations]
        factors: list[Tensor | None] = [None] * len(operations)
        for place in active:
            name = self.names[place]
            if name not in together:
                names.append(name)
                outputs.append(self._called(name, x, call_alone, self[name], x))
                factors.append(weights[place])
        return mixture(outputs, factors, self._describe(names))

    def _plan_of(self, active: Sequence[int]) -> Plan:
        # A candidate that somebody replaced is another one.
        key = tuple(active), tuple(map(id, self._modules.values()))
        known = self._plans.get(key)
        if known is not None and known.holds():
            return known
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.pop(next(iter(self._plans)))
        self._plans[key] = self.plan(active)
        return self._plans[key]

    def _called(self, name: Any, inputs: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with unchanged(inputs, f"choice {self.label!r}: candidate {name!r}"):
            return function(*args, **kwargs)

    def _describe(self, names: Sequence[Any]) -> Describe:
        def describe(difference: str, found: list[str]) -> str:
            given = ", ".join(f"{name!r} gives {output}" for name, output in zip(names, found))
            return (
                f"choice {self.label!r}: its candidates give {difference} ({given}); "
                "make all of them equal, e.g. with padding"
            )

        return describe

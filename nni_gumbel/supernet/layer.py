"""``LayerChoice`` in a supernet: the weighted sum of its candidates' outputs, exact and as cheap as that can be.

Candidates that are linear or elementwise run as one operation (:mod:`nni_gumbel.supernet.candidates`); they stay
modules of their own, with their parameters and their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor

from nni_gumbel.supernet.candidates import Plan, call_alone, plan
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import mixture, unchanged

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

    def __getstate__(self) -> dict[str, Any]:
        # A copy plans with its own modules.
        return {**self.__dict__, "_plans": {}}

    def plan(self, active: Sequence[int] | None = None) -> Plan:
        """How candidates at these places, or all of them, are executed on one tensor."""
        names = self.names if active is None else [self.names[place] for place in active]
        if not self._merged:
            return Plan((), dict.fromkeys(names, "merging is off"))
        return plan({name: self[name] for name in names})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Accepts what the candidates accept; returns what they return.

        Raises:
            UsageError: candidates return outputs of different shapes, or one changes its input in place.
        """
        running = self._joint_sample.running(self.label)
        weights = {self.names[k]: weight for k, weight in running.items()}
        names, outputs, factors = [], [], []
        if self._merged and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            (x,) = args
            # Whole numbers have no gradients, and a convolution does not take them.
            if x.is_floating_point() and not self._joint_sample.is_network:
                for operation in self._plan_of(tuple(running)).operations:
                    if operation.repays(x):
                        names.append(", ".join(map(str, operation.names)))
                        outputs.append(operation(x, weights))
                        factors.append(None)
                        weights = {name: w for name, w in weights.items() if name not in operation.names}
            outputs += [self._called(name, x, call_alone, self[name], x) for name in weights]
        else:
            outputs = [self._called(name, (args, kwargs), self[name], *args, **kwargs) for name in weights]
        return mixture(
            outputs,
            [*factors, *weights.values()],
            f"choice {self.label!r}: its candidates give",
            (f"{name!r} gives" for name in [*names, *weights]),
            "make all of them equal, e.g. with padding",
        )

    def _plan_of(self, active: tuple[int, ...]) -> Plan:
        # A candidate that somebody replaced is another one.
        key = active, tuple(map(id, self._modules.values()))
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

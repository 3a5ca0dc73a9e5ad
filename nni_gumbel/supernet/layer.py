"""``LayerChoice`` in a supernet: the weighted sum of its candidates' outputs, exact and as cheap as that can be.

Candidates that are linear or elementwise run as one operation (:mod:`nni_gumbel.supernet.candidates`); they stay
modules of their own, with their parameters and their names.
"""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nni_gumbel.copies import take_over
from nni_gumbel.supernet.candidates import Plan, call_alone, is_untouched, plan
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
        take_over(self, choice)
        self._joint_sample = joint_sample
        self._merged = merged
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # a copy plans with its own modules

    def plan(self) -> Plan:
        """How all candidates together are executed on one tensor."""
        if not self._merged:
            return Plan((), dict.fromkeys(self.names, "merging is off"))
        return plan({name: self[name] for name in self.names})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Accepts what the candidates accept; returns what they return.

        Raises:
            UsageError: candidates return outputs of different shapes, or one changes its input in place.
        """
        joint = self._joint_sample
        weights = {self.names[k]: weight for k, weight in joint.running(self.label).items()}
        names, outputs, factors = [], [], []
        is_alone = self._merged and len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        # Whole numbers have no gradients, and a convolution does not take them.
        if is_alone and not joint.is_network and args[0].is_floating_point():
            for operation in self._plan_of(tuple(weights)).operations:
                if operation.repays(args[0]):
                    names.append(", ".join(map(str, operation.names)))
                    outputs.append(operation(args[0], weights))
                    factors.append(None)
                    weights = {name: w for name, w in weights.items() if name not in operation.names}
        inputs = args if is_alone else tree_leaves((args, kwargs))
        for name, weight in weights.items():
            with unchanged(inputs, f"choice {self.label!r}: candidate {name!r}"):
                outputs.append(call_alone(self[name], args[0]) if is_alone else self[name](*args, **kwargs))
            names.append(name)
            factors.append(weight)
        remedy = "make all of them equal, e.g. with padding"
        told = (f"{name!r} gives" for name in names)
        return mixture(outputs, factors, f"choice {self.label!r}: its candidates give", told, remedy)

    def _plan_of(self, active: tuple[Any, ...]) -> Plan:
        """The plan for the candidates of these names, made anew if one was replaced, or hooked into."""
        candidates = {name: self[name] for name in active}
        # Below a candidate and its children there is nothing that is replaced.
        parts = (part for module in candidates.values() for part in (module, *module._modules.values()))
        key = active, *((id(part), type(part), is_untouched(part)) for part in parts)
        if key not in self._plans:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan(candidates)
        return self._plans[key]

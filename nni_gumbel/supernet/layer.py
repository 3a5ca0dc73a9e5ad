"""``LayerChoice`` in a supernet: the weighted sum of its candidates' outputs."""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn

from nni_gumbel.supernet.distribution import JointSample
from nni_gumbel.supernet.mixture import mixture, unchanged


class MixedLayer(LayerChoice, BaseSuperNetModule):
    """Computes ``sum_k weight_k * candidate_k(input)`` over the active candidates.

    Args:
        choice: the layer choice to replace; its candidates are taken over, not copied.
        joint_sample: where the current weights are read.
    """

    def __init__(self, choice: LayerChoice, joint_sample: JointSample) -> None:
        super().__init__(choice.candidates, label=choice.label)
        self._joint_sample = joint_sample

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook: replaces exactly ``LayerChoice``, not its subclasses."""
        if type(module) is LayerChoice:
            return cls(module, mutate_kwargs["joint_sample"])
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Accepts what the candidates accept; returns what they return.

        Raises:
            UsageError: candidates return outputs of different shapes, or one changes its input in place.
        """
        active = self._joint_sample.active(self.label)
        weights = self._joint_sample.weights(self.label)
        names = [self.names[k] for k in active]
        outputs = []
        for name in names:
            with unchanged((args, kwargs), f"choice {self.label!r}: candidate {name!r}"):
                outputs.append(self[name](*args, **kwargs))

        if self._joint_sample.is_network:
            return outputs[0]

        def describe(shapes: list[Any]) -> str:
            given = ", ".join(f"{name!r} gives {shape}" for name, shape in zip(names, shapes))
            return (
                f"choice {self.label!r}: its candidates give outputs of different shapes ({given}); "
                "make all of them equal, e.g. with padding"
            )

        return mixture(outputs, [weights[k] for k in active], describe)

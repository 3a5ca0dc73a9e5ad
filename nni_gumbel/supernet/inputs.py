"""``InputChoice`` in a supernet: the weighted sum of the inputs it chooses from."""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import InputChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import JointSample
from nni_gumbel.supernet.mixture import mixture


class MixedInput(InputChoice, BaseSuperNetModule):
    """One input of n: ``sum_j weight_j * input_j``.

    With a single chosen input NNI's reductions ``sum``, ``mean`` and ``concat`` are the same thing,
    and ``none`` wraps it into a list.

    Args:
        choice: the input choice to replace.
        joint_sample: where the current weights are read.
    """

    def __init__(self, choice: InputChoice, joint_sample: JointSample) -> None:
        super().__init__(choice.n_candidates, choice.n_chosen, choice.reduction, label=choice.label)
        self._joint_sample = joint_sample

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook: replaces exactly ``InputChoice``, not its subclasses."""
        if type(module) is InputChoice:
            return cls(module, mutate_kwargs["joint_sample"])
        return None

    def forward(self, candidate_inputs: list[Tensor]) -> Tensor | list[Tensor]:
        """Takes all inputs, returns the mixture.

        Raises:
            UsageError: the inputs have different shapes.
        """
        active = self._joint_sample.active(self.label)
        weights = self._joint_sample.weights(self.label)
        try:
            chosen = mixture([candidate_inputs[j] for j in active], [weights[j] for j in active])
        except ValueError as error:
            shapes = ", ".join(f"input {j} is {shape}" for j, shape in zip(active, error.args[0]))
            raise UsageError(
                f"choice {self.label!r}: its inputs have different shapes ({shapes}); make all of them equal"
            ) from None
        return [chosen] if self.reduction == "none" else chosen

"""``InputChoice`` in a supernet: the weighted reduction of the inputs it chooses from.

With weights ``w`` (for k of n inputs they sum to k, for any number of inputs each is a gate of its own):

==========  ======================  =============================  ======================
reduction   1 of n                  k of n                         any number of n
==========  ======================  =============================  ======================
``sum``     ``sum_i w_i x_i``       ``sum_i w_i x_i``              ``sum_i w_i x_i``
``mean``    ``sum_i w_i x_i``       ``sum_i w_i x_i / k``          ``sum_i w_i x_i / sum_i w_i``
``concat``  ``sum_i w_i x_i``       the k places, concatenated     refused
``none``    a list of one           a list of the k places         refused
==========  ======================  =============================  ======================

An optional input, the only one of any number, is ``w x``; a network without it gets ``None``, and what the input would
be added to goes on alone. Place j is ``sum_i P(input i is the j-th of the chosen ones) x_i``. At a sample of weights 0
and 1 each is what NNI's frozen ``ChosenInputs`` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import InputChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import mixture


class MixedInput(InputChoice, BaseSuperNetModule):
    """Reduces all inputs as the table above says.

    Args:
        choice: the input choice to replace.
        joint_sample: where the current weights are read.

    Raises:
        UsageError: the number of outputs would depend on the sample.
    """

    def __init__(self, choice: InputChoice, joint_sample: JointSample) -> None:
        if choice.n_chosen is None and choice.reduction in ("concat", "none"):
            raise UsageError(
                f"choice {choice.label!r}: reduction {choice.reduction!r} of any number of inputs has no fixed "
                "size; give n_chosen, or reduction 'sum' or 'mean'"
            )
        super().__init__(choice.n_candidates, choice.n_chosen, choice.reduction, label=choice.label)
        self._joint_sample = joint_sample

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook: replaces exactly ``InputChoice``, not its subclasses."""
        if type(module) is InputChoice:
            return cls(module, mutate_kwargs["joint_sample"])
        return None

    def forward(self, candidate_inputs: Sequence[Any]) -> Any:
        """Takes all inputs, returns their reduction; ``None`` for an optional input that a network leaves out.

        Raises:
            UsageError: the number of inputs is not ``n_candidates``, or inputs have different shapes.
        """
        if len(candidate_inputs) != self.n_candidates:
            raise UsageError(
                f"choice {self.label!r}: it chooses among {self.n_candidates} inputs and is given "
                f"{len(candidate_inputs)}; give as many as n_candidates says"
            )
        active = self._joint_sample.active(self.label)
        if self.n_chosen not in (None, 1) and self.reduction in ("concat", "none"):
            is_network = self._joint_sample.is_network
            places = [
                candidate_inputs[active[0]]
                if is_network
                else self._mixture(candidate_inputs, active, weights)
                for active, weights in self._joint_sample.slots(self.label)
            ]
            return places if self.reduction == "none" else torch.cat(places, dim=1)
        if not active:
            return None  # an optional input that is not chosen
        if self._joint_sample.is_network and len(active) == 1:
            # Its weight is 1, also in a mean.
            only = candidate_inputs[active[0]]
            return [only] if self.reduction == "none" else only
        weights = self._joint_sample.weights(self.label)
        if self.reduction == "mean" and self.n_candidates > 1:
            weights = weights / (weights.sum() if self.n_chosen is None else self.n_chosen)
        mixed = self._mixture(candidate_inputs, active, weights)
        return [mixed] if self.reduction == "none" else mixed

    def _mixture(self, inputs: Sequence[Any], active: list[int], weights: Tensor) -> Any:
        def describe(difference: str, found: list[str]) -> str:
            given = ", ".join(f"input {i} is {value}" for i, value in zip(active, found))
            return f"choice {self.label!r}: it is given {difference} ({given}); make all of them equal"

        return mixture([inputs[i] for i in active], [weights[i] for i in active], describe)

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

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import InputChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor

from nni_gumbel.copies import take_over
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
        take_over(self, choice)
        self._joint_sample = joint_sample

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
        joint = self._joint_sample
        if self.n_chosen not in (None, 1) and self.reduction in ("concat", "none"):
            places = [self._mixture(candidate_inputs, slot) for slot in joint.slots(self.label)]
            return places if self.reduction == "none" else torch.cat(places, dim=1)
        running = joint.running(self.label)
        if not running:
            return None  # an optional input that is not chosen
        # What is chosen alone has the weight 1 in a mean, too.
        is_alone = self.n_candidates == 1 or (joint.is_network and len(running) == 1)
        if self.reduction == "mean" and not is_alone:
            weights = joint.weights(self.label)
            weights = weights / (weights.sum() if self.n_chosen is None else self.n_chosen)
            running = {i: weights[i] for i in running}
        mixed = self._mixture(candidate_inputs, running)
        return [mixed] if self.reduction == "none" else mixed

    def _mixture(self, inputs: Sequence[Any], weights: Mapping[int, Tensor | None]) -> Any:
        return mixture(
            [inputs[i] for i in weights],
            list(weights.values()),
            f"choice {self.label!r}: it is given",
            (f"input {i} is" for i in weights),
        )

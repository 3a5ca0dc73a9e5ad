"""``Repeat`` in a supernet: the weighted sum over its depths.

With ``x_0`` the input and ``x_i = block_i(x_(i-1))``, the mixture is ``sum_d P(d) x_d``: depth 0 is the
input itself. The blocks run once, up to the deepest active depth; what all depths have in common is
computed for all of them.
"""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import Repeat
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule

from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import mixture, unchanged


class MixedRepeat(Repeat, BaseSuperNetModule):
    """Computes ``sum_d P(d) x_d`` over the active depths.

    Args:
        repeat: the module to replace, its depth a choice or an expression of choices; its blocks are
            taken over, not copied.
        joint_sample: where the current weights are read.

    Raises:
        UsageError: the depth depends on more choices than can be tabulated.
    """

    def __init__(self, repeat: Repeat, joint_sample: JointSample) -> None:
        super().__init__(list(repeat.blocks), repeat.depth_choice)
        self._joint_sample = joint_sample
        self._depths = Tabulated({"depth": repeat.depth_choice}, owner="Repeat")

    def of_depth(self, depth: int, x: Any) -> Any:
        """What a network of some depth returns, from what its last block does."""
        return x

    def forward(self, x: Any) -> Any:
        """Takes and returns what a block takes and returns: a tensor, or a tuple or list of tensors.

        Raises:
            UsageError: the outputs of the depths have different shapes, or a block changes its input in place.
        """
        is_network = self._joint_sample.is_network  # whose only weight is the constant 1
        weights = {
            values["depth"]: None if is_network else weight
            for values, weight in self._depths.active(self._joint_sample)
        }
        outputs = {}
        for depth in range(max(weights) + 1):
            if depth > 0:
                with unchanged(x, f"choice {self._depths.told}: block {depth - 1}"):
                    x = self.blocks[depth - 1](x)
            if depth in weights:
                outputs[depth] = self.of_depth(depth, x)

        return mixture(
            list(outputs.values()),
            [weights[depth] for depth in outputs],
            f"choice {self._depths.told}: the depths of Repeat give",
            (f"depth {depth} gives" for depth in outputs),
            "let every block keep the shape of its input",
        )

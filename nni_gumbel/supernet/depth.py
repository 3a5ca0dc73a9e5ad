"""``Repeat`` in a supernet: the weighted sum over its depths.

With ``x_0`` the input and ``x_i = block_i(x_(i-1))``, the mixture is ``sum_d P(d) x_d``: depth 0 is the
input itself. The blocks run once, up to the deepest active depth; what all depths have in common is
computed for all of them.
"""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import Repeat
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn
from torch.utils._pytree import tree_leaves

from nni_gumbel.copies import take_over
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import mixture, unchanged


class MixedRepeat(Repeat, BaseSuperNetModule):
    """Computes ``sum_d P(d) x_d`` over the active depths.

    Args:
        repeat: the module to replace, its depth a choice or an expression of choices; its blocks are
            taken over, not copied.
        joint_sample: where the current weights are read.
        transformation: of the first of two tensors that a network of a single block passes on: what NNI's hub puts
            behind a single cell.
    """

    def __init__(
        self, repeat: Repeat, joint_sample: JointSample, transformation: nn.Module | None = None
    ) -> None:
        take_over(self, repeat)
        self._joint_sample = joint_sample
        self._depths = Tabulated({"depth": repeat.depth_choice}, owner="Repeat")
        self.transformation = transformation

    def of_depth(self, depth: int, x: Any) -> Any:
        """What a network of some depth returns, from what its last block does."""
        return x if depth != 1 or self.transformation is None else [self.transformation(x[0]), x[1]]

    def forward(self, x: Any) -> Any:
        """Takes and returns what a block takes and returns: a tensor, or a tuple or list of tensors.

        Raises:
            UsageError: the outputs of the depths have different shapes, or a block changes its input in place.
        """
        positions, found = self._depths.weighted(self._joint_sample)
        depths = [self._depths.distinct[k]["depth"] for k in positions]
        # The only weight of a network is the constant 1.
        each = [None] if self._joint_sample.is_network else found.unbind()
        outputs = {0: x}
        for depth in range(1, max(depths) + 1):
            with unchanged(tree_leaves(x), f"choice {self._depths.told}: block {depth - 1}"):
                x = self.blocks[depth - 1](x)
            if depth in depths:
                outputs[depth] = self.of_depth(depth, x)
        return mixture(
            [outputs[depth] for depth in depths],
            each,
            f"choice {self._depths.told}: the depths of Repeat give",
            (f"depth {depth} gives" for depth in depths),
            "let every block keep the shape of its input",
        )

"""The weight with which each entry of a shared tensor survives a choice of size.

A supernet's tensor has entries that every variant of its module has, and entries that only the larger
ones have. ``S_i = sum over the variants v that contain entry i of P(v)`` falls from 1 to the weight of
the largest. It is computed from a table with one cell per combination of sizes, by sums from the large
end, not from one mask per variant: 300 variants cost what a few sizes in each dimension cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nni_gumbel.supernet.slicing import Shape, offset


class Survival:
    """``S`` for one tensor.

    Args:
        shapes: per variant the shape of its part; ``None`` for a variant without this tensor.
        full: shape of the supernet's tensor, of one dimension or more.
        centred: per dimension whether the parts are its centre, not its beginning.
    """

    # Its tensors serve all steps; those made in inference mode, if the first one is, autograd would refuse.
    @torch.inference_mode(False)
    def __init__(self, shapes: Sequence[Shape | None], full: Shape, centred: Sequence[bool]) -> None:
        self._full = full
        self._centred = tuple(centred)
        self._has = [shape is not None for shape in shapes]
        # The parts are nested: an entry is in all parts from some size on, in each dimension.
        sizes = [sorted({shape[dim] for shape in shapes if shape is not None}) for dim in range(len(full))]
        self._counts = [len(s) for s in sizes]
        ranks = [
            [0] * len(full) if shape is None else [s.index(extent) for s, extent in zip(sizes, shape)]
            for shape in shapes
        ]
        self._cells = torch.from_numpy(np.ravel_multi_index(np.transpose(ranks), self._counts))
        self._ranks = [
            torch.from_numpy(_smallest_rank(extent, s, is_centred))
            for extent, s, is_centred in zip(full, sizes, self._centred)
        ]

    def __call__(self, members: Sequence[int], weights: Tensor, shape: Shape) -> Tensor:
        """The weight of each entry in the part of a given shape.

        ``S_i = sum over members v that contain entry i of weights_v``

        Args:
            members: positions of variants.
            weights: ``(len(members),)``, their weights.
            shape: at least as large as the parts of all members.

        Returns:
            A tensor that broadcasts to ``shape``, in the dtype of the weights; differentiable.
        """
        if not all(self._has[k] for k in members):
            weights = weights * weights.new_tensor([self._has[k] for k in members])
        self._move(weights.device)
        cells = self._cells if len(members) == len(self._cells) else self._cells[list(members)]
        table = weights.new_zeros(math.prod(self._counts)).index_add(0, cells, weights).view(self._counts)
        for dim, count in enumerate(self._counts):
            if count > 1:
                table = table.flip(dim).cumsum(dim).flip(dim)
                start = offset(self._full[dim], shape[dim], self._centred[dim])
                table = table.index_select(dim, self._ranks[dim][start : start + shape[dim]])
        return table

    @torch.inference_mode(False)
    def _move(self, device: torch.device) -> None:
        if self._cells.device != device:
            self._cells = self._cells.to(device)
            self._ranks = [rank.to(device) for rank in self._ranks]


def _smallest_rank(full: int, sizes: Sequence[int], centred: bool) -> np.ndarray:
    """For each entry of a dimension the smallest size, as its rank, whose part contains it."""
    rank = np.zeros(full, dtype=np.int64)
    for r in reversed(range(len(sizes))):
        start = offset(full, sizes[r], centred)
        rank[start : start + sizes[r]] = r
    return rank

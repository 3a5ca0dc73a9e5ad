"""Sizes of one module that run as one operation: nested parts of one kernel, each entry with its weight.

A mixture of convolutions, each with its part ``W_v`` of one kernel ``W``, is one convolution with the expected kernel
``sum_v P(v) pad(W_v) = W * S``, where ``S`` is the weight of the sizes that contain an entry: the largest of them runs,
with its tensors times ``S``. The same holds for biases, for linear layers, and for a batch norm's scale and shift: it
normalises each channel by itself, whatever the number of channels.

Masks on a shared kernel are those of FBNetV2 (2004.05565) for channels and of Single-Path NAS (1904.02877) for kernels.
Here the weights are masked, not the outputs, which is exact in the width of the input, in biases and at borders, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nni_gumbel.supernet.kernels import CONVOLUTIONS, of_layer
from nni_gumbel.supernet.slicing import Shape, features, is_centred, offset, part, restrict
from nni_gumbel.supernet.variants import Variants

_WEIGHTED = ("weight", "bias")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def key_of_size(template: nn.Module, full: Mapping[str, Shape]) -> Hashable | None:
    """Variants of one module that have one key are one operation together; ``None``: each by itself.

    Convolutions differ in sizes alone: in their number of channels, or of groups of channels if all groups are equally
    large; and in kernels that are aligned, which means padded so that their centres stand on the same entries of the
    input. ``full`` has the shapes of the supernet's tensors.
    """
    kind = type(template)
    if kind is nn.Linear:
        return kind
    if kind in _BATCH_NORMS and template.affine:
        return kind, template.eps, template.momentum, template.track_running_stats
    if kind not in CONVOLUTIONS:
        return None
    frame, kernel = of_layer(template)
    grouping = 1 if kernel.groups == 1 else (kernel.shape[0] // kernel.groups, kernel.shape[1])
    extents = zip(kernel.taps, template.dilation, full["weight"][2:], kernel.shape[2:])
    starts = tuple(
        taps.start - step * offset(whole, size, centred=True) for taps, step, whole, size in extents
    )
    return kind, frame.stride, frame.growth, template.padding_mode, template.dilation, grouping, starts


class Sizes:
    """Variants with one key as one operation, or a variant alone.

    Args:
        variants: all variants of a module.
        members: the positions of those to mix.
        device: that of their weights.

    Attributes:
        largest: the member that can run with the tensors of all, as it has the largest kernel, the most groups, and a
            bias if others have one; ``None`` if there is no such member, and they cannot run as one.
    """

    def __init__(self, variants: Variants, members: Sequence[int], device: torch.device) -> None:
        self.members = tuple(members)
        self._variants, self._device = variants, device
        self._templates = [variants.templates[k] for k in members]
        self._shares: dict[str, Shares | None] = {}
        self.largest: int | None = members[0]
        if len(members) > 1:
            extents = list(map(_extent, self._templates))
            whole = tuple(map(max, zip(*extents)))
            self.largest = members[extents.index(whole)] if whole in extents else None
            self._read = max(features(template).inputs[0][1] for template in self._templates)

    def __call__(
        self, weights: Tensor, state: Mapping[str, Tensor], x: Tensor, runner: Callable[[int], nn.Module]
    ) -> Tensor:
        """``sum_v weight_v pad(M_v(x))``, as large as the outputs of the largest members, in the dtype that they have.

        Args:
            weights: ``(len(members),)``.
            state: the supernet's tensors; running statistics are updated in place, as by the largest member.
            x: the input.
            runner: a variant without weights, as it runs now: in ``train()`` or ``eval()``.
        """
        tensors = {}
        for name in self._variants.shapes[self.largest]:
            tensor = self.part(name, state[name])
            tensors[name] = tensor * self.shares(name)(weights).to(tensor) if name in _WEIGHTED else tensor
        return functional_call(runner(self.largest), tensors, (restrict(x, self._read),))

    def shares(self, name: str) -> Shares | None:
        """The weights of the entries of one of the supernet's tensors; ``None`` if no member has it."""
        if name not in self._shares:
            shapes = [self._variants.shapes[k].get(name) for k in self.members]
            owners = [template for template, shape in zip(self._templates, shapes) if shape is not None]
            self._shares[name] = None
            if owners:
                full = self._variants.full[name]
                centred = [is_centred(owners[0], name, dim) for dim in range(len(full))]
                self._shares[name] = Shares(shapes, full, centred, self._device)
        return self._shares[name]

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """The part of one of the supernet's tensors that the largest members use."""
        return part(self._templates[0], name, tensor, self.shares(name).shape)


def _extent(template: nn.Module) -> tuple[int, ...]:
    """What an operation does not take from its tensors: size of the kernel, groups, whether there is a bias."""
    counts = (getattr(template, name, 1) for name in ("groups", "num_features"))
    return *getattr(template, "kernel_size", ()), *counts, getattr(template, "bias", None) is not None


class Shares:
    """``S``: for each entry of a tensor the weight of the sizes whose part contains it.

    ``S_i = sum over sizes v that contain entry i of w_v`` is constant on the cells between the extents of the sizes;
    300 sizes of a few extents in each dimension have few cells.

    Args:
        shapes: of each size the shape of its part; ``None`` for one without this tensor. ``shape`` is the largest.
        full: shape of the tensor.
        centred: per dimension whether the parts are its centre, not its beginning.
        device: that of the weights.
    """

    # Its tensors serve all steps; those made in inference mode, if the first one is, autograd would refuse.
    @torch.inference_mode(False)
    def __init__(
        self, shapes: Sequence[Shape | None], full: Shape, centred: Sequence[bool], device: torch.device
    ) -> None:
        columns = list(zip(*(shape for shape in shapes if shape is not None)))
        self.shape: Shape = tuple(map(max, columns))
        extents = [sorted(set(column)) for column in columns]
        self._counts = tuple(map(len, extents))
        cells = np.array(list(np.ndindex(self._counts)))
        ranks = [shape and [*map(list.index, extents, shape)] for shape in shapes]
        contains = [np.zeros(len(cells)) if own is None else (own >= cells).all(-1) for own in ranks]
        self._contains = torch.tensor(np.array(contains), dtype=torch.float32, device=device)
        self._cells = [
            torch.tensor(_smallest_rank(*entry)[offset(entry[0], n, entry[2]) :][:n], device=device)
            for *entry, n in zip(full, extents, centred, self.shape)
        ]

    def __call__(self, weights: Tensor) -> Tensor:
        """What broadcasts to ``shape``, in the dtype of the weights, ``(sizes,)``; differentiable."""
        # Not a product of matrices, which autocast would round.
        table = (weights[:, None] * self._contains.to(weights)).sum(0).view(self._counts)
        for dim, cells in enumerate(self._cells):
            if self._counts[dim] > 1:
                table = table.index_select(dim, cells)
        return table


def _smallest_rank(full: int, extents: Sequence[int], centred: bool) -> np.ndarray:
    """For each entry of a dimension the smallest extent, as its rank, whose part contains it."""
    starts, places = [offset(full, extent, centred) for extent in extents[:-1]], np.arange(full)
    outside = [(places < start) | (places >= start + n) for start, n in zip(starts, extents)]
    return np.sum(outside, 0, dtype=np.int64) if outside else np.zeros(full, dtype=np.int64)

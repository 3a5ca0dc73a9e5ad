"""A linear operation is a kernel placed on a canvas, and a mixture of them is one operation with the sum of theirs.

    sum_k w_k conv(x, W_k) = conv(x, sum_k w_k W_k),

borders included, where each kernel lies on the entries of the canvas that its operation reads. An operation is
described by the *taps* of its kernel: along each dimension, the places that it reads relative to the first place of a
window. Those of a convolution are ``range(-padding, -padding + dilation * size, dilation)``, those of an identity
``range(0, 1)``; those of a canvas are the smallest range that contains all of them.

Linear *candidates* of a choice (:mod:`~nni_gumbel.supernet.candidates`) are ``Conv1d`` to ``Conv3d`` with zero padding,
a depthwise convolution followed by a pointwise one, ``Linear``, ``Identity``, average pooling that divides by a
constant, and NNI's ``Zero``. Types are compared exactly: a subclass computes what it likes. (The sizes of one module
are nested parts of one kernel, which needs no canvas: :mod:`~nni_gumbel.supernet.sizes`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nni_gumbel.supernet.slicing import Shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
# By name: importing NNI's hub takes longer than everything else here.
_ZEROS = {("nni.nas.hub.pytorch.nasbench201", "Zero"), ("nni.nas.hub.pytorch.nasnet", "Zero")}


@dataclass(frozen=True)
class Frame:
    """What operations have in common whose kernels can lie on one canvas.

    With strides above 1, outputs of different ``growth`` have one size for some inputs only.

    Args:
        channels: of the input and of the output.
        stride: per dimension; empty for ``Linear``.
        growth: per dimension, padding on both sides minus ``dilation * (kernel size - 1)``. With equal strides it
            decides the size of the output, whatever the size of the input.
    """

    channels: tuple[int, int]
    stride: tuple[int, ...] = ()
    growth: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a canvas that holds several.

    Args:
        shape: ``(out, in / groups, *size)``.
        taps: per dimension, where it reads the input relative to the place of an output.
        groups: of channels that do not see each other.
        cost: multiply-adds for all channels of one place of the output.
        value: of all entries of a kernel that has no parameters; ``None`` for one that has.
    """

    shape: Shape
    taps: tuple[range, ...]
    groups: int
    cost: int
    value: float | None = None


def is_zero_of_nni(module: nn.Module) -> bool:
    """Whether a candidate is NNI's ``Zero``: zeros of the shape of its input, of every ``stride``-th entry of it.

    That of NAS-Bench-201 may give another number of channels.
    """
    kind = type(module)
    is_zero = (kind.__module__, kind.__qualname__) in _ZEROS
    return is_zero and getattr(module, "C_in", None) == getattr(module, "C_out", None)


# -- one operation -----------------------------------------------------------------------------------


def of_layer(layer: nn.Module) -> tuple[Frame, Kernel]:
    """The frame and the kernel of a convolution, with whatever padding, or of a linear layer."""
    shape = tuple(layer.weight.shape)
    if not hasattr(layer, "kernel_size"):
        return Frame((shape[1], shape[0])), Kernel(shape, (), 1, math.prod(shape))
    size, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        totals = [d * (n - 1) for d, n in zip(dilation, size)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(n, n) for n in (layer.padding if layer.padding != "valid" else (0,) * len(size))]
    taps, growth = _placed(size, pads, dilation)
    frame = Frame((layer.in_channels, layer.out_channels), tuple(layer.stride), growth)
    return frame, Kernel(shape, taps, layer.groups, math.prod(shape))


def of_candidate(module: nn.Module) -> tuple[Frame, Kernel] | None:
    """The frame and the kernel of a candidate with parameters; ``None`` for all others."""
    if type(module) is nn.Linear or (type(module) in CONVOLUTIONS and module.padding_mode == "zeros"):
        return of_layer(module)
    kinds = {*map(type, module)} if type(module) is nn.Sequential and len(module) == 2 else set()
    if len(kinds) != 1 or not kinds <= {*CONVOLUTIONS}:
        return None
    (frame, kernel), (then, pointwise) = map(of_layer, module)
    channels, ones = frame.channels[0], (1,) * len(frame.stride)
    is_depthwise = kernel.groups == channels == frame.channels[1]
    is_pointwise = (pointwise.groups, pointwise.shape[2:], then.stride) == (1, ones, ones)
    # With a padding of its own it would not add the first one's bias to every place of the output.
    is_unpadded = not any(then.growth) and all(layer.padding_mode == "zeros" for layer in module)
    if not (is_depthwise and is_pointwise and is_unpadded):
        return None
    shape = (*pointwise.shape[:2], *kernel.shape[2:])
    whole = Kernel(shape, kernel.taps, 1, kernel.cost + pointwise.cost)
    return Frame((channels, shape[0]), frame.stride, frame.growth), whole


def in_frame(module: nn.Module, frame: Frame) -> Kernel | None:
    """The kernel of a candidate in a frame; ``None`` if it has none there."""
    own = of_candidate(module)
    if own is not None:
        return own[1] if own[0] == frame else None
    dims, (inputs, outputs) = len(frame.stride), frame.channels
    size, stride, pad, cost, value = (1,) * dims, (1,) * dims, (0,) * dims, 0, 1.0
    if is_zero_of_nni(module) and (module.stride == 1 or dims == 2):
        stride, value = (module.stride,) * dims, 0.0
    elif type(module) in POOLS:
        size, stride, pad = (
            (entry,) * POOLS[type(module)] if isinstance(entry, int) else tuple(entry)
            for entry in (module.kernel_size, module.stride, module.padding)
        )
        is_varying = any(pad) and not module.count_include_pad
        if is_varying or module.ceil_mode or getattr(module, "divisor_override", None) is not None:
            return None
        cost, value = inputs * math.prod(size), 1 / math.prod(size)
    elif type(module) is not nn.Identity:
        return None
    taps, growth = _placed(size, [(n, n) for n in pad], (1,) * len(size))
    if inputs != outputs or frame != Frame(frame.channels, stride, growth):
        return None
    return Kernel((outputs, 1, *size), taps, inputs, cost, value)


def kernel_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The kernel, ``(out, in / groups, *size)``, and the bias, ``(out,)``, of a candidate that has parameters."""
    if not isinstance(module, nn.Sequential):
        return module.weight, module.bias
    first, last = module
    kernel, bias = last.weight * first.weight.transpose(0, 1), last.bias
    if first.bias is not None:
        through = (last.weight.flatten(1) * first.bias).sum(1)
        bias = through if bias is None else through + bias
    return kernel, bias


def _placed(
    size: Sequence[int], pads: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> tuple[tuple[range, ...], tuple[int, ...]]:
    """The taps and the growth of a kernel."""
    taps = tuple(
        range(-left, -left + (d * n if n > 1 else 1), d if n > 1 else 1)
        for n, (left, _), d in zip(size, pads, dilation)
    )
    return taps, tuple(left + right - d * (n - 1) for n, (left, right), d in zip(size, pads, dilation))


# -- several operations ------------------------------------------------------------------------------


def canvas(kernels: Sequence[Kernel]) -> Kernel:
    """The smallest kernel that contains others of one frame."""
    taps = tuple(map(_hull, zip(*(kernel.taps for kernel in kernels))))
    groups, first = math.gcd(*(kernel.groups for kernel in kernels)), kernels[0]
    shape = (first.shape[0], first.shape[1] * first.groups // groups, *map(len, taps))
    return Kernel(shape, taps, groups, math.prod(shape))


class Place:
    """Where a kernel lies on its canvas."""

    def __init__(self, kernel: Kernel, whole: Kernel) -> None:
        self._entries = tuple(map(_slice, kernel.taps, whole.taps))
        # As many groups of the kernel are in one group of the canvas, as blocks on its diagonal.
        self._groups, self._ratio = whole.groups, kernel.groups // whole.groups

    def on(self, whole: Tensor) -> Tensor:
        """A view of the canvas: ``(out, in, *size)``, or ``(groups, ratio, out, in, *size)`` of blocks."""
        if self._ratio > 1:
            blocks = whole.unflatten(0, (self._groups, self._ratio, -1)).unflatten(3, (self._ratio, -1))
            whole = blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        return whole[(..., *self._entries)]


class WeightedKernel(torch.autograd.Function):
    """``sum_k w_k W_k`` on a canvas; differentiable, also twice.

    It is built in every step, forward and backward, so that its own cost counts for small images. It is one node of
    autograd, which stores nothing but the kernels themselves. Four layers of convolutions 1, 3, 5, 7 on 16 channels,
    batch 32 of 28 x 28, one thread, relative to four 7 x 7 convolutions, on a busy machine: 8 candidates 1.06 to 1.16,
    32 candidates 1.12 to 1.19 (once 1.36), and 8 that run each by itself 3.8 to 5.1.
    """

    @staticmethod
    def forward(ctx: Any, shape: Shape, places: Sequence[Place], weights: Tensor, *kernels: Tensor) -> Tensor:
        """``weights``: ``(len(kernels),)``; ``kernels``: ``(out, in / groups, *size)`` each, of one dtype."""
        ctx.places = places
        ctx.save_for_backward(weights, *kernels)
        whole = kernels[0].new_zeros(shape)
        for place, weight, kernel in zip(places, weights.to(whole.dtype).unbind(), kernels):
            entries = place.on(whole)
            entries.addcmul_(kernel.reshape(entries.shape), weight)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *kernels = ctx.saved_tensors
        _, _, needs_weights, *needs_kernels = ctx.needs_input_grad
        of_weights, of_kernels = [], []
        each = weights.to(gradient.dtype).unbind()
        for place, weight, kernel, is_needed in zip(ctx.places, each, kernels, needs_kernels):
            own = place.on(gradient).reshape(kernel.shape)
            of_kernels.append(own * weight if is_needed else None)
            if needs_weights:
                of_weights.append((own * kernel).sum())
        of_weights = torch.stack(of_weights).to(weights.dtype) if needs_weights else None
        return None, None, of_weights, *of_kernels


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, frame: Frame, whole: Kernel) -> Tensor:
    """The linear operation of a kernel on its canvas: ``(batch, out, *size)``, or ``(*, out)`` without taps."""
    if not whole.taps:
        return functional.linear(x, kernel, bias)
    pads = [(-t.start, growth + t[-1]) for t, growth in zip(whole.taps, frame.growth)]
    padding = tuple(left for left, _ in pads)
    if any(left != right for left, right in pads):
        x = functional.pad(x, [side for pair in reversed(pads) for side in pair])
        padding = (0,) * len(pads)
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[len(pads) - 1]
    dilation = tuple(taps.step for taps in whole.taps)
    return convolution(x, kernel, bias, frame.stride, padding, dilation, whole.groups)


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Kernels are summed in the precision in which they are kept; autocast rounds their sum at last."""
    # Asked first: a context of autocast takes as long as a small kernel.
    return torch.autocast(device, enabled=False) if torch._C._is_any_autocast_enabled() else nullcontext()


def _hull(ranges: Sequence[range]) -> range:
    start, last = min(taps.start for taps in ranges), max(taps[-1] for taps in ranges)
    steps = [taps.step for taps in ranges if len(taps) > 1]
    return range(start, last + 1, math.gcd(*steps, *(taps.start - start for taps in ranges)) or 1)


def _slice(own: range, whole: range) -> slice:
    """Where taps lie among those of a canvas."""
    start = whole.index(own.start)
    step = own.step // whole.step if len(own) > 1 else 1
    return slice(start, start + step * (len(own) - 1) + 1, step)

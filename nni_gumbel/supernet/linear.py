"""Linear candidates of one choice as kernels: which of them are one operation, and of what size.

A mixture of linear operations is linear: ``sum_k w_k conv(x, W_k) = conv(x, sum_k w_k W_k)``, borders included,
if each kernel lies on the entries of the input that its candidate reads. So a candidate is described by the
*taps* of its kernel: along each dimension, the places that it reads relative to the first place of a window. Those
of a convolution are ``range(-padding, -padding + dilation * size, dilation)``; those of an identity are
``range(0, 1)``. The taps of a merged kernel are the smallest range that contains all of them.

What is a kernel: ``Conv1d`` to ``Conv3d`` with zero padding, a convolution followed by a pointwise one,
``Linear``, ``Identity``, average pooling that divides by a constant, and NNI's ``Zero``. Types are compared
exactly: a subclass computes what it likes.

Merging costs: a depthwise 3 x 3 on 64 channels is 64 times cheaper than the dense 3 x 3 that contains it. So
candidates are merged only where this costs no more multiply-adds than they do (:func:`merge`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from nni.nas.nn.pytorch import ParametrizedModule
from torch import Tensor, nn

Taps = tuple[range, ...]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_AVERAGE_POOLS = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
# By name: importing NNI's hub takes longer than everything else here.
_ZEROS = {("nni.nas.hub.pytorch.nasbench201", "Zero"), ("nni.nas.hub.pytorch.nasnet", "Zero")}


@dataclass(frozen=True)
class Frame:
    """What candidates have in common that can be one operation.

    Candidates of strides above 1 whose ``growth`` differs give outputs of one size for some inputs only; they are
    not merged.

    Args:
        channels: of the input and of the output.
        stride: per dimension; empty for ``Linear``.
        growth: per dimension, padding on both sides minus ``dilation * (kernel size - 1)``. With equal strides
            it decides the size of the output, whatever the size of the input.
    """

    channels: tuple[int, int]
    stride: tuple[int, ...]
    growth: tuple[int, ...]

    @property
    def keeps_shape(self) -> bool:
        """Whether the output is as large as the input."""
        return self.channels[0] == self.channels[1] and set(self.stride) <= {1} and not any(self.growth)


@dataclass(frozen=True)
class Kernel:
    """A candidate as a kernel, or several of them as one.

    Args:
        taps: per dimension, where it reads the input relative to the place of an output.
        groups: of channels that do not see each other.
        multiply_adds: for all channels of one place of the output.
        diagonal: the value of all entries of a kernel that has no parameters; ``None`` for one that has.
    """

    taps: Taps
    groups: int
    multiply_adds: int
    diagonal: float | None = None


@dataclass(frozen=True)
class Merge:
    """Candidates that run as one operation, in the order of the choice, with the kernel that contains theirs."""

    frame: Frame
    names: tuple[Any, ...]
    kernel: Kernel


def built_type(module: nn.Module) -> type[nn.Module]:
    """The type that decides what a module computes: of NNI's ``MutableConv2d`` without choices ``nn.Conv2d``."""
    kind = type(module)
    bound = kind._bound_type if isinstance(module, ParametrizedModule) and not module.mutables else None
    if bound is not None and all(
        getattr(kind, name, None) is getattr(bound, name, None) for name in ("forward", "_conv_forward")
    ):
        return bound
    return kind


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module does what its type says: nobody hooked into it or replaced its ``forward``."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_convolution(module: nn.Module) -> bool:
    """Whether a candidate is a convolution, with whatever padding."""
    return built_type(module) in _CONVOLUTIONS


def is_average(module: nn.Module) -> bool:
    """Whether a candidate is average pooling."""
    return type(module) in _AVERAGE_POOLS


def is_zero(module: nn.Module) -> bool:
    """Whether a candidate gives zeros of the shape of its input: NNI's ``Zero`` without stride."""
    return (
        _is_zero_of_nni(module)
        and module.stride == 1
        and getattr(module, "C_in", None) == getattr(module, "C_out", None)
    )


def _is_zero_of_nni(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__qualname__) in _ZEROS


# -- one candidate ---------------------------------------------------------------------------------


def frame_of(module: nn.Module) -> Frame | None:
    """The frame of a candidate with a kernel of its own; ``None`` for others, and for what is no kernel."""
    convolutions = _convolutions_of(module)
    if convolutions:
        first, last = convolutions[0], convolutions[-1]
        growth = tuple(
            sum(pads) - dilation * (size - 1)
            for pads, dilation, size in zip(_padding(first), first.dilation, first.kernel_size)
        )
        return Frame((first.in_channels, last.out_channels), tuple(first.stride), growth)
    if built_type(module) is nn.Linear:
        return Frame((module.in_features, module.out_features), (), ())
    return None


def kernel_in(module: nn.Module, frame: Frame) -> Kernel | None:
    """A candidate as a kernel within a frame; ``None`` if it is none."""
    kind, (inputs, outputs), dims = built_type(module), frame.channels, len(frame.stride)
    if kind is nn.Identity:
        return Kernel((range(1),) * dims, inputs, 0, 1.0) if frame.keeps_shape else None
    if kind in _AVERAGE_POOLS:
        return _average(module, frame)
    if _is_zero_of_nni(module):
        return Kernel((range(1),) * dims, inputs, 0, 0.0) if _is_zero_in(module, frame) else None
    if frame_of(module) != frame:
        return None
    if kind is nn.Linear:
        return Kernel((), 1, inputs * outputs)
    convolutions = _convolutions_of(module)
    first = convolutions[0]
    taps = tuple(
        _taps(left, dilation, size)
        for (left, _), dilation, size in zip(_padding(first), first.dilation, first.kernel_size)
    )
    cost = first.weight.numel() + sum(pointwise.weight.numel() for pointwise in convolutions[1:])
    return Kernel(taps, first.groups if len(convolutions) == 1 else 1, cost)


def kernel_tensor(module: nn.Module) -> Tensor:
    """``(out, in / groups, *size)``: the kernel of a candidate that has parameters; differentiable."""
    if not isinstance(module, nn.Sequential):
        return module.weight
    first, last = module
    pointwise, outputs, middle, groups = last.weight, last.out_channels, first.out_channels, first.groups
    if first.weight.shape[:2] == (groups, 1):
        return pointwise * first.weight.transpose(0, 1)
    return torch.einsum(
        "ogm,gmik->ogik",
        pointwise.reshape(outputs, groups, middle // groups),
        first.weight.reshape(groups, middle // groups, first.in_channels // groups, -1),
    ).reshape(outputs, first.in_channels, *first.kernel_size)


def bias_tensor(module: nn.Module) -> Tensor | None:
    """``(out,)``: the bias of a candidate that has parameters, ``None`` if it adds none; differentiable."""
    if not isinstance(module, nn.Sequential):
        return module.bias
    first, last = module
    if first.bias is None:
        return last.bias
    through = (last.weight.flatten(1) * first.bias).sum(1)
    return through if last.bias is None else through + last.bias


def _convolutions_of(module: nn.Module) -> list[nn.Module]:
    """The convolution that a candidate is, or a convolution and the pointwise one after it; else nothing.

    The pointwise one has no padding of its own: what the first one's bias adds reaches every place of the output.
    """
    kind = built_type(module)
    if kind in _CONVOLUTIONS:
        return [module] if module.padding_mode == "zeros" else []
    if kind is not nn.Sequential or len(module) != 2:
        return []
    first, last = module
    if not (built_type(first) is built_type(last) in _CONVOLUTIONS):
        return []
    is_pointwise = set(last.kernel_size) == {1} == set(last.stride) and last.groups == 1
    unpadded = not any(map(any, _padding(last)))
    zeros = first.padding_mode == last.padding_mode == "zeros"
    return [first, last] if is_pointwise and unpadded and zeros else []


def _padding(convolution: nn.Module) -> list[tuple[int, int]]:
    """Left and right, per dimension."""
    if convolution.padding == "valid":
        return [(0, 0)] * len(convolution.kernel_size)
    if convolution.padding == "same":
        totals = [d * (size - 1) for d, size in zip(convolution.dilation, convolution.kernel_size)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(padding, padding) for padding in convolution.padding]


def _average(pool: nn.Module, frame: Frame) -> Kernel | None:
    """An average over a constant number of entries, those of the padding included."""
    dims = _AVERAGE_POOLS[type(pool)]
    size, stride, padding = (_each(value, dims) for value in (pool.kernel_size, pool.stride, pool.padding))
    divisor_varies = any(padding) and not pool.count_include_pad
    growth = tuple(2 * pad - (length - 1) for pad, length in zip(padding, size))
    inputs, outputs = frame.channels
    if (
        divisor_varies
        or pool.ceil_mode
        or getattr(pool, "divisor_override", None) is not None
        or (stride, growth) != (frame.stride, frame.growth)
        or inputs != outputs
    ):
        return None
    taps = tuple(_taps(pad, 1, length) for pad, length in zip(padding, size))
    return Kernel(taps, inputs, inputs * math.prod(size), 1 / math.prod(size))


def _is_zero_in(zero: nn.Module, frame: Frame) -> bool:
    """Whether NNI's ``Zero`` gives zeros of the size that the frame says.

    It keeps every ``stride``-th entry of the last two dimensions of images. That of NAS-Bench-201 ignores the
    stride where the numbers of channels differ.
    """
    # That of NASNet has as many channels as its input, whatever they are.
    channels = (zero.C_in, zero.C_out) if hasattr(zero, "C_in") else (frame.channels[0],) * 2
    stride = zero.stride if channels[0] == channels[1] else 1
    if channels != frame.channels or any(frame.growth):
        return False
    if frame.stride == ():
        return stride == 1 and channels[0] == channels[1]
    return frame.stride == (stride,) * len(frame.stride) and (stride == 1 or len(frame.stride) == 2)


def _taps(left: int, dilation: int, size: int) -> range:
    return range(-left, -left + 1) if size == 1 else range(-left, -left + dilation * size, dilation)


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    # Also a sequence of one, which AvgPool1d makes.
    return (value,) * dims if isinstance(value, int) else tuple(value)


# -- several candidates ----------------------------------------------------------------------------


def merge(candidates: Mapping[Any, nn.Module]) -> list[Merge]:
    """Which candidates run as one operation such that all of them together cost the fewest multiply-adds.

    Starting from each by itself, the two that save most by becoming one become one, until no two of them save
    anything; two that cost the same as one do, too, because one pass is cheaper than two. So no merged kernel
    costs more than what it replaces. (Not always the optimum over all partitions, which only a kernel that
    three, but no two, of the candidates repay would show.)

    Candidates without parameters join those that have some, and are no merge among themselves: a convolution
    with an average is slower than an average.

    Args:
        candidates: by name.

    Returns:
        Merges of two candidates at least, and convolutions and linear layers that stay alone: their weight in
        the mixture can scale their kernel, which mostly is smaller than their output.
    """
    names = list(candidates)
    frames = dict.fromkeys(filter(None, map(frame_of, candidates.values())))
    merges: list[Merge] = []
    for frame in frames:
        left = [name for name in names if not any(name in merged.names for merged in merges)]
        kernels = {name: kernel_in(candidates[name], frame) for name in left}
        merges += _cheapest({name: kernel for name, kernel in kernels.items() if kernel}, frame, names.index)
    return [
        one for one in merges if len(one.names) > 1 or not isinstance(candidates[one.names[0]], nn.Sequential)
    ]


def _cheapest(kernels: Mapping[Any, Kernel], frame: Frame, place: Callable[[Any], int]) -> list[Merge]:
    # Those that lie alike cost one of them, however many they are.
    alike: dict[tuple[Taps, int, bool], list[Any]] = {}
    for name, kernel in kernels.items():
        alike.setdefault((kernel.taps, kernel.groups, kernel.diagonal is None), []).append(name)
    groups: list[tuple[list[Any], Kernel]] = []
    for (_, _, has_parameters), members in alike.items():
        own = [kernels[name] for name in members]
        total = sum(kernel.multiply_adds for kernel in own)
        joined = _joined(own, frame) if has_parameters else replace(own[0], multiply_adds=total)
        # Sequences that lie alike are cheap until there are many.
        is_cheaper = len(own) > 1 and joined.multiply_adds <= total
        groups += [(members, joined)] if is_cheaper else [([name], kernels[name]) for name in members]
    while True:
        best, saved = None, -1
        for one, other in combinations(groups, 2):
            if one[1].diagonal is not None and other[1].diagonal is not None:
                continue
            joined = _joined([one[1], other[1]], frame)
            saving = one[1].multiply_adds + other[1].multiply_adds - joined.multiply_adds
            if saving > saved:
                best, saved = (one, other, joined), saving
        if best is None:
            break
        one, other, joined = best
        groups = [group for group in groups if group is not one and group is not other]
        groups.append((one[0] + other[0], joined))
    return [
        Merge(frame, tuple(sorted(names, key=place)), kernel)
        for names, kernel in groups
        if kernel.diagonal is None
    ]


def _joined(kernels: Sequence[Kernel], frame: Frame) -> Kernel:
    """The smallest kernel that contains others, at least one of which has parameters."""
    taps = tuple(map(_hull, zip(*(kernel.taps for kernel in kernels))))
    groups = math.gcd(*(kernel.groups for kernel in kernels))
    inputs, outputs = frame.channels
    return Kernel(taps, groups, inputs * outputs // groups * math.prod(map(len, taps)))


def _hull(ranges: Sequence[range]) -> range:
    start = min(one.start for one in ranges)
    last = max(one[-1] for one in ranges)
    steps = [one.step for one in ranges if len(one) > 1]
    step = math.gcd(*steps, *(one.start - start for one in ranges)) or 1
    return range(start, last + 1, step)

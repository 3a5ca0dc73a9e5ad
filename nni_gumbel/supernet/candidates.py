"""Which candidates of a layer choice run as one operation, and when that pays.

A plan is a pure function of the candidates; :class:`~nni_gumbel.supernet.layer.MixedLayer` makes one for each
set of candidates that is active together, and runs it.

Merging costs: a depthwise 3 x 3 on 64 channels is 64 times cheaper than the dense 3 x 3 that contains it. So linear
candidates (:mod:`nni_gumbel.supernet.kernels`) share a canvas only where it takes no more multiply-adds than they do
(:func:`merge`), and run on it only where their kernels, which are weighted and added, are small beside the outputs that
would be (:meth:`MergedLinear.repays`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_gumbel.supernet.elementwise import ElementwiseMixture, is_elementwise, is_zero
from nni_gumbel.supernet.kernels import (
    POOLS,
    Frame,
    Kernel,
    Place,
    WeightedKernel,
    canvas,
    convolve,
    full_precision,
    in_frame,
    kernel_and_bias,
    of_candidate,
)

# With fewer, no vector instruction is filled: with 4 channels the conversions cost what they save.
_CHANNELS_OF_A_VECTOR = 8

# What a multiply-add costs, relative to an entry that is read, weighted and written.
_MULTIPLY_ADD = 0.05

_SAVES_NOTHING = "a merged kernel would cost more, or there is none"


@dataclass(frozen=True)
class Plan:
    """What runs for a set of active candidates.

    Args:
        operations: each instead of the candidates that it names.
        alone: why each of the other candidates runs by itself.
    """

    operations: tuple[MergedLinear | ElementwiseMixture, ...]
    alone: Mapping[Any, str]

    @property
    def is_merged(self) -> bool:
        """Whether any candidates run as one."""
        return any(len(operation.names) > 1 for operation in self.operations)

    def describe(self) -> str:
        """What runs as one operation, and what by itself and why, in a line."""
        parts, reasons = [], {}
        for one in self.operations:
            if len(one.names) > 1:
                parts.append(f"{', '.join(map(str, one.names))} as {one.describe()}")
            else:
                reasons.setdefault(_SAVES_NOTHING, []).append(str(one.names[0]))
        for name, reason in self.alone.items():
            reasons.setdefault(reason, []).append(str(name))
        return "; ".join(parts + [f"{', '.join(names)} alone: {reason}" for reason, names in reasons.items()])


@torch.no_grad()  # nothing of a plan is differentiated, and checkpointing counts what is saved
def plan(candidates: Mapping[Any, nn.Module]) -> Plan:
    """How candidates that run, by name, give together the outputs and all gradients of their weighted sum."""
    usable = {name: module for name, module in candidates.items() if all(map(is_untouched, module.modules()))}
    operations: list[MergedLinear | ElementwiseMixture] = [*merge(usable)]
    merged = {name for operation in operations for name in operation.names}
    left = {name: module for name, module in candidates.items() if name not in merged}
    elementwise = {n: module for n, module in left.items() if n in usable and is_elementwise(module)}
    if len(elementwise) > 1 and not all(map(is_zero, elementwise.values())):
        operations.append(ElementwiseMixture(elementwise))
        left = {name: module for name, module in left.items() if name not in elementwise}
    alone = {name: _reason(module) if name in usable else "hooked into" for name, module in left.items()}
    return Plan(tuple(operations), alone)


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module does what its type says: nobody hooked into it or replaced its ``forward``."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def call_alone(module: nn.Module, x: Tensor) -> Any:
    """What a candidate returns, max pooling on a CPU by way of ``channels_last``.

    Torch's kernel of it is written for that layout: forward and backward of 3 x 3 on 32 x 20 x 14 x 14 take 1.5 ms
    with both conversions, and 4.9 ms without. The same entries are chosen, also among equal ones.
    """
    if (
        type(module) is nn.MaxPool2d
        and is_untouched(module)
        and not module.return_indices
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] >= _CHANNELS_OF_A_VECTOR
        and x.is_contiguous()
    ):
        return module(x.contiguous(memory_format=torch.channels_last)).contiguous()
    return module(x)


def _reason(module: nn.Module) -> str:
    if of_candidate(module) is not None:
        return _SAVES_NOTHING
    if type(module) in POOLS:
        return "joins only convolutions of its stride and size, and not with a divisor that varies at borders"
    if is_elementwise(module):
        return "no other is elementwise"
    if any(isinstance(part, _BatchNorm) for part in module.modules()):
        return "a batch norm is not linear in train mode"
    return "neither linear, with a padding of zeros, nor elementwise"


@dataclass(frozen=True)
class MergedLinear:
    """Linear candidates, with their kernels, in one frame on one canvas: one convolution or linear layer."""

    frame: Frame
    canvas: Kernel
    members: Mapping[Any, tuple[nn.Module, Kernel]]

    @property
    def names(self) -> tuple[Any, ...]:
        """Of the candidates."""
        return tuple(self.members)

    @cached_property
    def _places(self) -> list[Place]:
        return [Place(kernel, self.canvas) for _, kernel in self.members.values()]

    def __call__(self, x: Tensor, weights: Mapping[Any, Tensor]) -> Tensor:
        """The candidates' weighted sum: ``(batch, out, *size)``, or ``(*, out)`` of a linear layer."""
        with full_precision(x.device.type):
            members = self.members.items()
            own = {n: kernel_and_bias(module) for n, (module, kernel) in members if kernel.value is None}
            like = next(iter(own.values()))[0]
            kernels = [
                own[name][0] if name in own else like.new_full(kernel.shape, kernel.value)
                for name, (_, kernel) in members
            ]
            stacked = torch.stack([weights[name] for name in self.members])
            whole = WeightedKernel.apply(self.canvas.shape, self._places, stacked, *kernels)
            bias, biases = None, {name: bias for name, (_, bias) in own.items() if bias is not None}
            if biases:
                added = torch.stack([*biases.values()])
                bias = torch.stack([weights[name] for name in biases]).to(added.dtype) @ added
        return convolve(x, whole, bias, self.frame, self.canvas)

    def repays(self, x: Tensor) -> bool:
        """Whether the kernels, which are weighted and added, are small beside the outputs that would be.

        So they are in convolutions of images; late layers with many channels on few places, and linear layers at small
        batches are cheaper one by one.
        """
        frame, places = self.frame, x.numel() // x.shape[-1]
        if self.canvas.taps:
            dims = len(frame.stride)
            size = (
                (n + growth - 1) // stride + 1
                for n, growth, stride in zip(x.shape[-dims:], frame.growth, frame.stride)
            )
            places = x.shape[: -dims - 1].numel() * math.prod(size)
        entries = (p.numel() for module, _ in self.members.values() for p in module.parameters())
        ours = math.prod(self.canvas.shape) + sum(entries)
        # Multiply-adds at one place of the output.
        saved = sum(kernel.cost for _, kernel in self.members.values()) - self.canvas.cost
        return ours <= places * (frame.channels[1] * len(self.members) + _MULTIPLY_ADD * saved)

    def describe(self) -> str:
        """Its kind and size."""
        if not self.canvas.taps:
            return "one linear layer"
        groups = f" in {self.canvas.groups} groups" if self.canvas.groups > 1 else ""
        return f"one {'x'.join(str(len(taps)) for taps in self.canvas.taps)} convolution{groups}"


def merge(candidates: Mapping[Any, nn.Module]) -> list[MergedLinear]:
    """Which candidates share a canvas such that all of them together cost the fewest multiply-adds.

    Starting from each by itself, the two that save most by becoming one become one, until no two of them save
    anything; two that cost the same as one do, too, because one pass is cheaper than two. So no merged kernel
    costs more than what it replaces. (Not always the optimum over all partitions, which only a kernel that
    three, but no two, of the candidates repay would show.) Candidates without parameters join those that have some,
    and are no merge among themselves: a convolution with an average is slower than an average.

    Args:
        candidates: by name.

    Returns:
        Merges of two candidates at least, and convolutions and linear layers that stay alone: their weight in
        the mixture can scale their kernel, which mostly is smaller than their output.
    """
    merges: list[MergedLinear] = []
    left = dict(candidates)
    for frame in dict.fromkeys(own[0] for own in map(of_candidate, candidates.values()) if own is not None):
        kernels = {name: kernel for name, module in left.items() if (kernel := in_frame(module, frame))}
        for names, whole in _cheapest(kernels):
            members = {name: (left.pop(name), kernel) for name, kernel in kernels.items() if name in names}
            if len(names) > 1 or not isinstance(candidates[names[0]], nn.Sequential):
                merges.append(MergedLinear(frame, whole, members))
    return merges


def _cheapest(kernels: Mapping[Any, Kernel]) -> list[tuple[list[Any], Kernel]]:
    """Names that share a canvas, which has parameters, and the canvas."""
    groups = [([name], kernel) for name, kernel in kernels.items()]
    while True:
        best, most = None, 0
        for (i, (_, one)), (j, (_, other)) in combinations(enumerate(groups), 2):
            if one.value is None or other.value is None:
                whole = canvas([one, other])
                saved = one.cost + other.cost - whole.cost
                if saved > most or (best is None and saved == 0):
                    best, most = (i, j, whole), saved
        if best is None:
            return [(names, whole) for names, whole in groups if whole.value is None]
        i, j, whole = best
        groups[i] = (groups[i][0] + groups.pop(j)[0], whole)

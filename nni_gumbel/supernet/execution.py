"""How the candidates of a layer choice are executed: which of them as one operation, and which by themselves.

A plan is a pure function of the candidates; :class:`~nni_gumbel.supernet.layer.MixedLayer` makes one for each
set of candidates that is active together, and runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from nni_gumbel.supernet.elementwise import ElementwiseMixture, is_elementwise
from nni_gumbel.supernet.linear import (
    Merge,
    bias_tensor,
    frame_of,
    is_average,
    is_convolution,
    is_untouched,
    is_zero,
    kernel_in,
    kernel_tensor,
    merge,
)
from nni_gumbel.supernet.weighted_kernel import KernelPlan, full_precision, weighted_kernel, weighted_sum

_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)

# With fewer, no vector instruction is filled: with 4 channels the conversions cost what they save.
_CHANNELS_OF_A_VECTOR = 8

# What a multiply-add costs, relative to an entry that is read, weighted and written.
_MULTIPLY_ADD = 0.05

_SAVES_NOTHING = "a merged kernel would cost more, or there is none"


class Operation(Protocol):
    """Candidates that run as one."""

    names: tuple[Any, ...]

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """``sum_k weight_k candidate_k(x)`` over its candidates; ``weights`` are those of the whole choice."""
        ...

    def repays(self, x: Tensor) -> bool:
        """Whether it is cheaper than its candidates one by one for such an input."""
        ...

    def describe(self) -> str:
        """What it is."""
        ...


@dataclass(frozen=True)
class Plan:
    """What runs for a set of active candidates.

    Args:
        operations: each instead of the candidates that it names.
        alone: the other candidates, which run by themselves, and why.
        modules: all modules that are not called, but replaced by operations: with the types that they had.
        touched: modules that somebody hooked into, which therefore are called.
    """

    operations: tuple[Operation, ...]
    alone: Mapping[Any, str]
    modules: tuple[tuple[nn.Module, type[nn.Module]], ...] = ()
    touched: tuple[nn.Module, ...] = ()

    def holds(self) -> bool:
        """Whether it would be the same now: hooks and parametrizations, which must be obeyed, come and go."""
        return all(
            type(module) is kind and is_untouched(module) for module, kind in self.modules
        ) and not any(map(is_untouched, self.touched))

    @property
    def is_merged(self) -> bool:
        """Whether any candidates run as one."""
        return any(len(operation.names) > 1 for operation in self.operations)

    def describe(self) -> str:
        """What runs as one operation, and what by itself and why, in a line."""
        merged = [
            f"{', '.join(map(str, operation.names))} as {operation.describe()}"
            for operation in self.operations
            if len(operation.names) > 1
        ]
        single = {one.names[0]: _SAVES_NOTHING for one in self.operations if len(one.names) == 1}
        reasons: dict[str, list[str]] = {}
        for name, reason in (single | dict(self.alone)).items():
            reasons.setdefault(reason, []).append(str(name))
        return "; ".join(
            merged + [f"{', '.join(names)} alone: {reason}" for reason, names in reasons.items()]
        )


@torch.no_grad()  # nothing of a plan is differentiated, and checkpointing counts what is saved
def plan(candidates: Mapping[Any, nn.Module], active: Sequence[Any] | None = None) -> Plan:
    """How candidates are executed together.

    Args:
        candidates: of a choice, by name, in the order of the choice.
        active: the names of those that run; all of them if not given.

    Returns:
        Operations with which the mixture is exact: outputs, and gradients of weights, inputs and parameters.
    """
    names = list(candidates)
    running = {name: candidates[name] for name in names if active is None or name in active}
    usable = {name: module for name, module in running.items() if all(map(is_untouched, module.modules()))}
    places = {name: place for place, name in enumerate(names)}
    operations: list[Operation] = [MergedLinear.of(one, usable, places) for one in merge(usable)]
    replaced = {name for operation in operations for name in operation.names}
    elementwise = {n: module for n, module in usable.items() if n not in replaced and is_elementwise(module)}
    if len(elementwise) > 1 and not all(map(is_zero, elementwise.values())):
        operations.append(ElementwiseMixture.of(elementwise, places))
        replaced |= set(elementwise)
    return Plan(
        tuple(operations),
        {name: _reason(module) for name, module in running.items() if name not in replaced},
        tuple((part, type(part)) for name in replaced for part in running[name].modules()),
        tuple(part for module in running.values() for part in module.modules() if not is_untouched(part)),
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
    if not all(map(is_untouched, module.modules())):
        return "hooked into"
    if frame_of(module) is not None:
        return _SAVES_NOTHING
    if is_average(module):
        return "joins only convolutions of its stride and size, and not with a divisor that varies at borders"
    if is_elementwise(module):
        return "no other is elementwise"
    if is_convolution(module):
        return "its padding is not of zeros"
    if any(isinstance(part, _BatchNorm) for part in module.modules()):
        return "a batch norm is not linear in train mode"
    return "neither linear nor elementwise"


@dataclass(frozen=True)
class MergedLinear:
    """Linear candidates as one convolution or linear layer.

    Args:
        merge: which, and their kernel.
        kernels: where the kernel of each lies in it.
        weighted: their places in the choice, in the order of ``kernels``.
        parametrised: those with kernels of their own, in that order.
        biased: those with biases, and their places.
        saved: multiply-adds at one place of the output that merging saves.
    """

    merge: Merge
    kernels: KernelPlan
    weighted: _Places
    parametrised: tuple[nn.Module, ...]
    biased: tuple[nn.Module, ...]
    weighted_biases: _Places
    saved: int

    @classmethod
    def of(cls, merge: Merge, candidates: Mapping[Any, nn.Module], places: Mapping[Any, int]) -> MergedLinear:
        """The operation for a merge of some of the candidates, which have these places in the choice."""
        modules = {name: candidates[name] for name in merge.names}
        own = {name: kernel_in(module, merge.frame) for name, module in modules.items()}
        kernels = KernelPlan.of(merge, own)
        parametrised = kernels.with_parameters()
        biased = [name for name in parametrised if bias_tensor(modules[name]) is not None]
        return cls(
            merge,
            kernels,
            _Places([places[name] for name in kernels.order], len(places)),
            tuple(modules[name] for name in parametrised),
            tuple(modules[name] for name in biased),
            _Places([places[name] for name in biased], len(places)),
            sum(kernel.multiply_adds for kernel in own.values()) - merge.kernel.multiply_adds,
        )

    @property
    def names(self) -> tuple[Any, ...]:
        """Of the candidates."""
        return self.merge.names

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """The candidates' weighted sum: ``(batch, out, *size)``, or ``(*, out)`` of a linear layer."""
        with full_precision(x.device.type):
            kernels = [kernel_tensor(module) for module in self.parametrised]
            kernel = weighted_kernel(self.kernels, self.weighted.of(weights), kernels)
            bias = None
            if self.biased:
                biases = [bias_tensor(module) for module in self.biased]
                bias = weighted_sum(biases, self.weighted_biases.of(weights).to(biases[0].dtype))
        frame, taps = self.merge.frame, self.merge.kernel.taps
        if not taps:
            return functional.linear(x, kernel, bias)
        pads = [(-t.start, growth + t[-1]) for t, growth in zip(taps, frame.growth)]
        padding = tuple(left for left, _ in pads)
        if any(left != right for left, right in pads):
            x = functional.pad(x, [side for pair in reversed(pads) for side in pair])
            padding = (0,) * len(pads)
        convolution = _CONVOLUTIONS[len(taps) - 1]
        dilation = tuple(t.step for t in taps)
        return convolution(x, kernel, bias, frame.stride, padding, dilation, self.merge.kernel.groups)

    def repays(self, x: Tensor) -> bool:
        """Whether the kernels, which are weighted and added, are small beside the outputs that would be.

        So they are in convolutions of images; late layers with many channels on few places, and linear layers at small
        batches are cheaper one by one.
        """
        frame, kernel = self.merge.frame, self.merge.kernel
        places = x.numel() // x.shape[-1]
        if kernel.taps:
            dims = len(frame.stride)
            size = (
                (n + growth - 1) // stride + 1
                for n, growth, stride in zip(x.shape[-dims:], frame.growth, frame.stride)
            )
            places = x.shape[: -dims - 1].numel() * math.prod(size)
        ours = math.prod(self.kernels.shape) + sum(map(_entries, self.parametrised))
        theirs = places * (frame.channels[1] * len(self.names) + _MULTIPLY_ADD * self.saved)
        return ours <= theirs

    def describe(self) -> str:
        """Its kind and size."""
        kernel = self.merge.kernel
        if not kernel.taps:
            return "one linear layer"
        size = "x".join(str(len(taps)) for taps in kernel.taps)
        groups = f" in {kernel.groups} groups" if kernel.groups > 1 else ""
        return f"one {size} convolution{groups}"


def _entries(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class _Places:
    """Some of the candidates of a choice, as an index on the device where it is needed."""

    places: Sequence[int]
    total: int
    on_device: dict[torch.device, Tensor] = field(default_factory=dict)

    def of(self, weights: Tensor) -> Tensor:
        """Their weights, in this order."""
        if list(self.places) == list(range(self.total)):
            return weights
        if weights.device not in self.on_device:
            with torch.inference_mode(False):  # what is kept must be of use in a training step, too
                self.on_device[weights.device] = torch.tensor(self.places, device=weights.device)
        return weights.index_select(0, self.on_device[weights.device])

"""The kernel of a mixture of linear candidates: ``sum_k w_k W_k``, each on its own entries of one kernel.

It is built in every step, forward and backward, so that its own cost counts for small images. It is one node
of autograd: many candidates whose kernels lie alike are stacked and summed in one pass, and nothing is stored but
the kernels themselves, which are parameters.

Four layers of convolutions 1, 3, 5, 7 on 16 channels, batch 32 of 28 x 28, one thread, forward and backward, relative
to four 7 x 7 convolutions, on a busy machine: 8 candidates 1.06 to 1.16, 32 candidates 1.12 to 1.19 (once 1.36),
and 8 that run each by itself 3.8 to 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nni_gumbel.supernet.linear import Kernel, Merge, Taps

# Kernels that are added one by one: to stack that many costs more.
_FEW = 4


@dataclass(frozen=True)
class _Layer:
    """Candidates whose kernels lie on the same entries of the whole one.

    Args:
        count: how many.
        value: of all their entries, if they have no parameters.
        groups: of the whole kernel; each of them holds ``ratio`` groups of these candidates.
        place: the entries, per dimension of the whole kernel.
    """

    count: int
    value: float | None
    groups: int
    ratio: int
    place: tuple[slice, ...]

    def entries(self, whole: Tensor) -> Tensor:
        """A view of the entries: ``(out, in, *size)``, or ``(groups, out, in, *size, ratio)`` of blocks."""
        if self.ratio == 1:
            return whole[(..., *self.place)]
        blocks = whole.unflatten(1, (self.ratio, -1)).unflatten(0, (self.groups, self.ratio, -1))
        return blocks.diagonal(dim1=1, dim2=3)[(..., *self.place, slice(None))]

    def as_entries(self, kernel: Tensor) -> Tensor:
        """A candidate's kernel in the shape of :meth:`entries`."""
        if self.ratio == 1:
            return kernel
        return kernel.unflatten(0, (self.groups, self.ratio, -1)).movedim(1, -1)

    def as_kernel(self, entries: Tensor) -> Tensor:
        """The inverse of :meth:`as_entries`."""
        return entries if self.ratio == 1 else entries.movedim(-1, 1).flatten(0, 2)


@dataclass(frozen=True)
class KernelPlan:
    """Where the kernels of candidates lie in the kernel of their mixture.

    Args:
        shape: of the whole: ``(out, in / groups, *size)``.
        order: the candidates layer by layer, without those that are zero.
        layers: each of candidates whose kernels lie alike.
    """

    shape: tuple[int, ...]
    order: tuple[Any, ...]
    layers: tuple[_Layer, ...]

    @classmethod
    def of(cls, merge: Merge, kernels: Mapping[Any, Kernel]) -> KernelPlan:
        """The plan for a merge; the kernels are those of its candidates."""
        whole, (inputs, outputs) = merge.kernel, merge.frame.channels
        shape = (outputs, inputs // whole.groups, *map(len, whole.taps))
        alike: dict[tuple[Taps, int, float | None], list[Any]] = {}
        for name, kernel in kernels.items():
            if kernel.diagonal != 0:
                alike.setdefault((kernel.taps, kernel.groups, kernel.diagonal), []).append(name)
        layers = tuple(
            _Layer(len(names), value, whole.groups, groups // whole.groups, _place(taps, whole.taps))
            for (taps, groups, value), names in alike.items()
        )
        return cls(shape, tuple(name for names in alike.values() for name in names), layers)

    def with_parameters(self) -> tuple[Any, ...]:
        """The candidates whose kernels :func:`weighted_kernel` takes, in its order."""
        counts = [(layer.value is None) for layer in self.layers for _ in range(layer.count)]
        return tuple(name for name, has_parameters in zip(self.order, counts) if has_parameters)

    def split(
        self, weights: Sequence[Any], kernels: Sequence[Tensor]
    ) -> Iterator[tuple[_Layer, Sequence[Any], Sequence[Tensor]]]:
        """Per layer, its part of the weights and of the kernels."""
        weight = kernel = 0
        for layer in self.layers:
            own = layer.count if layer.value is None else 0
            yield layer, weights[weight : weight + layer.count], kernels[kernel : kernel + own]
            weight, kernel = weight + layer.count, kernel + own


def weighted_kernel(plan: KernelPlan, weights: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """``sum_k w_k W_k``.

    Args:
        plan: where each kernel lies.
        weights: ``(len(plan.order),)``, one for each of these candidates.
        kernels: those of ``plan.with_parameters()``: ``(out, in / groups, *size)`` each, of one dtype.

    Returns:
        ``plan.shape``, in the dtype of the kernels; differentiable, also twice.
    """
    return _WeightedKernel.apply(plan, weights, *kernels)


class _WeightedKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: KernelPlan, weights: Tensor, *kernels: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(weights, *kernels)
        with full_precision(weights.device.type):
            whole = kernels[0].new_zeros(plan.shape)
            for layer, own_weights, own in plan.split(weights.to(whole.dtype), kernels):
                entries = layer.entries(whole)
                if layer.value is not None:
                    entries.add_(own_weights.sum(), alpha=layer.value)
                elif len(own) > _FEW:
                    entries.add_(layer.as_entries(weighted_sum(own, own_weights)))
                else:
                    for kernel, weight in zip(own, own_weights.unbind()):
                        entries.addcmul_(layer.as_entries(kernel), weight)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *kernels = ctx.saved_tensors
        _, needs_weights, *needs_kernels = ctx.needs_input_grad
        of_kernels: list[Tensor | None] = []
        of_weights: list[Tensor] = []
        with full_precision(weights.device.type):
            for layer, own_weights, own in ctx.plan.split(weights.to(gradient.dtype), kernels):
                entries = layer.entries(gradient)
                if layer.value is None:
                    entries = layer.as_kernel(entries)
                    if any(needs_kernels):
                        column = own_weights.view(-1, *[1] * entries.dim())
                        of_kernels += (entries * column).unbind()
                    if needs_weights:
                        stacked = torch.stack(own).flatten(1)
                        of_weights.append(stacked @ entries.flatten())
                elif needs_weights:
                    of_weights.append((entries.sum() * layer.value).expand(layer.count))
        return (
            None,
            torch.cat(of_weights).to(weights.dtype) if needs_weights else None,
            *(of_kernels or [None] * len(kernels)),
        )


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k w_k T_k`` of tensors of one shape, as one product with their stack; differentiable."""
    stacked = torch.stack(list(tensors)).flatten(1)
    return (weights @ stacked).view(tensors[0].shape)


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Kernels are summed in the precision in which they are kept; autocast rounds their sum at last."""
    if not _is_autocast(device):
        yield
        return
    with torch.autocast(device, enabled=False):
        yield


def _is_autocast(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # a device without autocast, such as meta
        return False
    except TypeError:  # Before torch 2.4 it was asked of each device by a function of its own.
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def _place(taps: Taps, whole: Taps) -> tuple[slice, ...]:
    def along(own: range, all_of_them: range) -> slice:
        start = all_of_them.index(own.start)
        step = own.step // all_of_them.step if len(own) > 1 else 1
        return slice(start, start + step * (len(own) - 1) + 1, step)

    return tuple(map(along, taps, whole))

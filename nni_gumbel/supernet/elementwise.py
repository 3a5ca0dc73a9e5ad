"""Elementwise candidates of one choice: activations, identity, zero.

A mixture of K activations keeps, for the backward pass, what each of them keeps, and each output once more for
its weight. Here the input is kept, and all else is computed again: the same function of the same numbers. This is
faster, too, because the weighted sum takes one pass a candidate instead of two, forward and backward, and large
tensors are worked through in parts that stay in the cache. Without the table of derivatives a whole step of the MNIST
space, of structure and of weights, takes 1.5 times as long by a checkpointed sum, and 1.08 times by autograd within
each part (one core, batch of 64, medians of 24 and 34 in turns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.kernels import full_precision, is_zero_of_nni

_aten = torch.ops.aten

# float32 entries of which a handful of tensors fit into a core's second-level cache (2 MB, often half of it).
_CHUNK = 2**16


def _mish(x: Tensor) -> tuple[Tensor, Tensor]:
    """``tanh(softplus(x))`` and ``e^x``: ``tanh(log(1 + n)) = n (n + 2) / (n (n + 2) + 2)``, 4 times torch's speed.

    From 40 on it is 1, in float64, too, and the square of ``e^40`` is still a float32.
    """
    exponential = x.clamp(max=40).exp_()
    product = exponential.add(2).mul_(exponential)
    return product.div_(product.add(2)), exponential


def _mish_backward(module: nn.Module, gradient: Tensor, x: Tensor, value: Tensor | None) -> Tensor:
    if not _is_slow(x):
        return _aten.mish_backward(gradient, x)
    ratio, exponential = _mish(x)
    slope = exponential.div_(exponential.add(1)).mul_(x)
    slope = slope.addcmul_(slope * ratio, ratio, value=-1)
    return slope.add_(ratio).mul_(gradient)


def _is_slow(x: Tensor) -> bool:
    """Where torch's own kernel of Mish is slow; in half precision every step here would round."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


# Per type the gradient of its value y as one of its input x: from the module, the gradient, x, and y where it is known.
_BACKWARD: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Identity: lambda m, g, x, y: g,
    nn.ReLU: lambda m, g, x, y: _aten.threshold_backward(g, x, 0),
    nn.LeakyReLU: lambda m, g, x, y: _aten.leaky_relu_backward(g, x, m.negative_slope, False),
    nn.ReLU6: lambda m, g, x, y: _aten.hardtanh_backward(g, x, 0, 6),
    nn.Hardtanh: lambda m, g, x, y: _aten.hardtanh_backward(g, x, m.min_val, m.max_val),
    nn.ELU: lambda m, g, x, y: _aten.elu_backward(g, m.alpha, 1, 1, False, x),
    nn.SiLU: lambda m, g, x, y: _aten.silu_backward(g, x),
    nn.GELU: lambda m, g, x, y: _aten.gelu_backward(g, x, approximate=m.approximate),
    nn.Mish: _mish_backward,
    nn.Tanh: lambda m, g, x, y: _aten.tanh_backward(g, x.tanh() if y is None else y),
    nn.Sigmoid: lambda m, g, x, y: _aten.sigmoid_backward(g, x.sigmoid() if y is None else y),
    nn.Hardswish: lambda m, g, x, y: _aten.hardswish_backward(g, x),
    nn.Softplus: lambda m, g, x, y: _aten.softplus_backward(g, x, m.beta, m.threshold),
}


def _value(module: nn.Module, x: Tensor) -> Tensor:
    return _mish(x)[0].mul_(x) if type(module) is nn.Mish and _is_slow(x) else module(x)


def is_elementwise(module: nn.Module) -> bool:
    """Whether the derivative of a candidate is known, or it gives zeros of the shape of its input."""
    return (type(module) in _BACKWARD and not getattr(module, "inplace", False)) or is_zero(module)


def is_zero(module: nn.Module) -> bool:
    """Whether a candidate gives zeros of the shape of its input: NNI's ``Zero`` without stride."""
    return is_zero_of_nni(module) and module.stride == 1


@dataclass(frozen=True)
class ElementwiseMixture:
    """Elementwise candidates as one operation that keeps its input alone.

    Args:
        candidates: by name, not all of them zero.
    """

    candidates: Mapping[Any, nn.Module]

    @property
    def names(self) -> tuple[Any, ...]:
        """Of the candidates."""
        return tuple(self.candidates)

    @cached_property
    def members(self) -> dict[Any, nn.Module]:
        """The candidates that are not zero."""
        return {name: module for name, module in self.candidates.items() if not is_zero(module)}

    def __call__(self, x: Tensor, weights: Mapping[Any, Tensor]) -> Tensor:
        """The candidates' weighted sum, of the shape, dtype and memory format of ``x``."""
        return _Elementwise.apply(self, x, torch.stack([weights[name] for name in self.members]))

    def repays(self, x: Tensor) -> bool:
        """It does always: at least in memory."""
        return True

    def describe(self) -> str:
        """What it is."""
        return "one elementwise operation, which keeps its input alone"


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: ElementwiseMixture, x: Tensor, weights: Tensor) -> Tensor:
        ctx.operation = operation
        ctx.save_for_backward(x, weights)
        own, x = weights.to(x.dtype).unbind(), x.contiguous(memory_format=_format(x))
        # Written into, not put together from its parts: autograd lets nobody change a view of a function's making.
        output = torch.zeros_like(x, memory_format=_format(x))
        with full_precision(x.device.type):
            for part, total in zip(_parts(x), _parts(output)):
                for module, weight in zip(operation.members.values(), own):
                    total.addcmul_(_value(module, part), weight)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operation = ctx.operation
        try:
            x, weights = ctx.saved_tensors
        except RuntimeError as error:  # torch's words name neither the choice nor the remedy
            raise UsageError(
                f"candidates {', '.join(map(str, operation.names))}: their input is changed in place after they have "
                "run, and they need it again; make a new tensor (x = x + y, not x += y)"
            ) from error
        _, needs_x, needs_weights = needs = ctx.needs_input_grad
        modules, own = operation.members.values(), weights.to(x.dtype).unbind()
        with full_precision(x.device.type):
            if torch.is_grad_enabled():  # the gradients are to be differentiated again
                output = sum(module(x) * weight for module, weight in zip(modules, own))
                inputs = [tensor for tensor, is_needed in zip((x, weights), needs[1:]) if is_needed]
                found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
                return tuple(next(found) if is_needed else None for is_needed in needs)
            layout = _format(x)
            x, gradient = x.contiguous(memory_format=layout), gradient.contiguous(memory_format=layout)
            of_x, of_weights = torch.zeros_like(x, memory_format=layout), torch.zeros_like(weights)
            for above, part, into in zip(_parts(gradient), _parts(x), _parts(of_x)):
                dots = []
                for module, weight in zip(modules, own):
                    value = _value(module, part) if needs_weights else None
                    if needs_weights:
                        dots.append(torch.dot(above, value))
                    if needs_x:
                        into.addcmul_(_BACKWARD[type(module)](module, above, part, value), weight)
                if needs_weights:
                    of_weights += torch.stack(dots)
        return None, of_x if needs_x else None, of_weights if needs_weights else None


def _format(x: Tensor) -> torch.memory_format:
    """That of its output."""
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Its entries in the order in which they lie in memory, in parts; ``x`` is contiguous in its format."""
    flat = x.as_strided((x.numel(),), (1,))
    return flat.split(_CHUNK) if x.device.type == "cpu" and len(flat) > _CHUNK else [flat]

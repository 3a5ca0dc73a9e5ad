"""Elementwise candidates of one choice: activations, identity, zero.

A mixture of K activations keeps, for the backward pass, what each of them keeps, and each output once more for
its weight. Here the input is kept, and all else is computed again: the same function of the same numbers. This is
faster, too, because the weighted sum takes one pass a candidate instead of two, forward and backward, and large
tensors are worked through in parts that stay in the cache. A checkpointed sum of the candidates as they are would need
no backward by hand; a whole step of the MNIST space, of structure and of weights, then takes 1.5 times as long (one
core, batch of 64, medians of 24 in turns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.kernels import built_type, full_precision, is_zero_of_nni

_aten = torch.ops.aten

# float32 entries of which a handful of tensors fit into a core's second-level cache (2 MB, often half of it).
_CHUNK = 2**16

Value = Callable[[nn.Module, Tensor], Tensor]
Pullback = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _mish(x: Tensor) -> tuple[Tensor, Tensor]:
    """``tanh(softplus(x))`` and ``e^x``: ``tanh(log(1 + n)) = n (n + 2) / (n (n + 2) + 2)``, 4 times torch's speed.

    From 40 on it is 1, in float64, too, and the square of ``e^40`` is still a float32.
    """
    exponential = x.clamp(max=40).exp_()
    product = exponential.add(2).mul_(exponential)
    return product.div_(product.add(2)), exponential


def _mish_value(module: nn.Module, x: Tensor) -> Tensor:
    return _mish(x)[0].mul_(x) if _is_slow(x) else functional.mish(x)


def _mish_pullback(module: nn.Module, gradient: Tensor, x: Tensor, value: Tensor | None) -> Tensor:
    if not _is_slow(x):
        return _aten.mish_backward(gradient, x)
    ratio, exponential = _mish(x)
    slope = exponential.div_(exponential.add(1)).mul_(x)
    slope = slope.addcmul_(slope * ratio, ratio, value=-1)
    return slope.add_(ratio).mul_(gradient)


def _elu_pullback(alpha: float, gradient: Tensor, x: Tensor, value: Tensor | None) -> Tensor:
    # From its value no exponential is needed; with a negative alpha the value does not tell the sign of x.
    from_value = value is not None and alpha >= 0
    return _aten.elu_backward(gradient, alpha, 1, 1, from_value, value if from_value else x)


def _celu_pullback(module: nn.Module, gradient: Tensor, x: Tensor, value: Tensor | None) -> Tensor:
    # Torch reads alpha as a float32 here, whatever the input is.
    return _aten.elu_backward(gradient, module.alpha, 1, 1 / float(np.float32(module.alpha)), False, x)


def _is_slow(x: Tensor) -> bool:
    """Where torch's own kernel of Mish is slow; in half precision every step here would round."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _plain(
    value: Callable[..., Tensor], backward: Callable[..., Tensor], *names: str
) -> tuple[Value, Pullback]:
    """A kind whose two functions take these attributes of the module."""

    def attributes(module: nn.Module) -> list[float]:
        return [getattr(module, name) for name in names]

    return lambda m, x: value(x, *attributes(m)), lambda m, g, x, y: backward(g, x, *attributes(m))


# Per type, from its input x: its value y, and the gradient g of y as one of x (with y where it is there already).
_KINDS: Mapping[type[nn.Module], tuple[Value, Pullback]] = {
    nn.Identity: (lambda m, x: x, lambda m, g, x, y: g),
    nn.ReLU: (lambda m, x: functional.relu(x), lambda m, g, x, y: _aten.threshold_backward(g, x, 0)),
    nn.LeakyReLU: (
        lambda m, x: functional.leaky_relu(x, m.negative_slope),
        lambda m, g, x, y: _aten.leaky_relu_backward(g, x, m.negative_slope, False),
    ),
    nn.Hardtanh: _plain(functional.hardtanh, _aten.hardtanh_backward, "min_val", "max_val"),
    nn.ReLU6: _plain(functional.hardtanh, _aten.hardtanh_backward, "min_val", "max_val"),
    nn.ELU: (lambda m, x: functional.elu(x, m.alpha), lambda m, g, x, y: _elu_pullback(m.alpha, g, x, y)),
    nn.SELU: (
        lambda m, x: functional.selu(x),
        lambda m, g, x, y: _aten.elu_backward(g, _SELU_ALPHA, _SELU_SCALE, 1, False, x),
    ),
    nn.CELU: (lambda m, x: functional.celu(x, m.alpha), _celu_pullback),
    nn.SiLU: _plain(functional.silu, _aten.silu_backward),
    nn.GELU: (
        lambda m, x: functional.gelu(x, approximate=m.approximate),
        lambda m, g, x, y: _aten.gelu_backward(g, x, approximate=m.approximate),
    ),
    nn.Mish: (_mish_value, _mish_pullback),
    nn.Tanh: (lambda m, x: x.tanh(), lambda m, g, x, y: _aten.tanh_backward(g, x.tanh() if y is None else y)),
    nn.Sigmoid: (
        lambda m, x: x.sigmoid(),
        lambda m, g, x, y: _aten.sigmoid_backward(g, x.sigmoid() if y is None else y),
    ),
    nn.Hardswish: _plain(functional.hardswish, _aten.hardswish_backward),
    nn.Hardsigmoid: _plain(functional.hardsigmoid, _aten.hardsigmoid_backward),
    nn.Softplus: _plain(functional.softplus, _aten.softplus_backward, "beta", "threshold"),
}


def is_elementwise(module: nn.Module) -> bool:
    """Whether each entry of a candidate's output is a function of that entry of its input alone, without parameters."""
    return (built_type(module) in _KINDS and not getattr(module, "inplace", False)) or is_zero(module)


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

    def add_up(self, x: Tensor, weights: Sequence[Tensor], total: Tensor) -> None:
        """Write the weighted sum of the members' outputs; of flat tensors."""
        for k, (module, weight) in enumerate(zip(self.members.values(), weights)):
            value = _KINDS[built_type(module)][0](module, x)
            if k == 0:
                torch.mul(value, weight, out=total)
            else:
                total.addcmul_(value, weight)

    def pull_back(
        self, gradient: Tensor, x: Tensor, weights: Sequence[Tensor], of_x: Tensor | None, needs_weights: bool
    ) -> list[Tensor]:
        """Write the gradient of the sum as one of ``x``, and return those of the weights; of flat tensors."""
        of_weights = []
        for k, (module, weight) in enumerate(zip(self.members.values(), weights)):
            value_of, pullback = _KINDS[built_type(module)]
            value = value_of(module, x) if needs_weights else None
            if value is not None:
                of_weights.append(torch.dot(gradient, value))
            if of_x is not None:
                term = pullback(module, gradient, x, value)
                if k == 0:
                    torch.mul(term, weight, out=of_x)
                else:
                    of_x.addcmul_(term, weight)
        return of_weights


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: ElementwiseMixture, x: Tensor, weights: Tensor) -> Tensor:
        ctx.operation = operation
        ctx.save_for_backward(x, weights)
        own, x = weights.to(x.dtype).unbind(), x.contiguous(memory_format=_format(x))
        # Written into, not put together from its parts: autograd lets nobody change a view of a function's making.
        output = torch.empty_like(x, memory_format=_format(x))
        with full_precision(x.device.type):
            for part, total in zip(_parts(x), _parts(output)):
                operation.add_up(part, own, total)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operation = ctx.operation
        try:
            x, weights = ctx.saved_tensors
        except RuntimeError as error:  # torch's words name neither the choice nor the remedy
            raise UsageError(
                f"candidates {', '.join(map(str, operation.names))}: their input is changed in place after they have "
                "run, and they need it again; make a new tensor (x = x + y, not x += y), or give execution: plain"
            ) from error
        _, needs_x, needs_weights = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return None, *_differentiable(operation, x, weights, gradient, (needs_x, needs_weights))
        own, layout = weights.to(x.dtype).unbind(), _format(x)
        x, gradient = x.contiguous(memory_format=layout), gradient.contiguous(memory_format=layout)
        of_x = torch.empty_like(x, memory_format=layout) if needs_x else None
        found = []
        with full_precision(x.device.type):
            for above, part, into in zip(_parts(gradient), _parts(x), _parts(x if of_x is None else of_x)):
                found.append(
                    operation.pull_back(above, part, own, None if of_x is None else into, needs_weights)
                )
        if not needs_weights:
            return None, of_x, None
        return None, of_x, sum(torch.stack(dots).to(weights.dtype) for dots in found)


def _differentiable(
    operation: ElementwiseMixture, x: Tensor, weights: Tensor, gradient: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again."""
    with full_precision(x.device.type):
        own = weights.to(x.dtype).unbind()
        output = sum(module(x) * weight for module, weight in zip(operation.members.values(), own))
        inputs = [tensor for tensor, is_needed in zip((x, weights), needs) if is_needed]
        found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needs]


def _format(x: Tensor) -> torch.memory_format:
    """That of its output."""
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Its entries in the order in which they lie in memory, in parts; ``x`` is contiguous in its format."""
    flat = x.as_strided((x.numel(),), (1,))
    return flat.split(_CHUNK) if x.device.type == "cpu" and len(flat) > _CHUNK else [flat]

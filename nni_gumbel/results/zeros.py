"""What is known to be zero in a network, whatever its input: the values behind ``none`` candidates.

A zero begins at a module that returns nothing else, or at a product with 0. It passes through what maps
zeros to zeros in training and in evaluation: linear layers and convolutions without a bias, pooling,
activations with f(0) = 0, dropout; not through normalisation. A sum does without it, and where only its
shape is needed, that is taken from an earlier value. Values are taken to be finite.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from nni_gumbel.results.forward_graph import is_torch_layer, module_of, name_of, writers_of

_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU,
    nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Tanhshrink,
    nn.Softsign, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip
_WITHOUT_BIAS = (nn.Linear, nn.modules.conv._ConvNd)
_POOLING = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_SAME_SHAPE = (*_ELEMENTWISE, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Sigmoid,
               nn.Hardsigmoid, nn.Softplus, nn.Softmax)  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ELEMENTWISE_NAMES = (
    "relu", "relu_", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh", "dropout", "contiguous",
    "clone", "neg",
)  # fmt: skip
_RESHAPING_NAMES = (
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "mean", "sum",
)  # fmt: skip
_SUMS, _DIFFERENCES = ("add", "add_", "iadd"), ("sub", "sub_", "isub")
_PRODUCTS, _QUOTIENTS = ("mul", "mul_", "imul"), ("div", "div_", "truediv", "itruediv")


# -- modules that return zeros -------------------------------------------------------------------------


def zero_modules(network: nn.Module, example: Tensor) -> dict[nn.Module, bool]:
    """The modules of a network that return zeros whatever they are given; and whether the shape of it.

    They are looked for among modules without parameters, buffers and parts that are no layers of torch:
    on their real inputs and on random ones, smaller and larger, of other sizes, in both modes.

    Args:
        network: run on ``example`` in evaluation, otherwise left as it is.
        example: a batch of inputs.
    """
    candidates = [module for module in network.modules() if _may_be_zero(module)]
    inputs: dict[nn.Module, list[Tensor]] = {}

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        alone = len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_floating_point()
        inputs.setdefault(module, []).extend([args[0]] if alone else [])

    hooks = [module.register_forward_pre_hook(record) for module in candidates]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    found = {module: _returns_zeros(module, seen) for module, seen in inputs.items() if seen}
    return {module: of_same_shape for module, of_same_shape in found.items() if of_same_shape is not None}


def _may_be_zero(module: nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    return not tensors and not list(module.children()) and not is_torch_layer(module)


@torch.no_grad()
def _returns_zeros(module: nn.Module, seen: list[Tensor]) -> bool | None:
    """Whether its zeros have the shape of its input; ``None`` if it does not return zeros."""
    of_same_shape = True
    generator = torch.Generator().manual_seed(0)
    for x in [*{tuple(x.shape): x for x in seen}.values()]:
        larger = tuple(size + 1 if place != 1 else size for place, size in enumerate(x.shape))
        for shape in (tuple(x.shape), larger):
            noise = torch.randn(shape, generator=generator).to(x)
            for value in (x, noise, noise.abs(), -noise.abs(), 1e3 * noise, 1e-3 * noise):
                for training in (True, False):
                    probed = copy.deepcopy(module).train(training)
                    output = probed(value.clone())
                    if not isinstance(output, Tensor) or output.dtype != x.dtype or output.count_nonzero():
                        return None
                    of_same_shape &= output.shape == value.shape
    return of_same_shape


# -- zeros in the graph --------------------------------------------------------------------------------


class Zeros:
    """The values of a graph that are zero, and where shapes come from.

    Args:
        graph: of ``root``.
        root: holds the modules that the graph calls.
        shapes: shape and type of the values that are tensors, on an example.
        modules: as :func:`zero_modules` returns them.
    """

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        shapes: Mapping[fx.Node, tuple[torch.Size, torch.dtype]],
        modules: Mapping[nn.Module, bool],
    ) -> None:
        self._root, self._shapes, self._modules = root, shapes, modules
        self.nodes: set[fx.Node] = set()
        for node in graph.nodes:
            stays_zero = all(self._passes(writer) is node for writer in writers_of(node, root))
            if stays_zero and self._is_zero(node):
                self.nodes.add(node)

    def source_of_shape(self, node: fx.Node) -> fx.Node:
        """The earliest value known to have the shape of this one; itself if there is no other."""
        while (earlier := self._same_shape(node)) is not None:
            node = earlier
        return node

    def is_neutral(self, node: fx.Node) -> fx.Node | None:
        """The one operand that a sum with zeros is equal to; ``None`` if it is no such sum."""
        operands = self._operands_of_sum(node)
        others = [operand for operand in operands if operand not in self.nodes]
        if len(operands) < 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
            return None
        (other,) = others
        if name_of(node) in _DIFFERENCES and other is not node.args[0]:
            return None
        # A broadcast zero gives the sum its shape.
        alike = node in self._shapes and self._shapes.get(other) == self._shapes[node]
        # A value that is written into must not take the place of another one.
        writers = writers_of(node, self._root) + [w for w in writers_of(other, self._root) if w is not node]
        return other if alike and not writers else None

    def _is_zero(self, node: fx.Node) -> bool:
        if node not in self._shapes:
            return False
        module, name = module_of(node, self._root), name_of(node)
        if module is not None and module in self._modules:
            return True
        if name in ("zeros_like", "zeros", "new_zeros"):
            return True
        if name in _PRODUCTS:
            return any(self._is_zero_operand(operand) for operand in node.args[:2])
        if name in _SUMS + _DIFFERENCES:
            return len(node.args) > 1 and all(self._is_zero_operand(operand) for operand in node.args[:2])
        if name in ("stack", "cat") and isinstance(node.args[0], (list, tuple)):
            return all(operand in self.nodes for operand in node.args[0])
        passed = self._passes(node)
        return passed is not None and passed in self.nodes

    def _is_zero_operand(self, operand: Any) -> bool:
        if isinstance(operand, fx.Node):
            return operand in self.nodes
        return isinstance(operand, (int, float)) and operand == 0

    def _passes(self, node: fx.Node) -> fx.Node | None:
        """The value whose zeros a step maps to zeros, in both modes; ``None`` if it does not."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        module, name = module_of(node, self._root), name_of(node)
        if module is None:
            keeps = name in (*_ELEMENTWISE_NAMES, *_RESHAPING_NAMES) or (
                name in _QUOTIENTS and isinstance(node.args[1], (int, float))
            )
        else:
            keeps = (
                _is_one_of(module, _ELEMENTWISE)
                or _is_one_of(module, (nn.Flatten,))
                or (_is_one_of(module, _POOLING) and not getattr(module, "return_indices", False))
                or (_is_one_of(module, _WITHOUT_BIAS) and module.bias is None)
            )
        return node.args[0] if keeps else None

    def _operands_of_sum(self, node: fx.Node) -> tuple[Any, ...]:
        name = name_of(node)
        if name in _SUMS + _DIFFERENCES and not node.kwargs:
            return tuple(node.args[:2])
        if name == "sum" and len(node.args) == 2 and node.args[1] == 0 and not node.kwargs:
            stack = node.args[0]
            if isinstance(stack, fx.Node) and name_of(stack) == "stack" and stack.args[1:] in ((), (0,)):
                return tuple(stack.args[0]) if not stack.kwargs else ()
        return ()

    def _same_shape(self, node: fx.Node) -> fx.Node | None:
        """An operand that has the shape of the result, by what the step is and on the example."""
        module, name = module_of(node, self._root), name_of(node)
        candidates: tuple[Any, ...] = ()
        if module is not None:
            if self._modules.get(module) or _is_one_of(module, _SAME_SHAPE) or _keeps_size(module):
                candidates = node.args[:1]
        elif name in (*_ELEMENTWISE_NAMES, "zeros_like"):
            candidates = node.args[:1]
        elif name in _SUMS + _DIFFERENCES + _PRODUCTS + _QUOTIENTS:
            candidates = node.args[:2]
        elif name == "sum":
            candidates = self._operands_of_sum(node)
        shape = self._shapes.get(node)
        for operand in candidates:
            if isinstance(operand, fx.Node) and shape is not None and self._shapes.get(operand) == shape:
                return operand
        return None


def _is_one_of(module: nn.Module, classes: Collection[type[nn.Module]]) -> bool:
    """Whether a module computes what one of the classes does: a class of one's own has another forward."""
    return any(isinstance(module, one) and _same_forward(type(module), one) for one in classes)


def _same_forward(derived: type[nn.Module], base: type[nn.Module]) -> bool:
    return derived.forward is base.forward or derived.__module__.startswith("torch.nn.modules.")


def _keeps_size(module: nn.Module) -> bool:
    """Whether a linear layer, a convolution or a pooling returns as many channels, rows and columns as it gets."""
    if _is_one_of(module, (nn.Linear,)):
        return module.in_features == module.out_features
    convolution = _is_one_of(module, _CONVOLUTIONS)
    if convolution and module.in_channels != module.out_channels:
        return False
    if not convolution and not _is_one_of(module, (nn.AvgPool2d, nn.MaxPool2d)):
        return False
    if module.padding == "same":
        return True
    if isinstance(module.padding, str):
        return False
    kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
    dilation = _pair(getattr(module, "dilation", 1))
    sizes = zip(kernel, stride, padding, dilation)
    return not getattr(module, "return_indices", False) and all(
        s == 1 and 2 * p == d * (k - 1) for k, s, p, d in sizes
    )


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * 2

"""What a network costs: counted for one network, expected for a distribution over networks.

The expected number of parameters is exact and differentiable. How many scalars a tensor has in a frozen
network, none included, depends on the choices above it (the candidates that lead to it, the depth of a
``Repeat``) and on those of its own shape (widths, kernels). It is tabulated over the labels that it
depends on, and the table is contracted with their probabilities: labels are independent. A tensor that
can be reached in several ways (tied weights) is there if any of them is: the largest of its tables.
One count is an upper bound: the layers after a cell with loose ends of NNI's hub, which are narrower in
the frozen network (:mod:`nni_gumbel.supernet.hub`), count with their whole width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from operator import mul

import numpy as np
import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import LayerChoice, Repeat
from torch import Tensor, nn

from nni_gumbel.complexity.table import ONE, ExpectedSum, Table, elementwise_maximum
from nni_gumbel.supernet.arguments import parameter_sizes
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.expressions import Tabulated


def count_parameters(network: nn.Module) -> int:
    """Number of scalars in the parameters of a frozen network, each tensor once."""
    return sum(parameter.numel() for parameter in network.parameters())


def expected_parameters(space: nn.Module) -> ExpectedSum:
    """The expected number of parameters under a distribution, as a differentiable function.

    Args:
        space: a model space, mutated to a supernet or not; cells from factories are counted in a
            supernet only.

    Raises:
        UsageError: a tensor depends on too many choices to be tabulated.
    """
    sizes: dict[int, list[Table]] = {}
    for parameter, size in _sizes(space, ONE):
        sizes.setdefault(id(parameter), []).append(size)
    return ExpectedSum(elementwise_maximum(ways) for ways in sizes.values())


def _sizes(module: nn.Module, presence: Table) -> Iterator[tuple[nn.Parameter, Table]]:
    """Every parameter below a module, with its number of scalars in each network, once per way to it."""
    own = parameter_sizes(module)
    if own:
        for name, parameter in module.named_parameters():
            yield parameter, presence * Table.of(*own[name])
        return
    for parameter in module.parameters(recurse=False):
        yield parameter, presence * Table.of((), np.array(parameter.numel()))
    for child, condition in _children(module):
        yield from _sizes(child, presence * condition)


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, Table]]:
    """The children of a module, each with 1 in the networks that have it and 0 in the others."""
    if isinstance(module, LayerChoice):
        identity = np.eye(len(module.names), dtype=np.int64)
        for name, chosen in zip(module.names, identity):
            yield module[name], Table.of((module.label,), chosen)
    elif isinstance(module, Repeat) and isinstance(module.depth_choice, Mutable):
        depths = Tabulated({"depth": module.depth_choice})
        depth = np.array([values["depth"] for values in depths.values]).reshape(depths.sizes)
        for index, block in enumerate(module.blocks):
            yield block, Table.of(depths.labels, (depth > index).astype(np.int64))
    elif isinstance(module, MixedCell) and module.op_candidates_factory is not None:
        sizes = {label: len(variable.values) for label, variable in module.simplify().items()}
        for candidate, *choices in module.candidates_of_factories():
            chosen = (Table.of((label,), np.eye(sizes[label], dtype=np.int64)[k]) for label, k in choices)
            yield candidate, reduce(mul, chosen)
        for part in (module.preprocessor, module.postprocessor):
            if isinstance(part, nn.Module):
                yield part, ONE
    else:
        for child in module.children():
            yield child, ONE


def count_flops(network: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, for one example.

    NNI's formulas for convolution, linear layers and BatchNorm, applied per call to the real shapes of
    a forward pass (a module called twice counts twice); every elementwise activation except Identity
    costs 1 per element of its input. Everything else counts 0: pooling, additions, and layers that have
    no formula here (transposed convolution, attention, other norms).

    Args:
        network: a frozen network; run once in eval mode, left as it was.
        example: a batch of inputs; the count is per example.

    Returns:
        Multiply-adds for one example.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _flops_of_call(module, inputs[0], output)

    leaves = [m for m in network.modules() if _is_counted(m)]
    hooks = [m.register_forward_hook(add) for m in leaves]
    training = {m: m.training for m in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return total // len(example)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _is_activation(module: nn.Module) -> bool:
    is_one = type(module).__module__ == nn.ReLU.__module__
    return is_one and not isinstance(module, nn.MultiheadAttention)


def _is_counted(module: nn.Module) -> bool:
    return isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS, nn.Linear)) or _is_activation(module)


def _flops_of_call(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        return y.numel() * (per_output + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return y.numel() * (module.in_features + (module.bias is not None))
    if isinstance(module, _BATCH_NORMS):
        return x.numel() * 2 * (1 + module.affine)
    return x.numel()

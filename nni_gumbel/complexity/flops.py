"""Multiply-adds of one forward pass: counted for one network, expected for a distribution over networks.

NNI's formulas for convolution, linear layers, BatchNorm and attention (``nni/nas/profiler/pytorch/flops.py``),
applied per call to the real shapes of a forward pass (a module called twice counts twice); every elementwise
activation except Identity costs 1 per element of its input, whatever its type. Everything else counts 0:
pooling, additions and other functions in a forward, and layers that have no formula in NNI, such as transposed
convolutions, recurrent layers and norms other than BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nni_gumbel.complexity.calls import prices_of_calls
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.results.example import batch_size, in_eval
from nni_gumbel.supernet.distribution import Distribution

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def count_flops(network: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of one forward pass for one example, rounded down.

    Args:
        network: a frozen network; run once in eval mode, left as it was.
        args, kwargs: what its forward takes: a batch, the first dimension of the first tensor.
    """
    total = 0

    def add(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal total
        total += flops_of_call(module, args, kwargs, output)

    hooks = [m.register_forward_hook(add, with_kwargs=True) for m in network.modules() if is_counted(m)]
    try:
        with in_eval(network), torch.no_grad():
            network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return total // batch_size(args, kwargs)


def expected_flops(
    supernet: nn.Module, distribution: Distribution, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ExpectedSum:
    """The expected number of multiply-adds under a distribution, exact and differentiable.

    At the outcomes of a network it is what :func:`count_flops` counts on what NNI's ``freeze`` keeps.

    Args:
        supernet: a relaxed space; it is not run, and nothing in it changes.
        distribution: its distribution.
        args, kwargs: as in :func:`count_flops`.

    Raises:
        UsageError: see :func:`~nni_gumbel.complexity.calls.prices_of_calls`.
    """
    batch = batch_size(args, kwargs)
    tables = prices_of_calls(supernet, distribution, args, kwargs, is_counted, flops_of_call, "FLOPs")
    totals = ExpectedSum(tables).tables  # whole numbers, added up before they are divided
    return ExpectedSum(table.map(lambda values: values / batch) for table in totals)


def is_counted(module: nn.Module) -> bool:
    """Whether calls of a module have multiply-adds of their own."""
    # Among torch's activations stands MultiheadAttention, too.
    is_activation = any(base.__module__ == nn.ReLU.__module__ for base in type(module).__mro__)
    return is_activation or isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS, nn.Linear))


def flops_of_call(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> int:
    """Multiply-adds of one call of a counted module, for the whole batch."""
    if isinstance(module, nn.MultiheadAttention):
        return _flops_of_attention(module, args, kwargs)
    x = args[0] if args else next(iter(kwargs.values()))
    if isinstance(module, _CONVOLUTIONS):
        per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        return output.numel() * (per_output + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return output.numel() * (module.in_features + (module.bias is not None))
    if isinstance(module, _BATCH_NORMS):
        return x.numel() * 2 * (1 + module.affine)
    return x.numel()


def _flops_of_attention(module: nn.MultiheadAttention, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """Projections of queries (Q), keys and values, ``Q K^T``, softmax, the weighted values, projection."""
    tensors = dict(zip(("query", "key", "value"), args)) | dict(kwargs)
    q, k, v = tensors["query"], tensors["key"], tensors["value"]
    batch, length, size = 1, q.shape[0], v.shape[0]
    if q.dim() == 3 and module.batch_first:
        batch, length, size = q.shape[0], q.shape[1], v.shape[1]
    elif q.dim() == 3:
        batch = q.shape[1]
    embed, heads, bias = module.embed_dim, module.num_heads, module.in_proj_bias is not None
    projections = (length * (q.shape[-1] + bias) + size * (k.shape[-1] + v.shape[-1] + 2 * bias)) * embed
    attention = heads * length * size * (2 * (embed // heads) + 1)
    scaling = length * q.shape[-1]
    return batch * (scaling + projections + attention + length * embed * (embed + bias))

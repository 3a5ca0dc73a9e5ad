"""What the latency of a call of a layer depends on, as one line of text: the key of a table of latencies.

Two layers share an entry if they are of one type and hold the same settings, and tensors and inputs of the same shapes
and dtypes. The text is the same in every process. Functions are known by their names, so what has none that leads back
to it - a lambda, a function inside a function, an object of a person's own - is refused rather than shared.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from nni_gumbel.errors import UsageError

# What ``repr`` tells completely, and the same in every process.
_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), slice, range, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size,
)  # fmt: skip

# What every module has, an interpreter's own forward, and NNI's record of a constructor's arguments: none of it is a
# setting of the layer.
_OF_EVERY_MODULE = {*vars(nn.Module()), "forward", "trace_symbol", "trace_args", "trace_kwargs"}


def signature_of(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Type and settings of a layer, shapes and dtypes of its tensors and of its inputs.

    Args:
        layer: a module.
        args, kwargs: what it is called with.

    Raises:
        UsageError: the layer holds what cannot be described the same in every process; names it.

    Example:
        >>> signature_of(nn.Flatten(), (torch.zeros(2, 3, 4),), {})
        'torch.nn.modules.flatten.Flatten(end_dim=-1, start_dim=1) of (2, 3, 4) float32'
    """
    given = [described(value) for value in args] + [f"{name}={described(v)}" for name, v in kwargs.items()]
    return f"{_of_module(layer)} of {', '.join(given)}"


def described(value: Any) -> str:
    """An argument of a call: a tensor by its shape and dtype, nested tuples, lists and dicts, all else by ``repr``."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {described(entry)}' for key, entry in value.items())}}}"
    return repr(value)


class _Opaque(Exception):
    """What cannot be described; its text says of which kind it is."""


def _of_module(module: nn.Module) -> str:
    words = []
    for name, value in sorted(vars(module).items()):
        if name not in _OF_EVERY_MODULE:
            try:
                words.append(f"{name}={_of(value)}")
            except _Opaque as opaque:
                raise UsageError(
                    f"latency: {type(module).__name__}.{name} holds {opaque}, by which no measurement can be found "
                    "again; keep numbers, words and named functions there, or price flops or params"
                ) from None
    words += [f"{name}: {described(tensor)}" for name, tensor in module.state_dict().items()]
    words += [f"{name}: {_of_module(child)}" for name, child in module.named_children()]
    return f"{_name(type(module))}({', '.join(words)})"


def _of(value: Any) -> str:
    if isinstance(value, weakref.ref):  # torch's recurrent layers hold their weights once more like this
        value = value()
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return described(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_of, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_of, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_of(key)}: {_of(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, nn.Module):  # one that is not registered, and so has no call of its own
        return _of_module(value)
    if isinstance(value, functools.partial):
        return f"partial({_of(value.func)}, {_of(value.args)}, {_of(value.keywords)})"
    if (
        isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
        and "<" not in value.__qualname__
    ):
        return _name(value)
    raise _Opaque(f"a {_name(type(value))}")


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

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
        UsageError: the layer holds, or is given, what cannot be described the same in every process; names it.

    Example:
        >>> signature_of(nn.Flatten(), (torch.zeros(2, 3, 4),), {})
        'torch.nn.modules.flatten.Flatten(end_dim=-1, start_dim=1) of (2, 3, 4) float32'
    """
    owner = f"{type(layer).__name__} is given"
    given = [described(value, owner) for value in args]
    given += [f"{name}={described(value, owner)}" for name, value in kwargs.items()]
    return f"{_of_module(layer)} of {', '.join(given)}"


def described(value: Any, owner: str) -> str:
    """A value: a tensor by its shape and dtype, what has a name by that, and so what they are nested in.

    Raises:
        UsageError: it is neither; begins with the ``owner``, ``Linear is given``.
    """
    if isinstance(value, weakref.ref):  # torch's recurrent layers hold their weights once more like this
        value = value()
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, nn.Module):  # one that is not registered, and so has no call of its own
        return _of_module(value)
    of = functools.partial(described, owner=owner)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(of, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(of, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{of(key)}: {of(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial({of(value.func)}, {of(value.args)}, {of(value.keywords)})"
    has_name = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    if has_name and "<" not in value.__qualname__:
        return _name(value)
    raise UsageError(
        f"latency: {owner} a {_name(type(value))}, by which no measurement can be found again; keep numbers, words and "
        "named functions there, or price flops or params"
    )


def _of_module(module: nn.Module) -> str:
    kind = type(module)
    words = [
        f"{name}={described(value, f'{kind.__name__}.{name} holds')}"
        for name, value in sorted(vars(module).items())
        if name not in _OF_EVERY_MODULE
    ]
    words += [f"{name}: {described(tensor, name)}" for name, tensor in module.state_dict().items()]
    words += [f"{name}: {_of_module(child)}" for name, child in module.named_children()]
    return f"{_name(kind)}({', '.join(words)})"


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

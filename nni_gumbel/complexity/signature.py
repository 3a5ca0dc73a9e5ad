"""What the latency of a call of a layer depends on, as one line of text: the key of a table of latencies.

Two layers share an entry only if they are of one type and everything in them that is no weight is described alike, to
the code of the functions that they hold. The text is the same in every process: it has no addresses, and nothing
in it follows the order of a set. An object that cannot be described like this is refused rather than shared.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from nni_gumbel.errors import UsageError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range, Enum)
# What torch can be told by name, and says without an address.
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
_CODE = (types.FunctionType, types.MethodType, functools.partial)

# What every module has, an interpreter's own forward, and NNI's record of a constructor's arguments: none of it is a
# setting of the layer.
_OF_EVERY_MODULE = {*vars(nn.Module()), "forward", "trace_symbol", "trace_args", "trace_kwargs"}


def signature_of(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Type and settings of a layer, functions that it holds, shapes and dtypes of its tensors and of its inputs.

    Args:
        layer: a module.
        args, kwargs: what it is called with.

    Raises:
        UsageError: the layer holds an object that cannot be described the same in every process; names it.
    """
    words = []
    for name, value in _settings(layer):
        try:
            words.append(f"{name}={_described(value, (id(layer),))}")
        except _Unknown as unknown:
            raise UsageError(
                f"latency: {type(layer).__name__}.{name} holds a {unknown}, by which no measurement can be found "
                "again; keep numbers, words and functions there, or price flops or params"
            ) from None
    words += [f"{name}: {described(tensor)}" for name, tensor in layer.state_dict().items()]
    given = [described(value) for value in args] + [f"{name}={described(v)}" for name, v in kwargs.items()]
    return f"{_name(type(layer))}({', '.join(words)}) of {', '.join(given)}"


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module holds beside its tensors and the modules registered in it, which have calls of their own."""
    return sorted((name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)


def described(value: Any) -> str:
    """An argument of a call: a tensor by its shape and dtype, nested tuples, lists and dicts, all else by ``repr``."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {described(entry)}' for key, entry in value.items())}}}"
    return repr(value)


class _Unknown(Exception):
    """An object of a kind that has no description; its text is the type's name."""


def _described(value: Any, around: tuple[int, ...]) -> str:
    """``around``: what this is inside of, by ``id``; a value may contain itself."""
    if isinstance(value, (*_PLAIN, *_OF_TORCH)):
        return repr(value)
    if isinstance(value, Tensor):
        return described(value)
    if isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)) or _is_of_torch(value):
        return _name(value)
    if id(value) in around:
        return f"itself at {around[::-1].index(id(value))}"
    inside = (*around, id(value))
    if isinstance(value, (tuple, list)):
        brackets = "()" if isinstance(value, tuple) else "[]"
        return brackets[0] + ", ".join(_described(entry, inside) for entry in value) + brackets[1]
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_described(entry, inside) for entry in value))}}}"
    if isinstance(value, dict):
        entries = (f"{_described(key, inside)}: {_described(entry, inside)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, _CODE):
        text = _of_function(value, inside)
        return f"{_name(value)}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if isinstance(value, weakref.ref):  # torch's recurrent layers hold their weights once more like this
        return _described(value(), inside)
    if isinstance(value, nn.Module):
        return _of_module(value, inside)
    return _of_object(value, inside)


def _of_function(function: Any, inside: tuple[int, ...]) -> str:
    """The code of a function and all that it closes over; globals by their name alone."""
    if isinstance(function, functools.partial):
        parts = (function.func, function.args, function.keywords)
        return ", ".join(_described(part, inside) for part in parts)
    if isinstance(function, types.MethodType):
        return f"{_described(function.__self__, inside)}, {_described(function.__func__, inside)}"
    cells = [_content(cell) for cell in function.__closure__ or ()]
    parts = (function.__defaults__, function.__kwdefaults__, cells)
    return ", ".join([_of_code(function.__code__), *(_described(part, inside) for part in parts)])


def _of_code(code: types.CodeType) -> str:
    constants = [
        _of_code(constant) if isinstance(constant, types.CodeType) else _described(constant, ())
        for constant in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _of_module(module: nn.Module, inside: tuple[int, ...]) -> str:
    """A module that is not registered in the layer, and so has no call of its own: all that is in it."""
    words = [f"{name}={_described(value, inside)}" for name, value in _settings(module)]
    words += [f"{name}: {described(tensor)}" for name, tensor in module.state_dict().items()]
    words += [f"{name}: {_described(child, inside)}" for name, child in module.named_children()]
    return f"{_name(type(module))}({', '.join(words)})"


def _of_object(value: Any, inside: tuple[int, ...]) -> str:
    """An instance of a class with ``__dict__``: its type and its attributes."""
    if not hasattr(value, "__dict__"):
        raise _Unknown(_name(type(value)))
    attributes = (f"{name}={_described(own, inside)}" for name, own in sorted(vars(value).items()))
    return f"{_name(type(value))}({', '.join(attributes)})"


def _content(cell: types.CellType) -> Any:
    """What a function closes over; of a name that has no value yet, the ellipsis."""
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _is_of_torch(value: Any) -> bool:
    return (
        callable(value)
        and not isinstance(value, types.MethodType)
        and str(getattr(value, "__module__", "")).partition(".")[0] == "torch"
        and hasattr(value, "__name__")
    )


def _name(value: Any) -> str:
    if isinstance(value, functools.partial):
        return "partial"
    name = getattr(value, "__qualname__", None) or value.__name__
    module = getattr(value, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else name

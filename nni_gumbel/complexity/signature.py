"""What the latency of a call of a layer depends on, as one line of text: the key of a table of latencies.

Two layers share an entry only if they are of one type and everything in them that is no weight is described alike, to
the code of the functions that they hold. The text is the same in every process: it has no addresses, and nothing
in it follows the order of a set. An object that cannot be described like this is refused rather than shared.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import hashlib
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from nni_gumbel.errors import UsageError

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range)
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
    words, description = [], _Description(layer)
    for name, value in _settings(layer):
        try:
            words.append(f"{name}={description.of(value)}")
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


class _Description:
    """Describes the values that a layer holds; what is met again is named by its number, so that it ends.

    Args:
        layer: the first one that is met.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._met: dict[int, tuple[int, Any]] = {}  # with the objects, whose ids must not be given to others
        self._is_new(layer)

    def of(self, value: Any) -> str:
        """One line.

        Raises:
            _Unknown: it cannot be described the same in every process.
        """
        if isinstance(value, Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, (*_PLAIN, *_OF_TORCH)):
            return _shortened(repr(value))
        if isinstance(value, Tensor):
            return described(value)
        if isinstance(value, (type, types.BuiltinFunctionType, types.ModuleType)) or _is_of_torch(value):
            return _name(value)
        if isinstance(value, tuple):
            return f"({self._of_all(value)})"
        if not self._is_new(value):
            return f"number {self._met[id(value)][0]}"
        if isinstance(value, list):
            return f"[{self._of_all(value)}]"
        if isinstance(value, (set, frozenset)):
            return f"{{{', '.join(sorted(self._branch().of(entry) for entry in value))}}}"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{self.of(key)}: {self.of(entry)}' for key, entry in value.items())}}}"
        if isinstance(value, _CODE):
            text = self._of_function(value)
            return f"{_name(value)}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if isinstance(value, weakref.ref):  # torch's recurrent layers hold their weights once more like this
            return self.of(value())
        if isinstance(value, nn.Module):
            return self._of_module(value)
        return self._of_object(value)

    def _branch(self) -> _Description:
        """For an entry of a set: numbers must not follow the order of its entries."""
        branch = copy.copy(self)
        branch._met = dict(self._met)
        return branch

    def _is_new(self, value: Any) -> bool:
        is_new = id(value) not in self._met
        self._met.setdefault(id(value), (len(self._met), value))
        return is_new

    def _of_all(self, values: Iterable[Any]) -> str:
        return ", ".join(map(self.of, values))

    def _of_function(self, function: Any) -> str:
        """The code of a function and all that it closes over; globals by their name alone."""
        if isinstance(function, functools.partial):
            return self._of_all((function.func, function.args, function.keywords))
        if isinstance(function, types.MethodType):
            return self._of_all((function.__self__, function.__func__))
        cells = [_content(cell) for cell in function.__closure__ or ()]
        parts = (function.__defaults__, function.__kwdefaults__, cells)
        return f"{self._of_code(function.__code__)}, {self._of_all(parts)}"

    def _of_code(self, code: types.CodeType) -> str:
        constants = [
            self._of_code(constant) if isinstance(constant, types.CodeType) else self.of(constant)
            for constant in code.co_consts
        ]
        return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"

    def _of_module(self, module: nn.Module) -> str:
        """A module that is not registered in the layer, and so has no call of its own: all that is in it."""
        words = [f"{name}={self.of(value)}" for name, value in _settings(module)]
        words += [f"{name}: {described(tensor)}" for name, tensor in module.state_dict().items()]
        words += [f"{name}: {self.of(child)}" for name, child in module.named_children()]
        return f"{_name(type(module))}({', '.join(words)})"

    def _of_object(self, value: Any) -> str:
        """What pickle would write of an object: its type, and what it is made from."""
        try:
            registered = copyreg.dispatch_table.get(type(value))
            made = registered(value) if registered else value.__reduce_ex__(4)
        except TypeError:  # as locks and files say
            raise _Unknown(_name(type(value))) from None
        if isinstance(made, str):
            return f"{_name(type(value))} {made}"
        parts = (list(part) if isinstance(part, Iterator) else part for part in made if part is not None)
        return self._of_all(parts)


def _shortened(text: str) -> str:
    """Arrays of numbers are pages of bytes."""
    return text if len(text) < 200 else f"{text[:20]}…#{hashlib.sha256(text.encode()).hexdigest()[:12]}"


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

"""What people do in their spaces that a supernet cannot do after them: told by name before anything is changed.

- A choice that is called from where no mutation finds it. NNI finds modules where torch does, among the registered
  children. Through a plain list beside them, or from a lambda, the choice itself would be called, which runs its first
  candidate, or the supernet from a network that was frozen:

      self.stages = [self.first, self.second]   # nn.ModuleList finds them, and needs no second names

- Tensors that modules share of which one has a size that is chosen: every network would have two of them.
- Weights that a hook of ``torch.nn.utils`` computes in every pass: torch cannot copy such a module, and every network
  is a copy.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from nni.nas.nn.pytorch import MutableModule, ParametrizedModule
from torch import nn

from nni_gumbel.errors import UsageError

# Attributes in which modules of torch and of NNI keep what they know of others; nothing is called from there.
_OF_NNI = ("trace_args", "trace_kwargs", "_mutables", "_frozen_context", "_label_scope")
_OF_TORCH_AND_NNI = {*vars(nn.Module()), *_OF_NNI}


def refuse_what_cannot_be_relaxed(space: nn.Module) -> None:
    """Refuse what the module names, by a ``UsageError`` that names the modules, the choice and the remedy."""
    modules = dict(space.named_modules())
    labels = {module: label for module in modules.values() if (label := _first_label(module)) is not None}
    for path, holder in modules.items():
        own = {name: value for name, value in vars(holder).items() if name not in _OF_TORCH_AND_NNI}
        for name, value in own.items():
            for held, is_called in _modules_in(value, holder, set()):
                # A reference back to what a module belongs to is there to be read.
                if held in labels and (is_called or all(inner is not holder for inner in held.modules())):
                    raise UsageError(
                        f"module {path or type(holder).__name__!r}: its attribute {name!r} holds choice "
                        f"{labels[held]!r} in a {type(value).__name__}, where it cannot be replaced; call it by its "
                        "name, or use nn.ModuleList or nn.ModuleDict"
                    )
    _refuse_what_cannot_stay(modules)


def _first_label(module: nn.Module) -> str | None:
    mutables = (m for part in module.modules() if isinstance(part, MutableModule) for m in part.mutables)
    return next((label for mutable in mutables for label in mutable.simplify()), None)


def _modules_in(
    value: Any, holder: nn.Module, seen: set[int], is_called: bool = False
) -> Iterator[tuple[nn.Module, bool]]:
    """Modules that an attribute leads to, and whether a function does; its owner's own methods do not count."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: list[Any] = []
    if isinstance(value, nn.Module):
        yield value, is_called
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, functools.partial):
        inside, is_called = [value.func, *value.args, *value.keywords.values()], True
    elif isinstance(value, types.MethodType):
        inside, is_called = [value.__self__] if value.__self__ is not holder else [], True
    elif isinstance(value, types.FunctionType):
        cells = [cell for cell in value.__closure__ or () if cell != types.CellType()]
        inside, is_called = [*(cell.cell_contents for cell in cells), *(value.__defaults__ or ())], True
    for entry in inside:
        yield from _modules_in(entry, holder, seen, is_called)


def _refuse_what_cannot_stay(modules: Mapping[str, nn.Module]) -> None:
    """Ties with what has a chosen size, and weights that a hook computes."""
    sized = {n: m for n, m in modules.items() if isinstance(m, ParametrizedModule) and m.mutables}
    owners: dict[int, tuple[str, str]] = {}
    for path, module in modules.items():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                raise UsageError(
                    f"module {path!r}: {type(hook).__name__} of torch.nn.utils computes a tensor of it in every pass, "
                    "and no copy can be made of that; use torch.nn.utils.parametrizations (or prune.remove)"
                )
        owner = next((name for name in sized if path == name or path.startswith(f"{name}.")), path)
        for name, tensor in {**module._parameters, **module._buffers}.items():
            first, at = owners.setdefault(id(tensor), (owner, f"{path}.{name}"))
            if tensor is not None and first != owner and (first in sized or owner in sized):
                choices = sized[owner if owner in sized else first].mutables
                labels = ", ".join(repr(label) for choice in choices for label in choice.simplify())
                raise UsageError(
                    f"module {path!r}: its {name!r} is {at!r}, too, and choice {labels} decides the size of one of "
                    "them, so a network would have two; give both modules constants, or leave the two apart"
                )

"""Copies of modules that leave their classes alone.

Python copies an instance of a class under ``@nni.trace`` together with its class: NNI takes the class through
cloudpickle, and for a class of a script that replaces the methods of the class itself by methods with other globals.
What the script's own functions collect in a global list is then not in its list any more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from nni.common.serializer import is_traceable
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)
_Object = TypeVar("_Object")


def copied(module: _Module, kept: Mapping[int, Any] = {}) -> _Module:
    """A deep copy of a module, of the same classes.

    Args:
        module: with any parts, those of traced classes among them.
        kept: by ``id``, what stands in the copy for an object instead of a copy of it.
    """
    memo = dict(kept)
    traced = (part for part in module.modules() if is_traceable(part) and not hasattr(part, "__deepcopy__"))
    twins = [(part, object.__new__(type(part))) for part in traced]
    memo.update({id(part): twin for part, twin in twins})
    for part, twin in twins:
        twin.__setstate__(copy.deepcopy(part.__getstate__(), memo))
    return copy.deepcopy(module, memo)


def instance(kind: type[_Object], state: Mapping[str, Any]) -> _Object:
    """An object with the ``vars`` of another, a module's parameters and hooks shared; no ``__init__`` runs."""
    module = object.__new__(kind)
    vars(module).update(state)  # not by __setstate__: that of a parametrised module refuses
    return module


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a module that takes the place of another one all that this has, its hooks too, but for a changed forward."""
    vars(new).update(vars(old), _modules=dict(old._modules))
    vars(new).pop("forward", None)

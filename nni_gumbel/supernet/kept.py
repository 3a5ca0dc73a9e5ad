"""Modules whose arguments hold no choice: freezing a supernet keeps their weights.

NNI's ``freeze`` builds every ``ParametrizedModule`` anew, also where it has nothing to choose, and its
weights are lost. Here such a module becomes, when the space is relaxed, what NNI would freeze it to, with
the parameters and buffers that it has.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn

from nni_gumbel.supernet.variants import plain_attributes

Mixin = TypeVar("Mixin", bound=BaseSuperNetModule)


def keep_weights(module: ParametrizedModule) -> nn.Module:
    """What NNI would freeze a module without choices in its arguments to, with this module's weights.

    ``MutableConv2d`` becomes ``nn.Conv2d``, as it was built from its arguments: what was changed on it
    afterwards (an ``eps``, say) is not in NNI's frozen module either. Choices in submodules stay choices.
    """
    if module._bound_type is None:
        return instance(derived(KeptModule, type(module)), vars(module))
    return instance(module._bound_type, vars(module) | plain_attributes(module))


class KeptModule(BaseSuperNetModule):
    """A ``ParametrizedModule`` of a person's own class, with its weights."""

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """A copy, of the person's class, with every choice inside frozen."""
        frozen, replaced = recursive_freeze(self, sample, include_root=False)
        return self.as_built(frozen if replaced else copy.deepcopy(self))

    def as_built(self, frozen: nn.Module) -> nn.Module:
        """A module of the person's class with the state of another one."""
        return instance(type(self).__bases__[1], vars(frozen))

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return reduced(self, KeptModule)


@functools.cache
def derived(mixin: type[Mixin], kind: type[nn.Module]) -> type[Mixin]:
    """A type that is a mixin of ours and a module of a given type at once."""
    keywords = {"disable_init_wrapper": True} if issubclass(kind, ParametrizedModule) else {}
    return types.new_class(f"{mixin.__name__}[{kind.__name__}]", (mixin, kind), keywords)


def instance(kind: type[nn.Module], state: Mapping[str, Any]) -> Any:
    """A module with the state of another, whose parameters it shares; no ``__init__`` runs."""
    module = object.__new__(kind)
    vars(module).update(state)
    return module


def reduced(module: BaseSuperNetModule, mixin: type[BaseSuperNetModule]) -> tuple:
    """How an instance of a :func:`derived` type is copied and pickled: such a type has no importable name."""
    return _restored, (mixin, type(module).__bases__[1]), module.__getstate__()


def _restored(mixin: type[BaseSuperNetModule], kind: type[nn.Module]) -> BaseSuperNetModule:
    return object.__new__(derived(mixin, kind))

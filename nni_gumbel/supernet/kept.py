"""What was done to a module after it was built stays done: its initialisation, parametrizations, ties, buffers, hooks.

NNI's ``freeze`` builds every ``ParametrizedModule`` anew, also where it has nothing to choose, and its
weights are lost. Here such a module becomes, when the space is relaxed, what NNI would freeze it to, with
the parameters and buffers that it has (:func:`keep_weights`). A module that another one takes the place of hands
over what was added to it (:func:`additions`); what cannot be handed over is refused
(:mod:`nni_gumbel.supernet.refusals`).
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from nni_gumbel.supernet.variants import plain_attributes

Mixin = TypeVar("Mixin", bound=BaseSuperNetModule)

_ENTRIES = ("_parameters", "_buffers", "_modules")


def additions(module: nn.Module, fresh: nn.Module) -> dict[str, list[str]]:
    """The entries of ``_parameters``, ``_buffers`` and ``_modules`` that a module was not built with.

    Args:
        module: of any age.
        fresh: has the entries that it had when it was built.
    """
    return {place: [*(vars(module)[place].keys() - vars(fresh)[place].keys())] for place in _ENTRIES}


def hand_over(added: Mapping[str, Sequence[str]], module: nn.Module, other: nn.Module) -> None:
    """Give another module the :func:`additions` to a module, and all hooks."""
    for place, names in added.items():
        vars(other)[place].update({name: vars(module)[place][name] for name in names})
    hand_over_hooks(module, other)


def hand_over_hooks(module: nn.Module, other: nn.Module) -> None:
    """Give another module, which has none yet, the hooks of a module; a handle removes them from both."""
    vars(other).update({key: value for key, value in vars(module).items() if "hook" in key and value})


def keep_weights(module: ParametrizedModule) -> nn.Module:
    """What NNI would freeze a module without choices in its arguments to, with this module's weights.

    ``MutableConv2d`` becomes ``nn.Conv2d``. Its attributes are those that it was built with from its arguments: an
    ``eps`` that was changed on it afterwards is not in NNI's frozen module either. Choices in submodules stay choices.
    """
    kind = module._bound_type
    if kind is None:
        return instance(derived(KeptModule, type(module)), vars(module))
    if is_parametrized(module):
        # Torch gave it a class of its own, whose properties compute what the parametrizations say.
        own = vars(type(module))
        names = [name for name in own if isinstance(own[name], property) or name in _COPYING]
        kind = type(f"Parametrized{kind.__name__}", (kind,), {name: own[name] for name in names})
    return instance(kind, vars(module) | plain_attributes(module))


_COPYING = ("__getstate__", "__deepcopy__")


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

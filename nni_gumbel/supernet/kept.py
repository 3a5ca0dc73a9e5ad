"""What was done to a module after it was built stays done: its initialisation, parametrizations, ties, buffers, hooks.

NNI's ``freeze`` builds every ``ParametrizedModule`` anew, also where it has nothing to choose, and its
weights are lost. Here such a module becomes, when the space is relaxed, what NNI would freeze it to, with
the parameters and buffers that it has (:func:`keep_weights`). A module that another one takes the place of hands
over what was added to it (:func:`additions`); what cannot be handed over is refused
(:mod:`nni_gumbel.supernet.refusals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni.nas.nn.pytorch import ParametrizedModule
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from nni_gumbel.supernet.variants import plain_attributes

_ENTRIES = ("_parameters", "_buffers", "_modules")
_COPYING = ("__getstate__", "__deepcopy__")


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
    ``eps`` that was changed on it afterwards is not in NNI's frozen module either. A module of a person's own class
    stays, and so do choices in submodules.
    """
    kind = module._bound_type
    if kind is None:
        return module
    if is_parametrized(module):
        # Torch gave it a class of its own, whose properties compute what the parametrizations say.
        own = vars(type(module))
        names = [name for name in own if isinstance(own[name], property) or name in _COPYING]
        kind = type(f"Parametrized{kind.__name__}", (kind,), {name: own[name] for name in names})
    return instance(kind, vars(module) | plain_attributes(module))


def instance(kind: type[nn.Module], state: Mapping[str, Any]) -> Any:
    """A module with the state of another, whose parameters it shares; no ``__init__`` runs."""
    module = object.__new__(kind)
    vars(module).update(state)
    return module

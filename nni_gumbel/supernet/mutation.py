"""From a model space to a supernet: every choice is replaced, in place, by the module that mixes it.

The one way in, for the strategy and for loops of one's own: :func:`relax` gives a space its
distribution and walks through its modules; what still has a choice afterwards would silently keep its
default, so it is refused by name.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nni.mutable import Mutable, frozen_context
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, MutableModule, Repeat
from nni.nas.oneshot.pytorch.strategy import MutationHook, MutationHookReturnType, is_supernet
from torch import nn
from torch.nn.parameter import UninitializedParameter

from nni_gumbel.errors import UnsupportedError, UsageError
from nni_gumbel.supernet.arguments import MixedArguments, mix_arguments
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.hub import mix_of_hub, parts_of_hub
from nni_gumbel.supernet.inputs import MixedInput
from nni_gumbel.supernet.layer import MixedLayer
from nni_gumbel.supernet.refusals import refuse_what_cannot_be_relaxed
from nni_gumbel.supernet.structure import freeze_with_weights

_log = logging.getLogger(__name__)


def relax(space: ModelSpace, hooks: Sequence[MutationHook] = (), merged: bool = True) -> Distribution:
    """Turn a space into a supernet, in place.

    Args:
        space: an NNI model space; each of its choices is replaced by a mixture of its candidates.
        hooks: NNI mutation hooks of one's own, run before ours; see NNI's ``OneShotStrategy``. Among
            their ``mutate_kwargs`` is ``joint_sample``, where a mixed module reads its weights.
        merged: whether the candidates of a ``LayerChoice`` run as one operation where that computes the same; if
            not, each of them runs by itself. Give ``False`` for the transforms of ``torch.func``, and if attributes of
            candidates are changed later: a merged operation reads them once, when it runs first.

    Returns:
        The distribution over the networks of the space: draw from it (:meth:`Distribution.sample`)
        before every forward pass of the supernet.

    Raises:
        UsageError: the space has no choice, is a supernet already, or has a choice that cannot be relaxed.

    Example:
        >>> space = MySpace()
        >>> distribution = relax(space)
        >>> distribution.sample(temperature=1.0)
        >>> space(torch.ones(2, 4)).sum().backward()  # reaches the weights and the logits
        >>> network = space.freeze(distribution.mode())
    """
    if not isinstance(space, ModelSpace):
        name = getattr(space, "__name__", type(space).__name__)
        raise UsageError(f"space: {name!r} is no instance of nni.nas.nn.pytorch.ModelSpace; give one")
    for hook in hooks:
        if not callable(hook):
            raise UsageError(f"mutation_hooks: {hook!r} cannot be called; give functions, as NNI takes them")
    if is_supernet(space):
        raise UsageError(f"space {type(space).__name__!r}: it is a supernet already; build a new one")
    if space.mutables:
        raise UsageError(
            f"choice {_labels(space)}: the space {type(space).__name__!r} holds it itself, and it cannot be relaxed "
            "there; give it to the module that it concerns"
        )
    for name, parameter in space.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise UsageError(
                f"module {name.rpartition('.')[0]!r}: its sizes are not known before it runs; give them"
            )
    refuse_what_cannot_be_relaxed(space)
    distribution = Distribution(space)
    walk = _Walk(space, hooks, {"joint_sample": distribution.joint_sample, "merged": merged})
    # NNI builds a choice only where somebody answers what its default is.
    with frozen_context():
        walk.replace_below(space)
    for module in space.modules():
        # What one candidate changes in place, the next one would take for its input.
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    layers = [module for module in space.modules() if isinstance(module, MixedLayer)]
    lines = Counter(f"choice {layer.label!r}: {layer.plan().describe()}" for layer in layers)
    for line, number in lines.items():
        _log.info("%s%s", line, f" ({number} modules)" if number > 1 else "")
    # NNI's own copies every candidate at every level, and some spaces build their networks anew.
    space.freeze = functools.partial(freeze_with_weights, space)
    return distribution


class _Walk:
    """From the outside in, every module below a space is replaced by what a hook, or this project, makes of it."""

    def __init__(
        self, space: ModelSpace, hooks: Sequence[MutationHook], arguments: Mapping[str, Any]
    ) -> None:
        self._hooks, self._arguments, self._memo = hooks, dict(arguments), {}
        self._of_hub = parts_of_hub(space)
        # A module that stands at several places is replaced by one module, which keeps its weights tied.
        self._replacements: dict[nn.Module, nn.Module] = {}

    def replace_below(self, parent: nn.Module, prefix: str = "") -> None:
        """Replace what is below a module, in place; ``prefix`` is its path and a dot."""
        places: dict[nn.Module, str] = {}
        # Not named_children(), which leaves out the second place of a module.
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            path = prefix + name
            first_place = places.setdefault(child, path)
            if first_place != path and any(isinstance(module, MutableModule) for module in child.modules()):
                raise UsageError(
                    f"module {path!r}: it is {first_place!r} again, and NNI's freeze decides its choices at the first "
                    "place only; keep it at one place, or make two modules that share labels"
                )
            if child not in self._replacements:
                replacement = self._replacement(child, path)
                if isinstance(replacement, _MIXED) and replacement is not child:
                    child.forward = functools.partial(_refuse_call, path, child)
                self._replacements[child] = self._replacements[replacement] = replacement
                self.replace_below(replacement, f"{path}.")
            if self._replacements[child] is not child:
                setattr(parent, name, self._replacements[child])

    def _replacement(self, module: nn.Module, path: str) -> nn.Module:
        for hook in self._hooks:
            replacement, done = _parsed(hook(module, path, self._memo, self._arguments))
            module = module if replacement is None else replacement
            if done:
                return module
        joint_sample, kind = self._arguments["joint_sample"], type(module)
        mixed = mix_of_hub(module, path, joint_sample) if module in self._of_hub else None
        if mixed is not None:
            return mixed
        if kind is LayerChoice:  # what a person derives from NNI's primitives computes what it likes
            return MixedLayer(module, joint_sample, self._arguments["merged"])
        if kind is InputChoice:
            return MixedInput(module, joint_sample)
        if kind is Repeat and isinstance(module.depth_choice, Mutable):
            return MixedRepeat(module, joint_sample)
        if kind is Cell and (module.op_candidates_factory is not None or module.merge_op == "loose_end"):
            return MixedCell(module, joint_sample)  # the parts of other cells make them a mixture
        mixed = mix_arguments(module, path, joint_sample)
        if mixed is None and isinstance(module, MutableModule) and module.mutables:
            raise UnsupportedError(
                f"choice {_labels(module)}: {kind.__name__} at {path!r} is not supported and cannot be relaxed; "
                "express it with LayerChoice, InputChoice, Repeat, Cell or a Mutable module, or give a mutation hook"
            )
        return module if mixed is None else mixed


def _parsed(result: MutationHookReturnType | None) -> tuple[nn.Module | None, bool]:
    """What a hook may return: a module, whether it is done, or both."""
    if isinstance(result, tuple):
        return result
    if isinstance(result, nn.Module):
        return result, True
    if result is not None and not isinstance(result, bool):
        raise UsageError(
            f"mutation_hooks: a hook returned {result!r}; let it return a module, a boolean, or both"
        )
    return None, bool(result)


def _labels(module: MutableModule) -> str:
    return ", ".join(repr(label) for mutable in module.mutables for label in mutable.simplify())


def _refuse_call(path: str, module: MutableModule, *_: Any, **__: Any) -> None:
    """The forward of a module that has been replaced: it would run its defaults."""
    raise UsageError(
        f"choice {_labels(module)}: {type(module).__name__} at {path!r} is called from where it cannot be replaced (a "
        "global variable, an object that is no module); call it by its name in the module that it belongs to"
    )


_MIXED = (MixedLayer, MixedInput, MixedRepeat, MixedCell, MixedArguments)

"""Choices in the arguments of a module in a supernet: width, kernel size, groups, dropout rate …

For a module whose arguments v depend on choices, with weights P(v), the mixture is

    sum_v P(v) pad(M_v(x restricted to the features that v reads))

``M_v`` is the module that NNI freezes v to, with its part of weights that all v share; what it writes is
filled up with zeros to the largest active v (:mod:`nni_gumbel.supernet.slicing` says which features and
which part). Linear layers, convolutions and batch norms of many sizes are computed as one operation
(:mod:`nni_gumbel.supernet.sizes`), everything else one v after another. With a single active v nothing
is restricted or filled up: it computes what the frozen module computes.

What a mixture of widths means: a feature that not every width has is scaled by the probability that it is
there. Norms would undo the scale, so they apply it again; a mixture close to a single network is close to
that network. This needs the features of a small width to be the first ones of a larger width all the way
to the module that reads them, and the zeros behind them to change nothing. The one limit is a forward of a
person's own that breaks this **in a mixture**: it concatenates or flattens tensors so that features of a
variable width have others behind them, splits them (halves, heads), or takes a mean or softmax over them.
The reader then mixes other features than its networks do. At a sample nothing is filled up, and the
supernet equals the frozen network there, too; ``nni_gumbel.testing`` compares an almost decided mixture.

Running statistics are those of the mixture. In training every channel's are updated once, as the frozen
module updates them, if its weight is not 0.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from nni_gumbel.copies import copied, instance
from nni_gumbel.errors import UnsupportedError, UsageError, first_line
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import is_float, mixture
from nni_gumbel.supernet.sizes import Sizes, key_of_size
from nni_gumbel.supernet.slicing import Features, features, fill_up, restrict, tensors_of
from nni_gumbel.supernet.variants import Variants, choices_of, refuse_hidden_choices, without_choices

# A cooling distribution meets few sets of active variants; a bound for those that meet many.
_PLANS_KEPT = 128


def mix_arguments(module: nn.Module, name: str, joint_sample: JointSample) -> nn.Module | None:
    """What becomes of a ``ParametrizedModule``, i.e. ``MutableConv2d`` and the like; ``None`` for other modules.

    With a choice in its arguments it becomes a :class:`MixedArguments`. Without, it becomes the module that
    NNI freezes it to, with the weights that it has, which NNI's own ``freeze`` would throw away.

    Raises:
        UsageError: an argument cannot be relaxed; names the module, the argument and the choice.
    """
    if not isinstance(module, ParametrizedModule) or isinstance(module, BaseSuperNetModule):
        return None
    refuse_hidden_choices(module, name)
    choices = choices_of(module)
    if any(all(mutable is not choice for choice in choices.values()) for mutable in module.mutables):
        return None  # it has registered choices of its own, and only a hook of its author can mix them
    return MixedArguments.of(module, name, joint_sample) if choices else without_choices(module)


def parameter_sizes(module: nn.Module) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Number of scalars in each parameter of a module, for every combination of choices in its arguments.

    Args:
        module: any module, of a space or of its supernet.

    Returns:
        By name, as in the supernet's ``named_parameters()`` (a module that is not mutated yet may lack some):
        the labels that the parameter depends on, and integers with one axis per label, in the order of its
        candidates; 0 where a network does not have the parameter. Empty if no argument of the module is a choice.
    """
    if isinstance(module, MixedArguments):
        variants = module.variants
    elif isinstance(module, ParametrizedModule) and choices_of(module):
        variants = Variants(module, type(module).__name__)
    else:
        return {}
    counts: dict[str, np.ndarray] = {}
    for k, template in enumerate(variants.templates):
        for name, parameter in template.named_parameters():
            counts.setdefault(name, np.zeros(len(variants.templates), np.int64))[k] = parameter.numel()
    return {name: (variants.table.labels, count[variants.table.index]) for name, count in counts.items()}


# The groups of variants that are one operation, with their places among the active ones; and place and name of an
# input, a dimension of it, and the features that the largest of them reads.
_Plan = tuple[list[tuple[Sizes, list[int]]], list[tuple[int, str, int, int]]]


class MixedArguments(BaseSuperNetModule):
    """The mixture over a module's arguments.

    Its instances are of the mixed module's type, too (a mixed ``MutableConv2d`` is an ``nn.Conv2d``), with
    parameters and buffers of the same names, each as large as the largest variant's.

    Attributes:
        variants: the modules that it mixes.
        keys: of each of them; those with one key are one operation.
    """

    variants: Variants
    keys: tuple[Hashable, ...]
    _joint_sample: JointSample
    _features: tuple[Features, ...]  # of each variant
    _built_momentum: float | None
    _runners: dict[int, nn.Module]
    _plans: dict[tuple[tuple[int, ...], torch.device], _Plan]

    @classmethod
    def of(cls, module: ParametrizedModule, name: str, joint_sample: JointSample) -> MixedArguments:
        """Replace a module; its weights are kept if they are large enough for every variant.

        Raises:
            UsageError: an argument cannot be relaxed; names the module, the argument and the choice.
        """
        inner = {label: None for child in module.mutable_descendants() for label in child.simplify()}
        if inner:
            raise UsageError(
                f"module {name!r}: {type(module).__name__} has choices in its arguments and choice "
                f"{', '.join(map(repr, inner))} inside; keep the one or the other"
            )
        variants, tensors, base = Variants(module, name), tensors_of(module), module
        if any(name not in tensors or tensors[name].shape != shape for name, shape in variants.full.items()):
            base = variants.build(module)
            _hand_over(module, base, variants)
        mixed = instance(_derived(variants.built_type), vars(base))
        mixed._mutables = list(choices_of(module).values())
        mixed._joint_sample = joint_sample
        mixed.variants = variants
        keys = (key_of_size(template, variants.full) for template in variants.templates)
        mixed.keys = tuple(k if key is None else key for k, key in enumerate(keys))
        mixed._features = tuple(map(features, variants.templates))
        mixed._built_momentum = getattr(base, "momentum", None)
        mixed._runners, mixed._plans = {}, {}
        return mixed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes what the module takes; returns what the largest active variant returns.

        Raises:
            UsageError: the outputs of the active variants differ in more than their number of features,
                or an input has more or fewer features than the largest of them reads.
        """
        positions, weights = self.variants.table.weighted(self._joint_sample)
        state = tensors_of(self)
        if len(positions) == 1:
            return self._run(positions[0], state, args, kwargs)
        groups, reads = self._plan_of(tuple(positions), weights.device)
        self._check_inputs(reads, args, kwargs)
        buffers = [name for name, _ in self.named_buffers() if name in self.variants.full and self.training]
        outputs, scales, updates = [], [], []
        for group, places in groups:
            chosen = weights if len(places) == len(positions) else weights[places]
            # Each group starts from the same statistics.
            own = state | {name: state[name].clone() for name in buffers}
            if len(places) == 1:
                outputs.append(self._run_beside_others(group.members[0], own, args, kwargs))
                scales.append(chosen[0])
            else:
                (x,) = (*args, *kwargs.values())
                outputs.append(group(chosen, own, x, self._runner))
                scales.append(None)
            updates.append((group, chosen.detach(), own))
        for name in buffers:
            self._update(name, state[name], updates)
        if len(outputs) > 1:
            outputs = fill_up(outputs, self._features[positions[0]].outputs)
        return mixture(
            outputs,
            scales,
            f"{self.variants.owner}: choice {self.variants.table.told} makes",
            (f"{self.variants.describe(group.members[0])} gives" for group, _ in groups),
            "make them equal, e.g. with padding, or express it as a LayerChoice",
        )

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """The module at a sample, of the type that NNI freezes it to, with its part of the weights."""
        k = self.variants.table.position(sample)
        frozen = self.variants.frozen(k, tensors_of(self)).train(self.training)
        _hand_over(self, frozen, self.variants)
        return frozen

    def extra_repr(self) -> str:
        """The arguments that depend on choices."""
        return ", ".join(map(repr, self.mutables))

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # Its type has no importable name.
        return _restored, (self.variants.built_type,), self.__getstate__()

    def _plan_of(self, positions: tuple[int, ...], device: torch.device) -> _Plan:
        if (positions, device) in self._plans:
            return self._plans[positions, device]
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.clear()
        places: dict[Hashable, list[int]] = {}
        groups: list[tuple[Sizes, list[int]]] = []
        sizes: dict[tuple[int, str, int], int] = {}
        for i, k in enumerate(positions):
            places.setdefault(self.keys[k], []).append(i)
            for place, (name, read) in enumerate(self._features[k].inputs):
                for dim, size in read:
                    sizes[place, name, dim] = max(size, sizes.get((place, name, dim), 0))
        for own in places.values():
            one = Sizes(self.variants, [positions[i] for i in own], device)
            alone = own if one.largest is None else []
            groups += [(Sizes(self.variants, [positions[i]], device), [i]) for i in alone] or [(one, own)]
        self._plans[positions, device] = groups, [(*key, size) for key, size in sizes.items()]
        return self._plans[positions, device]

    def _run(self, k: int, state: Mapping[str, Tensor], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Variant ``k``, with its part of the weights."""
        return functional_call(self._runner(k), self.variants.parts(k, state), args, dict(kwargs))

    def _runner(self, k: int) -> nn.Module:
        """Variant ``k`` without weights, in this module's mode, with the momentum that a person has given it."""
        template = self.variants.templates[k]
        if k not in self._runners:
            self._runners[k] = copied(template, {id(t): t for t in tensors_of(template).values()})
        runner = self._runners[k]
        if runner.training != self.training:
            runner.train(self.training)
        if "momentum" in vars(runner):
            # One that was set after the mutation counts: so statistics are estimated anew.
            is_built = self.momentum == self._built_momentum
            runner.momentum = template.momentum if is_built else self.momentum
        return runner

    def _run_beside_others(
        self, k: int, state: Mapping[str, Tensor], args: tuple, kwargs: Mapping[str, Any]
    ) -> Any:
        """Variant ``k`` on the features that it reads."""
        given = dict(enumerate(args)) | kwargs
        for place, (name, dims) in enumerate(self._features[k].inputs):
            key = place if place < len(args) else name
            if given.get(key) is not None:
                given[key] = restrict(given[key], dims)
        args = tuple(given.pop(place) for place in range(len(args)))
        try:
            return self._run(k, state, args, given)
        except RuntimeError as error:
            if self.variants.is_of_torch or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            # What a module of a person's own reads and writes is not known: it got the whole input.
            raise UnsupportedError(
                f"{self.variants.owner}: a mixture of {self.variants.built_type.__name__} is not supported: with "
                f"{self.variants.describe(k)} (choice {self.variants.table.told}) it does not run on the input of the "
                f"largest: {first_line(error)}; build it from modules of nni.nas.nn.pytorch, or give a mutation hook"
            ) from error

    @torch.no_grad()
    def _update(
        self, name: str, buffer: Tensor, updates: list[tuple[Sizes, Tensor, Mapping[str, Tensor]]]
    ) -> None:
        """Set a buffer to what the active variants made of it: for each entry the mean over those that have it."""
        if not buffer.is_floating_point():
            for _, _, state in updates:  # a counter, which all count alike
                buffer.copy_(torch.maximum(buffer, state[name]))
            return
        new, total = torch.zeros_like(buffer), torch.zeros_like(buffer)
        for group, weights, state in updates:
            shares = group.shares(name)
            if shares is not None:
                weight = shares(weights).to(buffer)
                group.part(name, new).add_(weight * group.part(name, state[name]))
                group.part(name, total).add_(weight)
        # An entry that is in none of the drawn networks stays as it is.
        buffer.copy_(torch.where(total > 0, new / total, buffer))

    def _check_inputs(
        self, reads: list[tuple[int, str, int, int]], args: tuple, kwargs: Mapping[str, Any]
    ) -> None:
        for place, name, dim, size in reads:
            x = args[place] if place < len(args) else kwargs.get(name)
            for entry in filter(is_float, (x,) if isinstance(x, Tensor) else tree_leaves(x)):
                if entry.shape[dim] != size:
                    raise UsageError(
                        f"{self.variants.owner}: its input has {entry.shape[dim]} features (dimension {dim} of "
                        f"{tuple(entry.shape)}), but with choice {self.variants.table.told} it reads up to {size}; "
                        "let what comes before it depend on the same choices"
                    )


@functools.cache
def _derived(kind: type[nn.Module]) -> type[MixedArguments]:
    """A type that is a mixture over arguments and a module of a given type at once."""
    keywords = {"disable_init_wrapper": True} if issubclass(kind, ParametrizedModule) else {}
    return types.new_class(f"MixedArguments[{kind.__name__}]", (MixedArguments, kind), keywords)


def _restored(kind: type[nn.Module]) -> MixedArguments:
    return object.__new__(_derived(kind))


def _hand_over(module: nn.Module, other: nn.Module, variants: Variants) -> None:
    """Give another module what was added to a module after it was built, and all hooks."""
    for place in ("_parameters", "_buffers", "_modules"):
        built = {name for template in variants.templates for name in vars(template)[place]}
        added = {name: value for name, value in vars(module)[place].items() if name not in built}
        vars(other)[place].update(added)
    vars(other).update({key: value for key, value in vars(module).items() if "hook" in key and value})

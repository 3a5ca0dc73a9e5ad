"""The structure of a space: which choices lead to which modules; and the network frozen at a sample.

A module inside a candidate that is not chosen, or behind the depth of a ``Repeat``, is not in the network, and
what is chosen inside it leaves no trace: two samples that differ in such labels alone are the same network.
:func:`children` is the one place that says when a network has a module. Freezing, used labels, costs, budgets and the
number of networks all follow from it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, MutableModule, ParametrizedModule, Repeat
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn

from nni_gumbel.copies import copied, instance
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.hub import ShortStage, fit_to_loose_ends


@dataclass(frozen=True, eq=False)
class Condition:
    """Some combinations of the candidates of some labels: truth values, with one axis per label."""

    candidates: Mapping[str, Sequence[Any]]
    holds: np.ndarray

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the axes."""
        return tuple(self.candidates)

    def at(self, sample: Mapping[str, Any]) -> bool:
        """Whether it holds at an NNI sample."""
        chosen = (values.index(sample[label]) for label, values in self.candidates.items())
        return bool(self.holds[tuple(chosen)])


def children(module: nn.Module) -> Iterator[tuple[nn.Module, Condition | None]]:
    """The children of a module, each with the networks that have it, of those that have the module; ``None``: all.

    Args:
        module: a space or a module of one, mutated or not.
    """
    if isinstance(module, LayerChoice):
        for chosen, name in zip(np.eye(len(module.names), dtype=bool), module.names):
            yield module[name], Condition({module.label: module.names}, chosen)
    elif isinstance(module, Repeat):
        candidates, depths = depths_of(module)
        for number, block in enumerate(module.blocks):
            yield block, Condition(candidates, depths > number)
        if isinstance(module, MixedRepeat) and module.transformation is not None:
            yield module.transformation, Condition(candidates, depths == 1)
    elif isinstance(module, MixedCell) and module.op_candidates_factory is not None:
        variables = module.simplify()
        slots = (slot for node in zip(module.labels, module.ops) for slot in zip(*node))
        for (source, _), choices in slots:
            for chosen, choice in zip(np.eye(len(choices), dtype=bool), choices):
                yield choice, Condition({source: variables[source].values}, chosen)
        parts = (module.preprocessor, module.postprocessor)
        yield from ((part, None) for part in parts if isinstance(part, nn.Module))
    else:
        yield from ((child, None) for child in module.children())


def depths_of(repeat: Repeat) -> tuple[Mapping[str, Sequence[Any]], np.ndarray]:
    """The depth of a ``Repeat`` for every combination of its choices: candidates by label, integers by combination."""
    table = Tabulated({"depth": repeat.depth_choice})
    return table.candidates, np.array([values["depth"] for values in table.distinct])[table.index]


@dataclass(frozen=True, eq=False)
class Place:
    """What always comes together in the networks of a space.

    Args:
        labels: used by the networks that have the place, but for those that are used in any case.
        inner: places that some of these networks have.
    """

    labels: tuple[str, ...]
    inner: tuple[tuple[Condition, Place], ...]

    def used_at(self, sample: Mapping[str, Any]) -> set[str]:
        """The labels that the network of an NNI sample uses, the place being in it."""
        return {*self.labels}.union(*(place.used_at(sample) for when, place in self.inner if when.at(sample)))

    def all(self) -> Iterator[Place]:
        """The place and all those inside."""
        yield self
        for _, place in self.inner:
            yield from place.all()


def structure_of(module: nn.Module, known: Set[str] = frozenset()) -> Place:
    """The places of a space or a module of one, mutated or not; labels that are ``known`` are used in any case.

    Where NNI's ``freeze`` builds a module anew - a cell from factories, a ``ParametrizedModule`` - it looks up all
    labels inside, also those of candidates that are not chosen: they are used.
    """
    labels: dict[str, None] = {}
    conditional: list[tuple[Condition, nn.Module]] = []
    always = [module]
    for part in always:  # which grows
        is_made = isinstance(part, Cell) and part.op_candidates_factory is not None
        is_built_anew = is_made or isinstance(part, ParametrizedModule)
        if isinstance(part, MutableModule):
            mutables = [part] if is_built_anew else part.mutables
            labels.update(dict.fromkeys(label for mutable in mutables for label in mutable.simplify()))
        if is_built_anew:
            continue
        for child, condition in children(part):
            if condition is None or condition.holds.all():
                always.append(child)
            elif condition.holds.any():
                conditional.append((condition, child))
    everywhere = known | labels.keys()
    places = ((condition, structure_of(child, everywhere)) for condition, child in conditional)
    inner = tuple((condition, place) for condition, place in places if place.labels or place.inner)
    return Place(tuple(label for label in labels if label not in known), inner)


class UsedPart:
    """The entries of a sample that the network frozen at it uses; the space is walked once, for many samples."""

    def __init__(self, space: ModelSpace) -> None:
        self._place, self._order = structure_of(space), tuple(space.simplify())

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The entries, in the order of the space, of an NNI sample that names at least the labels of its network."""
        used = self._place.used_at(sample)
        return {label: sample[label] for label in self._order if label in used}


def used_part(space: ModelSpace, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What :class:`UsedPart` tells of a single sample."""
    return UsedPart(space)(sample)


def freeze_with_weights(space: MutableModule, sample: Mapping[str, Any]) -> nn.Module:
    """The network of a sample, with a copy of the supernet's weights: each choice is replaced by what was chosen.

    What is one tensor or one module in the supernet is one in the network. A space, or a module of it, with a
    ``freeze`` of its own has that build the network, which then gets the weights that the replacement keeps. The
    sample names at least the labels that its network uses.

    Raises:
        RuntimeError: a ``freeze`` builds another network than the replacement of the choices gives.
    """
    replacement = _Replacement(dict(sample))
    network = copied(replacement.with_children(space, always=True))
    for part in network.modules():
        if isinstance(part, NDS):
            fit_to_loose_ends(part)
    return replacement.rebuilt(space, network)


# What replaces the choices below a module (a ``Cell`` that is not mixed has no more to do), and the methods that build
# a module anew without its weights: of a person's own ``ParametrizedModule``, which has no choice any more, and of the
# hub's ``NDS``, which builds its own class, whatever a person derived from it.
_REPLACING = (MutableModule.freeze, Cell.freeze, ParametrizedModule.freeze, NDS.freeze)
_OF_CONTAINERS = (LayerChoice.freeze, Repeat.freeze)


class _Replacement:
    """NNI's ``recursive_freeze`` without its copies, one at every level, each of which unties what is tied.

    Networks share their weights with the supernet. A module that stands at several places is frozen once.
    """

    def __init__(self, sample: dict[str, Any]) -> None:
        self._sample = sample
        self._frozen: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        if module not in self._frozen:
            self._frozen[module] = self._of(module)
        return self._frozen[module]

    def _of(self, module: nn.Module) -> nn.Module:
        if isinstance(module, (LayerChoice, Repeat)) and type(module).freeze in _OF_CONTAINERS:
            module.validate(self._sample)
            kept = [child for child, condition in children(module) if condition.at(self._sample)]
            if isinstance(module, LayerChoice):
                return self.of(kept[0])
            is_short = isinstance(module, MixedRepeat) and module.transformation in kept
            blocks = (ShortStage if is_short else nn.Sequential)(*map(self.of, kept))
            blocks.training = module.training  # not train(), which would reach into the supernet
            return blocks
        if isinstance(module, MixedCell):
            return module.freeze(self._sample, self.of)
        if isinstance(module, BaseSuperNetModule):
            return module.freeze(self._sample)
        return self.rebuilt(module, self.with_children(module))

    def rebuilt(self, module: nn.Module, network: nn.Module) -> nn.Module:
        """What the module's own ``freeze`` builds, with the weights of a network; the network if it has none."""
        if not isinstance(module, Mutable) or type(module).freeze in _REPLACING:
            return network
        built = copied(type(module).freeze(module, self._sample)).to(next(network.parameters(), None))
        built.load_state_dict(network.state_dict(), strict=True)
        return built.train(module.training)

    def with_children(self, module: nn.Module, always: bool = False) -> nn.Module:
        """The module with its children frozen: itself if none of them has a choice, unless a copy is wanted anyway."""
        frozen = {name: child and self.of(child) for name, child in module._modules.items()}
        if not always and all(frozen[name] is child for name, child in module._modules.items()):
            return module
        network = instance(type(module), vars(module))
        network._modules = frozen
        vars(network).pop("freeze", None)  # a supernet's own is bound to the supernet
        for name, value in vars(network).items():
            if isinstance(value, types.MethodType) and value.__self__ is module:
                vars(network)[name] = types.MethodType(value.__func__, network)  # its own, not the supernet's
        return network

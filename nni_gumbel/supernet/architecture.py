"""Which labels of a sample a network really uses, and the network frozen at it.

A label inside a candidate that was not chosen, or behind the depth of a ``Repeat``, leaves no trace in
the frozen network: two samples that differ in such labels alone are the same network. A space is read
once into a tree of :class:`Part`; all questions about used labels are answered on that tree.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from nni.mutable import Mutable, ensure_frozen
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, MutableModule, ParametrizedModule, Repeat
from torch import nn

from nni_gumbel.copies import copied, shallow_copy
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.hub import fit_to_loose_ends
from nni_gumbel.supernet.kept import KeptModule


@dataclass(frozen=True, eq=False)
class Part:
    """Labels that a network uses, and what it has besides, depending on their values.

    Args:
        labels: all of them are used wherever the part itself is.
        branches: the parts that follow, for each tuple of the labels' values; empty if none ever do.
    """

    labels: tuple[str, ...]
    branches: Mapping[tuple[Any, ...], tuple[Part, ...]] = field(default_factory=dict)


def used_part(space: ModelSpace, sample: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``sample`` that the network frozen at it uses, in the order of the space.

    It is what NNI's ``freeze`` needs. Where that builds a module anew - a cell from factories, a
    ``ParametrizedModule`` - it looks up the labels of candidates that are not chosen, too.

    Args:
        space: the model space, mutated to a supernet or not.
        sample: an NNI sample with an entry for every label.
    """
    used = used_labels(parts_of(space), sample)
    return {label: sample[label] for label in space.simplify() if label in used}


def used_labels(parts: tuple[Part, ...], sample: Mapping[str, Any]) -> set[str]:
    """The labels that a network uses, of a space whose parts are known (see :func:`parts_of`)."""
    return set(_used_labels(parts, sample))


def freeze_with_weights(space: MutableModule, sample: Mapping[str, Any]) -> nn.Module:
    """The network of a sample, with a copy of the supernet's weights: each choice is replaced by what was chosen.

    What is one tensor or one module in the supernet is one in the network. A space with a ``freeze`` of its own has
    that build the network, which then gets the weights that the replacement keeps.

    Args:
        space: a supernet.
        sample: an NNI sample that names the labels it uses.

    Raises:
        RuntimeError: the space builds another network than the replacement of its choices gives.
    """
    network = _Replacement(dict(sample)).of_space(space)
    if type(space).freeze in _REPLACING:
        return copied(network)
    rebuilt = type(space).freeze(space, dict(sample)).to(next(network.parameters(), None))
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    return rebuilt.train(space.training)


# What replaces the choices below a module (a ``Cell`` that is not mixed has no more to do), and the method of the hub's
# ``NDS``: that builds its own class anew, whatever a person derived from it, and whatever was done to the instance.
_REPLACING = (MutableModule.freeze, Cell.freeze, NDS.freeze)


class _Replacement:
    """NNI's ``recursive_freeze`` without its copies, one at every level, each of which unties what is tied.

    Networks share their weights with the supernet. A module that stands at several places is frozen once.
    """

    def __init__(self, sample: dict[str, Any]) -> None:
        self._sample = sample
        self._frozen: dict[nn.Module, nn.Module] = {}

    def of_space(self, space: MutableModule) -> nn.Module:
        network = self._with_children(space, always=True)
        vars(network).pop("freeze", None)  # a supernet's own is bound to the supernet
        return network

    def of(self, module: nn.Module) -> nn.Module:
        if module not in self._frozen:
            self._frozen[module] = self._of(module)
        return self._frozen[module]

    def _of(self, module: nn.Module) -> nn.Module:
        own = type(module).freeze if isinstance(module, Mutable) else MutableModule.freeze
        if own is LayerChoice.freeze:
            module.validate(self._sample)
            return self.of(module[module.choice.freeze(self._sample)])
        if own is Repeat.freeze:
            module.validate(self._sample)
            depth = ensure_frozen(module.depth_choice, sample=self._sample)
            blocks = nn.Sequential(*map(self.of, module.blocks[:depth]))
            blocks.training = module.training  # not train(), which would reach into the supernet
            return blocks
        if isinstance(module, MixedCell):
            return module.freeze(self._sample, self.of)
        if isinstance(module, KeptModule):
            return module.as_built(self._with_children(module))
        return self._with_children(module) if own in _REPLACING else module.freeze(self._sample)

    def _with_children(self, module: nn.Module, always: bool = False) -> nn.Module:
        children = {name: child and self.of(child) for name, child in module._modules.items()}
        if not always and all(children[name] is child for name, child in module._modules.items()):
            return module
        network = shallow_copy(module)
        network._modules = children
        for name, value in vars(network).items():
            if isinstance(value, types.MethodType) and value.__self__ is module:
                vars(network)[name] = types.MethodType(value.__func__, network)  # its own, not the supernet's
        if isinstance(network, NDS):
            fit_to_loose_ends(network)
        return network


def parts_of(module: nn.Module, known: Set[str] = frozenset()) -> tuple[Part, ...]:
    """The parts that every network of a module has.

    Args:
        module: a space or a module of one, mutated or not.
        known: labels that are used in any case; parts that would only repeat them are left out.
    """
    parts: list[Part] = []
    _collect(module, set(known), parts)
    return tuple(parts)


def _collect(module: nn.Module, known: set[str], parts: list[Part]) -> None:
    """Append the parts of ``module``; ``known`` grows by the labels that are used in any case."""
    if isinstance(module, LayerChoice):
        label = module.label
        _add(parts, known, (label,), {(name,): [module[name]] for name in module.names})
    elif isinstance(module, Repeat) and isinstance(module.depth_choice, Mutable):
        variables = module.depth_choice.simplify()
        depths = Tabulated({"depth": module.depth_choice})
        combinations = itertools.product(*(variables[label].values for label in depths.labels))
        _add(
            parts,
            known,
            depths.labels,
            {
                chosen: list(module.blocks)[: values["depth"]]
                for chosen, values in zip(combinations, depths.values)
            },
        )
    elif _is_built_anew(module):
        _add(parts, known, tuple(module.simplify()), {})
    else:
        if isinstance(module, MutableModule):
            labels = (label for mutable in module.mutables for label in mutable.simplify())
            _add(parts, known, tuple(labels), {})
        for child in module.children():
            _collect(child, known, parts)


def _add(
    parts: list[Part],
    known: set[str],
    labels: tuple[str, ...],
    branches: dict[tuple[Any, ...], list[nn.Module]],
) -> None:
    known_inside = known.union(labels)
    inside: dict[int, tuple[Part, ...]] = {}
    for modules in branches.values():
        for module in modules:
            if id(module) not in inside:
                inside[id(module)] = parts_of(module, known_inside)
    followed = {
        values: tuple(itertools.chain.from_iterable(inside[id(module)] for module in modules))
        for values, modules in branches.items()
    }
    if any(followed.values()):
        parts.append(Part(labels, followed))
    elif not known.issuperset(labels):
        parts.append(Part(tuple(label for label in dict.fromkeys(labels) if label not in known)))
    known.update(labels)


def _is_built_anew(module: nn.Module) -> bool:
    """Whether NNI's ``freeze`` calls the constructor and so wants to know every label inside."""
    if isinstance(module, Cell):
        return module.op_candidates_factory is not None
    return isinstance(module, ParametrizedModule)


def _used_labels(parts: tuple[Part, ...], sample: Mapping[str, Any]) -> Iterator[str]:
    for part in parts:
        yield from part.labels
        if part.branches:
            yield from _used_labels(part.branches[tuple(sample[label] for label in part.labels)], sample)

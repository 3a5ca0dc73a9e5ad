"""The modules that the choices in one module's arguments lead to.

``MutableConv2d(8, nni.choice('c', [8, 16]), nni.choice('k', [3, 5]))`` stands for four convolutions.
Each is kept once as a *template*: a module built from the arguments that NNI would freeze it with,
without weights of its own (on PyTorch's meta device). A template says what shapes its tensors have, and
computes with the parts of the supernet's tensors (:mod:`nni_gumbel.supernet.slicing`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.space import model_context
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nni_gumbel.copies import copied
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.slicing import Shape, part, paste, tensors_of


class Variants:
    """All modules that one ``ParametrizedModule`` can be frozen to.

    Args:
        module: a module with choices in its arguments.
        name: how it is named in errors.

    Attributes:
        built_type: of the modules: what NNI freezes the module to.
        table: the arguments that depend on choices.
        templates: a module for each of ``table.distinct``; never changed.
        shapes: per template, the shape of each of its parameters and buffers by name.
        full: shape of each of the supernet's tensors: the largest in every dimension.

    Raises:
        UsageError: an argument cannot be relaxed, or a module cannot be built from its arguments.
    """

    def __init__(self, module: ParametrizedModule, name: str) -> None:
        self.built_type: type[nn.Module] = module._bound_type or type(module)
        self.is_of_torch = _is_of_torch(self.built_type)
        self.owner = f"module {name!r}"
        choices = choices_of(module)
        self._positional = [key for key in _arguments(module) if key.startswith("*")]
        self._constants = {
            key: value.freeze({}) if isinstance(value, Mutable) else value
            for key, value in _arguments(module).items()
            if key not in choices
        }
        for key in choices.keys() & {"device", "dtype"}:
            raise UsageError(f"{self.owner}: argument {key!r} cannot be a choice; give it a value")
        self.table = Tabulated(choices, self.owner)
        self.templates = [self._construct(k, meta=True) for k in range(len(self.table.distinct))]
        self.shapes = [_shapes(template) for template in self.templates]
        self.full: dict[str, Shape] = {}
        for shapes in self.shapes:
            for key, shape in shapes.items():
                self.full[key] = tuple(map(max, shape, self.full.get(key, shape)))

    def describe(self, k: int) -> str:
        """The arguments of variant ``k`` that depend on choices, in words."""
        return ", ".join(f"{key}={value!r}" for key, value in self.table.distinct[k].items())

    def parts(self, k: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of variant ``k``: parts of the supernet's; views of them wherever possible."""
        return {name: part(self.templates[k], name, state[name], own) for name, own in self.shapes[k].items()}

    def parameter_sizes(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """See :func:`nni_gumbel.supernet.arguments.parameter_sizes`."""
        counts: dict[str, np.ndarray] = {}
        for k, template in enumerate(self.templates):
            for name, parameter in template.named_parameters():
                count = counts.setdefault(name, np.zeros(len(self.templates), dtype=np.int64))
                count[k] = parameter.numel()
        return {name: (self.table.labels, count[self.table.index]) for name, count in counts.items()}

    def frozen(self, k: int, state: Mapping[str, Tensor]) -> nn.Module:
        """Variant ``k`` as a module of its own, with its parts of the supernet's tensors."""
        module = copied(self.templates[k])
        for name, value in self.parts(k, state).items():
            _put(module, name, value.detach(), self.templates[k], value.requires_grad)
        return module

    def built_as(self, module: nn.Module) -> int:
        """The variant as which NNI built a module, the one of the candidates that are its defaults.

        Raises:
            UsageError: its tensors are not those that it was built with.
        """
        shapes = _shapes(module)
        for k, built in enumerate(self.shapes):
            if built.items() <= shapes.items():
                return k
        missing = [name for name in self.shapes[0] if name not in shapes] or list(shapes)
        raise UsageError(
            f"{self.owner}: its {missing[0]!r} is not what it was built with - a parametrization, or a "
            f"tensor of another shape - and choice {self.table.told} decides its size; "
            "give the module constants, or leave its tensors as they are"
        )

    def build(self, module: nn.Module) -> nn.Module:
        """A module that holds the supernet's tensors, initialised as another one is.

        Args:
            module: of some size. Tensors of it that were changed after it was built are kept as parts of the
                supernet's; the entries that only larger variants have are drawn from theirs, so that zeros stay
                zeros, and a normal distribution stays what it was.
        """
        whole, default = self._built(), self.built_as(module)
        with torch.random.fork_rng([]):
            built = tensors_of(self._construct(default))
        state = tensors_of(whole)
        for name, value in tensors_of(module).items():
            if name in built and _was_changed(value, built[name]):
                with torch.no_grad():
                    if value.shape != state[name].shape:
                        entries = torch.randint(value.numel(), state[name].shape, device=value.device)
                        state[name].copy_(value.flatten()[entries])
                    paste(self.templates[default], name, state[name], value)
        return whole

    def _built(self) -> nn.Module:
        """A module that holds the supernet's tensors, freshly initialised.

        It is the variant with the most entries. Where that is not the largest in every dimension, the
        rest comes from the variants that are larger there, and is 0 where no variant has anything.
        """
        numels = [sum(map(math.prod, shapes.values())) for shapes in self.shapes]
        ascending = sorted(range(len(numels)), key=numels.__getitem__)
        base = self._construct(ascending[-1])
        if _shapes(base) == self.full:
            return base
        state: dict[str, Tensor] = {}
        makers: dict[str, nn.Module] = {}
        for variant in map(self._construct, ascending):
            for name, value in tensors_of(variant).items():
                if name not in state:
                    state[name] = value.detach().new_zeros(self.full[name])
                    makers[name] = variant
                paste(variant, name, state[name], value.detach())
        for name, value in state.items():
            _put(base, name, value, makers[name])
        return base

    def _construct(self, k: int, meta: bool = False) -> nn.Module:
        """Variant ``k`` as NNI would build it; as a template without storage."""
        arguments = self._constants | self.table.distinct[k]
        positional = [arguments.pop(key) for key in self._positional]
        try:
            if meta and self.is_of_torch:
                module = _template(self.built_type, positional, arguments)
            else:
                # A module of the user's own may do anything with its tensors, so they are real; its
                # template draws no random numbers that others would miss.
                with model_context(self.table.samples[k]), torch.random.fork_rng([], enabled=meta):
                    module = self.built_type(*positional, **arguments)
            if isinstance(module, ParametrizedModule):
                module.save_init_arguments(*positional, **arguments)  # for its repr
        except Exception as error:  # whatever a constructor raises
            raise UsageError(
                f"{self.owner}: {self.built_type.__name__} cannot be built with {self.describe(k)} "
                f"({first_line(error)}); give the choices candidates that fit together in every combination"
            ) from error
        if any(map(is_lazy, module.parameters())):
            raise UsageError(
                f"{self.owner}: {self.built_type.__name__} cannot be relaxed; give its input size"
            )
        return module


def _was_changed(value: Tensor, built: Tensor) -> bool:
    """Whether a tensor was initialised anew after its module was built.

    Args:
        value: of the module.
        built: that of another module, which was built in the same way. Where both are random they are compared by
            their means and their spreads: a difference that shows in neither does not matter.
    """
    if value._version > built._version:
        return True
    if value.numel() < 2:
        return value.dim() == 0 and bool(value != built)  # a counter; one random number tells nothing
    (mean, spread), (expected, usual) = (
        (float(tensor.mean()), float(tensor.std()))
        for tensor in (value.detach().double(), built.detach().double())
    )
    # Six standard errors: of the difference of two means, and, for a uniform distribution, of two spreads.
    error = 6 * math.sqrt(2 / value.numel()) * usual
    is_constant = (spread == 0) != (usual == 0)
    return is_constant or abs(mean - expected) > error or abs(spread - usual) > error / 2


def choices_of(module: ParametrizedModule) -> dict[str, Mutable]:
    """The arguments of a module that NNI's freeze gives other values."""
    arguments = _arguments(module).items()
    return {key: v for key, v in arguments if isinstance(v, Mutable) and not isinstance(v, nn.Module)}


def refuse_hidden_choices(module: ParametrizedModule, name: str) -> None:
    """Refuse arguments in which NNI does not find a choice.

    Raises:
        UsageError: a choice is inside a tuple, list or dict, or a module with choices is an argument.
    """
    owner = f"module {name!r}"
    for key, value in _arguments(module).items():
        if isinstance(value, nn.Module):
            if isinstance(value, Mutable) and value.simplify():
                raise UsageError(
                    f"{owner}: argument {key!r} is a {type(value).__name__} with choices, which NNI freezes to their "
                    "defaults; build it inside the module"
                )
        elif not isinstance(value, Mutable):
            Tabulated({key: value}, owner)


def plain_attributes(module: ParametrizedModule) -> dict[str, Any]:
    """The numbers, words and flags that a module of ``torch.nn`` has when it is built from its arguments."""
    kind = module._bound_type
    if kind is None or not _is_of_torch(kind):
        return {}
    fresh = vars(_template(kind, module.trace_args, module.trace_kwargs))
    simple = (bool, int, float, str, tuple, type(None))
    own = fresh.keys() - vars(nn.Module()).keys()
    return {key: value for key, value in fresh.items() if key in own and isinstance(value, simple)}


def _arguments(module: ParametrizedModule) -> dict[str, Any]:
    """All arguments by name; NNI leaves those of a ``*args`` without one."""
    return {f"*args[{i}]": value for i, value in enumerate(module.trace_args)} | module.trace_kwargs


def _is_of_torch(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.")


def _template(kind: type[nn.Module], positional: Sequence[Any], arguments: Mapping[str, Any]) -> nn.Module:
    """A module of ``torch.nn`` on the meta device."""
    with torch.device("meta"):
        return kind(*positional, **{name: v for name, v in arguments.items() if name != "device"})


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(module).items()}


def _put(module: nn.Module, name: str, value: Tensor, like: nn.Module, requires_grad: bool = True) -> None:
    """Set a parameter or a buffer, whichever it is in ``like``, and at all places where it is one tensor there."""
    path, _, entry = name.rpartition(".")
    owner = like.get_submodule(path)
    if entry in owner._buffers:
        module.get_submodule(path)._buffers[entry] = value
        return
    parameter, tied = nn.Parameter(value, requires_grad=requires_grad), owner._parameters[entry]
    aliases = [alias for alias, other in like.named_parameters(remove_duplicate=False) if other is tied]
    for alias in aliases or [name]:
        # Recurrent layers keep a second list of their parameters, which setattr updates.
        path, _, entry = alias.rpartition(".")
        setattr(module.get_submodule(path), entry, parameter)

"""The modules that the choices in one module's arguments lead to.

``MutableConv2d(8, nni.choice('c', [8, 16]), nni.choice('k', [3, 5]))`` stands for four convolutions.
Each is kept once as a *template*: a module built from the arguments that NNI would freeze it with,
without weights of its own (on PyTorch's meta device). A template says what shapes its tensors have, and
computes with the parts of the supernet's tensors (:mod:`nni_gumbel.supernet.slicing`).

NNI's ``freeze`` builds every ``ParametrizedModule`` anew, also where it has nothing to choose. Here what was done to
its tensors after it was built stays done: :meth:`Variants.build` keeps them as a part of the supernet's, and
:func:`without_choices` as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import ParametrizedModule
from nni.nas.space import model_context
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from nni_gumbel.copies import copied, instance
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.mixture import is_float
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
        """A module that holds the supernet's tensors, initialised as another one is, in its device, dtype and mode.

        Tensors are those of the largest variant that has them, or of ``module`` if they were changed after it was
        built. The entries that only other variants have are drawn from theirs, so that zeros stay zeros, and a normal
        distribution stays what it was.
        """
        default, own, construct = self.built_as(module), tensors_of(module), functools.cache(self._construct)
        sizes = [sum(map(math.prod, shapes.values())) for shapes in self.shapes]
        descending = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        whole = construct(descending[0])
        with torch.random.fork_rng([]):
            fresh = tensors_of(self._construct(default))
        for name, shape in self.full.items():
            k = next(k for k in descending if name in self.shapes[k])
            if name in fresh and _was_changed(own[name], fresh[name]):
                k, value = default, own[name].detach()
            elif k == descending[0] and self.shapes[k][name] == shape:
                continue
            else:
                value = tensors_of(construct(k))[name].detach()
            tensor = value.flatten()[torch.randint(value.numel(), shape, device=value.device)]
            paste(self.templates[k], name, tensor, value)
            _put(whole, name, tensor, self.templates[k])
        whole.to(next(filter(is_float, own.values()), None))
        for name, parameter in whole.named_parameters():
            if name in own:
                parameter.requires_grad_(own[name].requires_grad)
        return whole.train(module.training)

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
        return module


def choices_of(module: ParametrizedModule) -> dict[str, Mutable]:
    """The arguments of a module that NNI's freeze gives other values."""
    arguments = _arguments(module).items()
    return {key: v for key, v in arguments if isinstance(v, Mutable) and not isinstance(v, nn.Module)}


def refuse_hidden_choices(module: ParametrizedModule, name: str) -> None:
    """Refuse choices that NNI does not find: inside a tuple, list or dict, or in a module that is an argument."""
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


def without_choices(module: ParametrizedModule) -> nn.Module:
    """What NNI would freeze a module without choices in its arguments to, with this module's weights.

    ``MutableConv2d`` becomes ``nn.Conv2d``. Its attributes are those that it was built with from its arguments: an
    ``eps`` that was changed on it afterwards is not in NNI's frozen module either. A module of a person's own class
    stays, and so do choices in submodules.
    """
    kind = module._bound_type
    if kind is None:
        return module
    state, of_modules = dict(vars(module)), vars(nn.Module())
    if _is_of_torch(kind):
        fresh = vars(_template(kind, module.trace_args, module.trace_kwargs))
        simple = (bool, int, float, str, tuple, type(None))
        state |= {k: v for k, v in fresh.items() if k not in of_modules and isinstance(v, simple)}
    if is_parametrized(module):
        # Torch gave it a class of its own, whose properties compute what the parametrizations say.
        own = vars(type(module))
        copying = ("__getstate__", "__deepcopy__")
        names = [name for name in own if isinstance(own[name], property) or name in copying]
        kind = type(f"Parametrized{kind.__name__}", (kind,), {name: own[name] for name in names})
    return instance(kind, state)


def _was_changed(value: Tensor, built: Tensor) -> bool:
    """Whether a tensor was initialised anew after its module was built, seen from that of one just built.

    Where both are random their means and spreads are compared: a difference that shows in neither does not matter.
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

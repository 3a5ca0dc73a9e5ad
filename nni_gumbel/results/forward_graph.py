"""What a network computes, as a graph: which layer is called on the output of which.

``torch.fx`` follows the forward functions with stand-ins for tensors. torch's own layers are single steps, and
so is every module whose forward cannot be followed or must not be: it decides on the values of its tensors,
draws random numbers, or does something else in training. Steps that write into a tensor are known as such.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from nni_gumbel.errors import first_line

_logger = logging.getLogger(__name__)

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What these return is a tensor of its own, never their input or a view of it.
_FRESH = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip
# Functions and methods that change a tensor or a list and do not say so in their names.
_CHANGING = ("setitem", "__setitem__", "append", "extend", "insert", "pop", "clear", "update", "setdefault")


class NotFollowed(Exception):
    """The forward of a network cannot be followed; says why, for a person."""


def graph_of(network: nn.Module, single_steps: Collection[nn.Module] = ()) -> fx.Graph:
    """The graph of a network's forward.

    Args:
        network: may be changed by it, as by a call: give a copy. Afterwards in the mode it was in.
        single_steps: modules that are not looked into.

    Raises:
        NotFollowed: the forward of the network itself cannot be followed, or is another one in training.
    """
    modes = {module: module.training for module in network.modules()}
    tracer = _Tracer(single_steps)
    try:
        for module in modes:
            # A module that reads `self.training` then fails: it is not traced and becomes a single step, so that
            # the graph holds in both modes.
            if module is not network and not tracer.is_leaf_module(module, ""):
                del module.__dict__["training"]
        graphs = []
        for mode in (True, False):
            network.training = mode
            graphs.append(_Tracer(single_steps).trace(network))
        for graph in graphs:
            graph.lint()
    except Exception as error:  # a forward fails in any way that Python allows
        name, reason = type(network).__name__, first_line(error)
        raise NotFollowed(f"the forward of {name} cannot be followed without values: {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if str(graphs[0]) != str(graphs[1]):
        raise NotFollowed(f"the forward of {type(network).__name__} is another one in training")
    # Without the tracer's class, which a pickled network would look for.
    plain = fx.Graph()
    plain.output(plain.graph_copy(graphs[1], {}))
    return plain


def is_torch_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers: computes what one does, or has weights like one."""
    inherits = any(
        base.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and base not in _CONTAINERS
        for base in type(module).__mro__
    )
    # That of a graph module is in no file.
    home = type(module).forward.__module__ or ""
    own_forward = not home.startswith(("torch.nn.", "torch.ao.nn."))
    return inherits and not (own_forward and next(module.parameters(), None) is None)


class _Tracer(fx.Tracer):
    def __init__(self, single_steps: Collection[nn.Module]) -> None:
        super().__init__()
        self._single_steps = set(single_steps)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._single_steps or is_torch_layer(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            last, before = next(reversed(self.graph.nodes), None), _random_state()
            try:
                result = forward(*args, **kwargs)
                reason = None if _random_state() == before else "it draws random numbers"
            except Exception as error:  # a forward fails in any way that Python allows
                reason = first_line(error)
            if reason is None:
                return result
            _logger.debug("%s is kept as a whole: %s", path, reason)
            self._forget_since(last)
        return self.create_proxy("call_module", path, args, kwargs)

    def _forget_since(self, last: fx.Node | None) -> None:
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                return
            if node.op != "get_attr":  # the tracer hands these out again
                self.graph.erase_node(node)


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a step calls; ``None`` if it calls none."""
    return root.get_submodule(node.target) if node.op == "call_module" else None


def name_of(node: fx.Node) -> str | None:
    """The name of the function or method that a step calls; ``None`` if it calls none."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", None)
    return node.target if node.op == "call_method" else None


def written_by(node: fx.Node, root: nn.Module) -> Iterator[fx.Node]:
    """The values that a step writes into."""
    module, name = module_of(node, root), name_of(node)
    in_place = (
        getattr(module, "inplace", False) is True
        or node.kwargs.get("inplace") is True
        or (name is not None and name.endswith("_") and not name.endswith("__"))
        or name in _CHANGING
        or (node.op == "call_function" and name in ("iadd", "isub", "imul", "itruediv"))
        # F.relu(x, True)
        or (node.op == "call_function" and any(argument is True for argument in node.args[1:]))
    )
    if in_place and node.args and isinstance(node.args[0], fx.Node):
        yield node.args[0]
    if isinstance(node.kwargs.get("out"), fx.Node):
        yield node.kwargs["out"]


def writers_of(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The later steps that write into a value."""
    return [user for user in node.users if node in written_by(user, root)]


def must_stay(node: fx.Node, root: nn.Module) -> bool:
    """Whether a step may have an effect beside its own value: it writes into what others may see."""
    written = list(written_by(node, root))
    return bool(written) and (not node.users or not all(_is_its_own(value, root) for value in written))


def _is_its_own(value: fx.Node, root: nn.Module) -> bool:
    if len(value.users) > 1:
        return False
    written = list(written_by(value, root))
    if written:
        return all(_is_its_own(one, root) for one in written)
    return isinstance(module_of(value, root), _FRESH)

"""Pruning: a frozen network without the layers that cannot reach its output.

A network keeps the layers behind closed inputs of an ``InputChoice``, and those whose outputs only pass through a
``none`` candidate; they are computed, too. Here ``torch.fx`` writes the forward down as a graph; what is zero for every
input (``x * 0``, ``zeros_like``, and what a layer without a bias makes of it) is left out of sums, and then every
layer whose output nobody uses. The outputs are compared afterwards: where they differ, or where the forward cannot be
traced, the network stays as it is. What stays has its name, so that weights fit before and after.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.functional import pad

from nni_gumbel.errors import first_line

_logger = logging.getLogger(__name__)

# Layers that cost nothing: a network is not rewritten for these.
_FREE = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)
# f(0) = 0, in training and in evaluation; where there is no bias.
_KEEP_ZERO = (
    nn.Linear, nn.modules.conv._ConvNd, nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
)  # fmt: skip
_KEEP_ZERO_BY_NAME = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh", "dropout", "contiguous", "clone", "neg",
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "mean", "sum", "mul",
)  # fmt: skip
_IN_PLACE = ("setitem", "iadd", "isub", "imul", "itruediv", "append", "extend")


def prune(network: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A network with the same outputs, without the layers that cannot reach them.

    Outputs are bit for bit the same in evaluation; in training, too, as far as no random numbers are drawn
    in what is left out. Gradients of the weights that stay are those that they were.

    Args:
        network: without choices, as it is trained; left as it is.
        args, kwargs: what its forward takes: a batch, on its device.

    Returns:
        A ``torch.fx.GraphModule`` with weights of its own, in the mode of ``network``; the network itself if
        nothing can go, if it takes other than one tensor, if its forward cannot be traced, or if the outputs were not
        the same (the last three are logged).
    """
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        _logger.warning("The network is not pruned: only networks that take one tensor are")
        return network
    root = copy.deepcopy(network)
    modes = {name: module.training for name, module in root.named_modules()}
    try:
        graph = _traced(root)
        before = _layers(graph, root)
        _leave_out_zeros(graph, root.eval(), args[0])
    except Exception as error:  # a forward fails in any way that Python allows
        name = type(network).__name__
        _logger.warning("The network is not pruned: %s cannot be traced: %s", name, first_line(error))
        return network
    for node in list(reversed(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not _is_seen_elsewhere(node, root):
            graph.erase_node(node)
    pruned = fx.GraphModule(root, graph, class_name=type(network).__name__)
    for name, module in pruned.named_modules():
        module.training = modes[name]
    fewer = sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in network.parameters())
    if not fewer and _layers(graph, root) == before:
        return network
    difference = _difference(network, pruned, args[0])
    if difference is not None:
        _logger.warning("The network is not pruned: without its unreachable layers %s", difference)
        return network
    return pruned


def removed_layers(network: nn.Module, pruned: nn.Module) -> list[str]:
    """The names of the layers of a network that its pruned one does not have, in the network's order."""
    kept = dict(pruned.named_modules())
    return [
        name
        for name, module in network.named_modules()
        if name not in kept and (_is_of_torch(module) or list(module.parameters(recurse=False)))
    ]


# -- the graph -----------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """torch's layers are single steps, and so is a module that cannot be traced or draws random numbers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_of_torch(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        last, state = next(reversed(self.graph.nodes), None), torch.get_rng_state()
        has_parts = next(m.children(), None) is not None
        training = m.training
        try:
            if not has_parts:
                del (
                    m.training
                )  # a part that asks for its mode is a single step: the graph is that of both modes
            result = super().call_module(m, forward, args, kwargs)
            if torch.equal(torch.get_rng_state(), state):
                return result
        except Exception as error:
            _logger.debug("%s is kept as a whole: %s", self.path_of_module(m), first_line(error))
        finally:
            m.training = training
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                break
            if node.op != "get_attr":  # the tracer hands these out again
                self.graph.erase_node(node)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def _traced(root: nn.Module) -> fx.Graph:
    graphs = [_Tracer().trace(root.train(mode)) for mode in (True, False)]
    if str(graphs[0]) != str(graphs[1]):
        raise ValueError("its forward is another one in training")
    plain = fx.Graph()  # without the tracer's class, which a pickled network would look for
    plain.output(plain.graph_copy(graphs[1], {}))
    return plain


def _is_of_torch(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.nn.") and not isinstance(module, (nn.Sequential, nn.ModuleList))


def _module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(node.target) if node.op == "call_module" else None


def _name_of(node: fx.Node) -> str:
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "")


def _writes(node: fx.Node, root: nn.Module) -> bool:
    """Whether a step changes its first argument in place."""
    name = _name_of(node)
    in_place = getattr(_module_of(node, root), "inplace", False) or node.kwargs.get("inplace", False)
    return bool(in_place) or name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _is_seen_elsewhere(node: fx.Node, root: nn.Module) -> bool:
    """Whether a step changes a value that others use, so that it has to stay without users of its own."""
    return _writes(node, root) and any(len(value.users) > 1 for value in node.all_input_nodes)


def _layers(graph: fx.Graph, root: nn.Module) -> Counter[str]:
    """How often each layer that costs something is called."""
    called = ((node.target, _module_of(node, root)) for node in graph.nodes if node.op == "call_module")
    return Counter(name for name, module in called if not isinstance(module, _FREE))


# -- zeros ---------------------------------------------------------------------------------------------


def _leave_out_zeros(graph: fx.Graph, root: nn.Module, example: Tensor) -> None:
    """Leave what is zero for every input out of sums; elsewhere make it from the first value of its shape."""
    whole = fx.GraphModule(root, graph)
    ShapeProp(whole).propagate(example)
    for node in list(graph.nodes):
        written = any(_writes(user, root) for user in node.users)
        operands = [value for value in node.all_input_nodes if value.meta.get("zero")]
        node.meta["zero"] = not written and _shape(node) is not None and _is_zero(node, root)
        if node.meta["zero"] or not operands:
            continue
        others = [value for value in node.all_input_nodes if value not in operands]
        is_sum = _name_of(node) == "add" or (_name_of(node) == "sub" and node.args[0] in others)
        if is_sum and len(others) == 1 and _shape(others[0]) == _shape(node) and not written:
            node.replace_all_uses_with(others[0])
        elif _name_of(node) == "stack" and others and all(_is_sum_of_first(user) for user in node.users):
            node.args = (others,)
        else:
            for zero in operands:
                source = _first_of_shape(zero)
                if source is not zero:
                    with graph.inserting_before(zero):
                        node.replace_input_with(zero, graph.call_function(torch.zeros_like, (source,)))


def _is_zero(node: fx.Node, root: nn.Module) -> bool:
    name, module = _name_of(node), _module_of(node, root)
    if name in ("zeros_like", "new_zeros") or (name in ("mul", "imul") and 0 in node.args[:2]):
        return True
    are_zero = [value.meta.get("zero", False) for value in node.all_input_nodes]
    if not any(are_zero):
        return False
    if name in ("add", "sub"):
        return all(are_zero) and all(isinstance(x, fx.Node) or x == 0 for x in node.args)
    if name in ("stack", "cat"):
        return all(are_zero)
    if name in ("div", "truediv"):
        return isinstance(node.args[0], fx.Node) and not isinstance(node.args[1], fx.Node)
    if module is not None:
        return (
            _is_of_torch(module) and isinstance(module, _KEEP_ZERO) and getattr(module, "bias", None) is None
        )
    return name in _KEEP_ZERO_BY_NAME


def _shape(node: fx.Node) -> tuple[torch.Size, torch.dtype] | None:
    found = node.meta.get("tensor_meta")
    return (found.shape, found.dtype) if hasattr(found, "shape") else None


def _first_of_shape(node: fx.Node) -> fx.Node:
    """The earliest value before a value, along operands of its shape."""
    earlier = next((value for value in node.all_input_nodes if _shape(value) == _shape(node)), None)
    return node if earlier is None else _first_of_shape(earlier)


def _is_sum_of_first(node: fx.Node) -> bool:
    return _name_of(node) == "sum" and (*node.args[1:], *node.kwargs.values()) == (0,)


# -- the same outputs ----------------------------------------------------------------------------------


def _difference(network: nn.Module, pruned: nn.Module, example: Tensor) -> str | None:
    """How the outputs of two networks differ, on inputs of several sizes; ``None`` if they do not."""
    inputs = [example, torch.cat([example, example.flip(0)])]
    if example.dim() > 2:
        inputs.append(pad(example, [1] * (2 * (example.dim() - 2))))
    for x in (one.cpu() for one in inputs):
        for training in (False, True):
            try:
                expected, statistics, drew = _run(network, x, training)
            except (
                Exception
            ) as error:  # other sizes, or batch norm on a single value, are not for every network
                if x.shape == example.shape and not training:
                    return f"they cannot be compared: {first_line(error)}"
                continue
            if training and drew:
                continue  # what is left out drew random numbers, too
            try:
                found, its_statistics, _ = _run(pruned, x, training)
                statistics = {name: statistics[name] for name in its_statistics}
                for one, other in ((found, expected), (its_statistics, statistics)):
                    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            except Exception as error:  # a comparison fails with an AssertionError, a forward with anything
                mode = "training" if training else "evaluation"
                return (
                    f"its outputs differ in {mode} on an input of shape {tuple(x.shape)}: {first_line(error)}"
                )
    return None


def _run(network: nn.Module, x: Tensor, training: bool) -> tuple[Any, dict[str, Tensor], bool]:
    """The output, running statistics afterwards, and whether random numbers were drawn."""
    copied = copy.deepcopy(network).cpu().train(training)
    with torch.no_grad(), torch.random.fork_rng([]):
        state = torch.get_rng_state()
        output = copied(x.clone())
        return output, dict(copied.named_buffers()), not torch.equal(state, torch.get_rng_state())

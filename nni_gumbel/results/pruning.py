"""Pruning: a frozen network without the layers that cannot reach its output.

A network keeps the layers behind closed inputs of an ``InputChoice``, and those whose outputs only pass through a
``none`` candidate; they are computed, too. Here ``torch.fx`` writes the forward down as a graph; what is zero for every
input (``x * 0``, ``zeros_like``, and what a layer without a bias makes of it) is left out of sums, and then every
layer whose output nobody uses. The outputs are compared afterwards: where they differ, or where the forward cannot be
traced, the network stays as it is. What stays has its name, so that weights fit before and after.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections import Counter
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
    "stack", "cat",
)  # fmt: skip


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
    name, root = type(network).__name__, copy.deepcopy(network)
    modes = {path: module.training for path, module in root.named_modules()}
    try:
        graph = traced(root)
        before = _layers(graph, root)
        _leave_out_zeros(graph, root.eval(), args[0])
    except Exception as error:  # a forward fails in any way that Python allows
        _logger.warning("The network is not pruned: %s cannot be traced: %s", name, first_line(error))
        return network
    whole = fx.GraphModule(root, graph)  # the graph asks it for its modules
    whole.graph.eliminate_dead_code()
    pruned = fx.GraphModule(root, whole.graph, class_name=name)
    for path, module in pruned.named_modules():
        module.training = modes[path]
    fewer = sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in network.parameters())
    if not fewer and _layers(whole.graph, root) == before:
        return network
    difference = _difference(network, pruned, args[0])
    if difference is not None:
        _logger.warning("The network is not pruned: without its unreachable layers %s", difference)
        return network
    return pruned


def traced(network: nn.Module, whole: tuple[type, ...] = ()) -> fx.Graph:
    """The forward of a network as a graph, whose steps are torch's layers and what cannot be traced further.

    Args:
        network: without choices; it is left in evaluation.
        whole: further classes of modules that are single steps.

    Raises:
        Exception: whatever a forward raises that cannot be traced, is another one in training or draws random numbers.
    """
    graph = fx.Graph()  # without the tracer's class, which a pickled network would look for
    leaves = {module: True for module in network.modules() if isinstance(module, whole)}
    inner = {module: False for module in network.modules() if not _is_of_torch(module)}
    with torch.random.fork_rng([]):
        try:  # as a rule all of it can be traced, at once; a tracer takes long to begin
            whole_graph = _Tracer(inner | leaves).both_modes(network)
        except Exception:  # then what can be, module by module
            whole_graph = _Tracer(leaves).both_modes(network)
        graph.output(graph.graph_copy(whole_graph, {}))
    return graph


def removed_layers(network: nn.Module, pruned: nn.Module) -> list[str]:
    """The names of the layers of a network that its pruned one does not have, in the network's order."""
    kept = dict(pruned.named_modules())
    return [
        name
        for name, module in network.named_modules()
        if name not in kept and (_is_of_torch(module) or list(module.parameters(recurse=False)))
    ]


class _Tracer(fx.Tracer):
    """torch's layers are single steps, and so are parts that cannot be traced or draw random numbers."""

    def __init__(self, is_leaf: dict[nn.Module, bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m not in self._is_leaf:
            try:
                self._is_leaf[m] = _is_of_torch(m) or _Tracer(self._is_leaf).both_modes(m) is None
            except Exception:  # a forward fails in any way that Python allows
                self._is_leaf[m] = True
        return self._is_leaf[m]

    def both_modes(self, module: nn.Module) -> fx.Graph:
        """The graph of a module, which is the same in training and in evaluation."""
        state = torch.get_rng_state()
        training, evaluation = (self.trace(module.train(mode)) for mode in (True, False))
        if str(training) != str(evaluation):
            raise ValueError("its forward is another one in training")
        if not torch.equal(state, torch.get_rng_state()):
            raise ValueError("it draws random numbers")
        return evaluation


def _is_of_torch(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.nn.") and not isinstance(module, (nn.Sequential, nn.ModuleList))


def _layers(graph: fx.Graph, root: nn.Module) -> Counter[str]:
    """How often each layer that costs something is called."""
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    return Counter(name for name in called if not isinstance(root.get_submodule(name), _FREE))


def _name_of(node: fx.Node) -> str:
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "")


def _leave_out_zeros(graph: fx.Graph, root: nn.Module, example: Tensor) -> None:
    """Leave what is zero for every input out of sums; elsewhere make it from the first value of its shape."""
    ShapeProp(fx.GraphModule(root, graph)).propagate(example)
    zeros: set[fx.Node] = set()
    for node in list(graph.nodes):
        if _shape(node) is not None and _is_zero(node, root, zeros):
            zeros.add(node)
            continue
        for zero in [value for value in node.all_input_nodes if value in zeros]:
            others = [value for value in node.all_input_nodes if value not in zeros]
            name, source = _name_of(node), _first_of_shape(zero)
            if name == "add" and len(others) == 1 and _shape(others[0]) == _shape(node):
                node.replace_all_uses_with(others[0])
            elif (
                name == "stack"
                and others
                and all(
                    _name_of(user) == "sum" and (*user.args[1:], *user.kwargs.values()) == (0,)
                    for user in node.users
                )
            ):
                node.args = (others,)
            elif source is not zero:
                with graph.inserting_before(zero):
                    node.replace_input_with(zero, graph.call_function(torch.zeros_like, (source,)))


def _is_zero(node: fx.Node, root: nn.Module, zeros: set[fx.Node]) -> bool:
    name = _name_of(node)
    if name in ("zeros_like", "new_zeros") or (name == "mul" and 0 in node.args[:2]):
        return True
    if not node.all_input_nodes or not zeros.issuperset(node.all_input_nodes):
        return False
    if node.op == "call_module":
        module = root.get_submodule(node.target)
        return isinstance(module, _KEEP_ZERO) and getattr(module, "bias", None) is None
    if name in ("add", "truediv"):
        numbers = [value for value in node.args if not isinstance(value, fx.Node)]
        return not any(numbers) if name == "add" else node.args[1:] == tuple(numbers)
    return name in _KEEP_ZERO_BY_NAME


def _shape(node: fx.Node) -> tuple[torch.Size, torch.dtype] | None:
    found = node.meta.get("tensor_meta")
    return (found.shape, found.dtype) if hasattr(found, "shape") else None


def _first_of_shape(node: fx.Node) -> fx.Node:
    """The earliest value before a value, along operands of its shape."""
    earlier = next((value for value in node.all_input_nodes if _shape(value) == _shape(node)), None)
    return node if earlier is None else _first_of_shape(earlier)


def _difference(network: nn.Module, pruned: nn.Module, example: Tensor) -> str | None:
    """How the outputs of two networks differ, on inputs of several sizes; ``None`` if they do not."""
    inputs = [example, torch.cat([example, example.flip(0)])]
    if example.dim() > 2:
        inputs.append(pad(example, [1] * (2 * (example.dim() - 2))))
    for x, training in itertools.product([one.cpu() for one in inputs], (False, True)):
        where = f"in {'training' if training else 'evaluation'} on an input of shape {tuple(x.shape)}"
        try:
            expected, drew = _run(network, x, training)
        except Exception as error:  # other sizes, or batch norm on a single value, are not for every network
            if x.shape == example.shape and not training:
                return f"they cannot be compared: {first_line(error)}"
            continue
        if training and drew:
            continue  # what is left out drew random numbers, too
        try:
            found, _ = _run(pruned, x, training)
            expected = {name: expected[name] for name in found}
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        except Exception as error:  # a comparison fails with an AssertionError, a forward with anything
            return f"its outputs differ {where}: {first_line(error)}"
    return None


def _run(network: nn.Module, x: Tensor, training: bool) -> tuple[dict[str, Any], bool]:
    """The output and the running statistics afterwards, and whether random numbers were drawn."""
    copied = copy.deepcopy(network).cpu().train(training)
    with torch.no_grad(), torch.random.fork_rng([]):
        state = torch.get_rng_state()
        output = copied(x.clone())
        return {"": output, **dict(copied.named_buffers())}, not torch.equal(state, torch.get_rng_state())

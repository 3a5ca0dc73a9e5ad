"""Pruning: a frozen network without the layers that cannot reach its output.

NNI's ``freeze`` keeps the layers behind closed inputs of an ``InputChoice``, and those whose outputs only
pass through a ``none`` candidate; they are computed, too. Here the network's forward is written down as a graph
(:mod:`nni_gumbel.results.forward_graph`), zeros are left out of it (:mod:`nni_gumbel.results.zeros`), and
then everything that nothing asks for. What stays has its name, so that weights fit before and after.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import pad

from nni_gumbel.errors import first_line
from nni_gumbel.results.forward_graph import (
    NotFollowed,
    graph_of,
    is_torch_layer,
    module_of,
    must_stay,
    name_of,
    writers_of,
)
from nni_gumbel.results.zeros import Zeros, zero_modules

_logger = logging.getLogger(__name__)

# Layers that cost nothing: a network is not rewritten for these.
_FREE = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def prune(network: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A network with the same outputs, without the layers that cannot reach them.

    Outputs are bit for bit the same in evaluation; in training, too, as far as no random numbers are drawn
    in what is left out. Gradients of the weights that stay are those that they were.

    Args:
        network: without choices, as NNI's ``freeze`` returns it; left as it is.
        args, kwargs: what its forward takes: a batch, on its device.

    Returns:
        A ``torch.fx.GraphModule`` with weights of its own, in the mode of ``network``; the network itself if
        nothing can go, if it takes other than one tensor, if its forward cannot be followed, or if the outputs
        were not the same (the last three are logged).
    """
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        _logger.warning("The network is not pruned: only networks that take one tensor are")
        return network
    original = copy.deepcopy(network)
    try:
        pruned = _pruned(original, args[0])
    except NotFollowed as error:
        _logger.warning("The network is not pruned: %s", error)
        return network
    if pruned is None:
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
        if name not in kept and (is_torch_layer(module) or list(module.parameters(recurse=False)))
    ]


def _pruned(root: nn.Module, example: Tensor) -> fx.GraphModule | None:
    """The pruned network, or ``None`` if nothing can go; with the modules of ``root``."""
    modes = {module: module.training for module in root.modules()}
    zeros = zero_modules(root, example)
    for module, mode in modes.items():
        module.training = mode
    graph = graph_of(root, zeros)
    before = _work(graph, root)
    stays = {node for node in graph.nodes if must_stay(node, root)}
    shapes = _shapes(root, graph, example)
    _leave_out_zeros(graph, root, Zeros(graph, root, shapes, zeros))
    _leave_out_unused(graph, stays)
    graph.lint()
    pruned = fx.GraphModule(root, graph, class_name=type(root).__name__)
    named = dict(root.named_modules())
    for name, module in pruned.named_modules():
        module.training = modes[named[name]]
    fewer = sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in root.parameters())
    return pruned if fewer or _work(graph, root) != before else None


def _leave_out_zeros(graph: fx.Graph, root: nn.Module, zeros: Zeros) -> None:
    """Let no step use a zero that was computed, where its shape is known from elsewhere."""
    made: dict[fx.Node, fx.Node] = {}

    def without_computing(zero: fx.Node) -> fx.Node:
        source = zeros.source_of_shape(zero)
        if source is zero or (name_of(zero) == "zeros_like" and zero.args == (source,)):
            return zero
        if zero not in made:
            with graph.inserting_before(zero):
                made[zero] = graph.call_function(torch.zeros_like, (source,))
        return made[zero]

    for node in list(graph.nodes):
        if node in zeros.nodes and zeros.source_of_shape(node) is not node:
            continue  # whoever uses it is given another zero
        other = None if node in zeros.nodes else zeros.is_neutral(node)
        if other is not None:
            node.replace_all_uses_with(other)
            continue
        for operand in list(node.all_input_nodes):
            if operand in zeros.nodes and not writers_of(operand, root):
                node.replace_input_with(operand, without_computing(operand))


def _leave_out_unused(graph: fx.Graph, stays: set[fx.Node]) -> None:
    for node in list(reversed(graph.nodes)):
        if not node.users and node not in stays and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _work(graph: fx.Graph, root: nn.Module) -> Counter[str]:
    """How often each layer that costs something is called."""
    called = ((node.target, module_of(node, root)) for node in graph.nodes if node.op == "call_module")
    return Counter(
        name
        for name, module in called
        if (is_torch_layer(module) or list(module.parameters())) and not isinstance(module, _FREE)
    )


def _shapes(
    root: nn.Module, graph: fx.Graph, example: Tensor
) -> dict[fx.Node, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every value that is a tensor, on an example in evaluation."""
    shapes: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = value.shape, value.dtype
            return value

    whole = copy.deepcopy(fx.GraphModule(root, graph)).eval()
    same = dict(zip(whole.graph.nodes, graph.nodes))
    try:
        with torch.no_grad():
            Recorder(whole).run(example)
    except Exception as error:
        raise NotFollowed(f"its graph does not run: {first_line(error)}") from error
    return {same[node]: shape for node, shape in shapes.items()}


# -- the same outputs ----------------------------------------------------------------------------------


def _difference(network: nn.Module, pruned: nn.Module, example: Tensor) -> str | None:
    """How the outputs of two networks differ, on inputs of several sizes; ``None`` if they do not."""
    inputs = [example, torch.cat([example, example.flip(0)])]
    if example.dim() > 2:
        inputs.append(pad(example, [1] * (2 * (example.dim() - 2))))
    for x in inputs:
        for training in (False, True):
            result = _run(network, x, training)
            if result is None:
                if x is example and not training:
                    return "they cannot be compared: it does not take the example"
                continue  # other sizes, or batch norm on a single value, are not for every network
            output, buffers, drew = result
            if training and drew:
                continue  # what is left out drew random numbers, too
            again = _run(pruned, x, training)
            if again is None:
                return f"it does not take an input of shape {tuple(x.shape)}"
            if not _equal(output, again[0]):
                mode = "training" if training else "evaluation"
                return f"its outputs differ in {mode} on an input of shape {tuple(x.shape)}"
            if any(not _equal(buffers.get(name), value) for name, value in again[1].items()):
                return "its running statistics differ"
    return None


def _run(network: nn.Module, x: Tensor, training: bool) -> tuple[Any, dict[str, Tensor], bool] | None:
    """Output, buffers afterwards, and whether random numbers were drawn; ``None`` if it fails."""
    copied = copy.deepcopy(network).train(training)
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices):
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        try:
            output = copied(x.clone())
        except Exception as error:
            _logger.debug("an input of shape %s is not taken: %s", tuple(x.shape), first_line(error))
            return None
        now = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        drew = any(not torch.equal(a, b) for a, b in zip(states, now))
    return output, dict(copied.named_buffers()), drew


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        # Where a network returns NaN, its pruned one does, too.
        return bool(torch.isclose(first, second, rtol=0, atol=0, equal_nan=True).all())
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return type(first) is type(second) and first == second

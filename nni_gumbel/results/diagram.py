"""The picture of a network: its operations in their order, their shapes and costs, and in grey what was not chosen.

The forward is written down as a graph by ``torch.fx`` (as for pruning), with each ``InputChoice`` as a step of its own;
what only leads to an input that was not chosen is grey, and so are the other candidates of a choice, beside the step
that was chosen. A forward that cannot be traced is drawn as the sequence of its layers, as they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from nni.nas.nn.pytorch import ModelSpace, MutableModule
from nni.nas.nn.pytorch.choice import ChosenInputs
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nni_gumbel.results.example import Example
from nni_gumbel.results.pruning import traced
from nni_gumbel.results.report import chosen_value
from nni_gumbel.results.space import network_of, sample_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a call: the layer, its positional and keyword arguments, its output.
FlopsOf = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], int]

# Inches.
_LEVEL, _LANE, _BOX, _CANDIDATE, _ACROSS = 0.62, 3.0, (2.7, 0.44), (1.05, 0.2), 5
_TALLEST = 90.0


@dataclass
class Step:
    """One step of a forward.

    Args:
        title, detail: two lines of words: what it does; its output's shape, its parameters and FLOPs.
        path: of its module; empty for a function.
        inputs: the steps that it reads, and whether their values are used.
        taken: whether it reaches the output.
    """

    title: str
    detail: str
    path: str
    inputs: list[tuple[int, bool]]
    taken: bool = True
    choices: list[tuple[str, str, list[str]]] = field(default_factory=list)


def steps_of(
    space: ModelSpace, architecture: Mapping[str, Any], example: Example, flops_of: FlopsOf
) -> list[Step]:
    """The steps of a network, inputs first, each with the choices that are made at it.

    Args:
        space: an instance of the search space; it is left as it is.
        architecture: an NNI sample.
        example: a batch that the network takes.
        flops_of: FLOPs of a call of a layer, of the whole batch.
    """
    network = network_of(space, sample_of(space, architecture)).eval()
    batch = len(next(leaf for leaf in example.map(lambda t: t).args or example.kwargs.values()))
    calls = _calls(network, example, flops_of, batch)
    try:
        steps = _traced(network, example, calls)
    except Exception:  # a forward fails in any way that Python allows: its layers are drawn in a row
        steps = [
            Step(_described(module), calls[path], path, [(n - 1, True)] if n else [])
            for n, (path, module) in enumerate((p, network.get_submodule(p)) for p in calls)
        ]
    _place_choices(steps, space, architecture)
    return steps


def _calls(network: nn.Module, example: Example, flops_of: FlopsOf, batch: int) -> dict[str, str]:
    """The details of the layers, by path, in the order in which they are called first."""
    details: dict[str, str] = {}

    def watch(path: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            parameters = sum(each.numel() for each in module.parameters())
            flops = flops_of(module, args, kwargs, output) // batch
            words = [_shape(output), *([f"{parameters:,} parameters"] if parameters else [])]
            details.setdefault(path, " · ".join(words + ([f"{flops:,} FLOPs"] if flops else [])))

        return note

    hooks = [
        module.register_forward_hook(watch(path), with_kwargs=True)
        for path, module in network.named_modules()
        if path and not any(module.children())
    ]
    try:
        with torch.no_grad():
            example(network)
    finally:
        for hook in hooks:
            hook.remove()
    return details


def _traced(network: nn.Module, example: Example, details: Mapping[str, str]) -> list[Step]:
    graph = traced(network, (ChosenInputs,))
    ShapeProp(fx.GraphModule(network, graph)).propagate(*example.args, *example.kwargs.values())
    steps: list[Step] = []
    # A step that only passes a value on (an attribute, a size) is left out: its readers read what it reads.
    numbers: dict[fx.Node, list[int]] = {}
    for node in graph.nodes:
        inputs = list(dict.fromkeys(number for each in node.all_input_nodes for number in numbers[each]))
        shape = _shape(node.meta.get("tensor_meta"))
        module = network.get_submodule(node.target) if node.op == "call_module" else None
        if node.op not in ("placeholder", "output") and (node.op == "get_attr" or not shape):
            numbers[node] = inputs
            continue
        used = [(number, True) for number in inputs]
        if isinstance(module, ChosenInputs):
            offered = node.args[0]
            chosen = {number for n in module.chosen for number in numbers[offered[n]]}
            used = [(number, number in chosen) for number in inputs]
        title = {"placeholder": "input", "output": "output"}.get(node.op)
        if title is None:
            title = (
                getattr(node.target, "__name__", str(node.target)) if module is None else _described(module)
            )
        path = node.target if module is not None else ""
        steps.append(Step(title, details.get(path, shape) if module is not None else shape, path, used))
        numbers[node] = [len(steps) - 1]
    reached, waiting = set(), [len(steps) - 1]
    while waiting:
        number = waiting.pop()
        if number not in reached:
            reached.add(number)
            waiting += [source for source, is_used in steps[number].inputs if is_used]
    for number, step in enumerate(steps):
        step.taken = number in reached
    return steps


def _place_choices(steps: Sequence[Step], space: ModelSpace, architecture: Mapping[str, Any]) -> None:
    """Write every choice beside the first step at or inside its module; once a label."""
    variables, placed = space.simplify(), set()
    for path, module in space.named_modules():
        if not isinstance(module, MutableModule):
            continue
        labels = [label for mutable in module.mutables for label in mutable.simplify()]
        inside = [step for step in steps if step.path == path or step.path.startswith(f"{path}.")]
        inside.sort(key=lambda step: not step.taken)
        for label in labels:
            if label in placed or label not in architecture or not inside:
                continue
            placed.add(label)
            chosen = chosen_value(architecture[label])
            values = [chosen_value(value) for value in variables[label].values]
            inside[0].choices.append(
                (label, chosen, [value for value in values if value not in chosen.split("+")])
            )


def _shape(output: Any) -> str:
    return "×".join(map(str, output.shape[1:])) or "scalar" if hasattr(output, "shape") else ""


def _described(module: nn.Module) -> str:
    """A layer in a few words: ``Conv2d 20→20, 5×5, groups 20``."""
    words = [type(module).__name__]
    if isinstance(module, ChosenInputs):
        return f"input {'+'.join(map(str, module.chosen))} of the choice"
    for first, second in (("in_channels", "out_channels"), ("in_features", "out_features")):
        if hasattr(module, first):
            words[0] += f" {getattr(module, first)}→{getattr(module, second)}"
    for name, plain in (("kernel_size", None), ("stride", 1), ("dilation", 1), ("groups", 1)):
        value = getattr(module, name, None)
        value = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        if value is not None and value != plain:
            sides = f"{value}×{value}" if isinstance(value, int) else "×".join(map(str, value))
            words.append(sides if name == "kernel_size" else f"{name} {value}")
    return ", ".join(words)


def draw_network(steps: Sequence[Step], title: str) -> Figure:
    """The steps from top to bottom; a solid line is a value that is used, a dashed grey one is not."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    levels: list[int] = []
    for step in steps:
        levels.append(1 + max((levels[source] for source, _ in step.inputs), default=-1))
    # What reaches the output stands in the first lane where it can.
    lanes, width = [0] * len(steps), [0] * (max(levels) + 1)
    for number in sorted(range(len(steps)), key=lambda n: not steps[n].taken):
        lanes[number] = width[levels[number]]
        width[levels[number]] += 1
    right = _LANE * max(width)
    height = min(_LEVEL * (max(levels) + 1) + 0.8, _TALLEST)
    across = right + (_CANDIDATE[0] * _ACROSS + 0.4 if any(step.choices for step in steps) else 0)
    figure = Figure(figsize=(across + 1.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-1.2, across), ylim=(-(max(levels) + 0.8) * _LEVEL, _LEVEL), title=title)
    axes.axis("off")
    place = [(lane * _LANE + _BOX[0] / 2, -level * _LEVEL) for lane, level in zip(lanes, levels)]
    for number, step in enumerate(steps):
        for source, used in step.inputs:
            taken = used and step.taken and steps[source].taken
            look = {"color": "black", "lw": 1.1} if taken else {"color": "0.65", "lw": 0.9, "ls": (0, (4, 2))}
            (x0, y0), (x1, y1) = place[source], place[number]
            start, end = (x0, y0 - _BOX[1] / 2), (x1, y1 + _BOX[1] / 2)
            curve = "arc3"
            if lanes[source] == lanes[number] and levels[number] - levels[source] > 1:
                # Around the boxes between, on their left; the longer, the wider.
                side = _BOX[0] / 2
                start, end = (x0 - side, y0), (x1 - side, y1)
                curve = f"arc3,rad={min(0.9 / (levels[number] - levels[source]), 0.35):.2f}"
            elif lanes[source] < lanes[number]:
                start, curve = (x0 + _BOX[0] / 2, y0), "angle3,angleA=0,angleB=90"
            elif lanes[source] > lanes[number]:
                end, curve = (x1 + _BOX[0] / 2, y1), "angle3,angleA=90,angleB=0"
            arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "connectionstyle": curve, **look}
            axes.annotate("", end, start, arrowprops=arrow)
    for step, (x, y) in zip(steps, place):
        tone = "black" if step.taken else "0.6"
        corner = x - _BOX[0] / 2, y - _BOX[1] / 2
        style = {"boxstyle": "round,pad=0,rounding_size=0.08", "fc": "white", "ec": tone}
        axes.add_patch(FancyBboxPatch(corner, *_BOX, **style, lw=1.6 if step.choices else 0.9))
        axes.text(x, y + 0.1, step.title, ha="center", va="center", fontsize=8, color=tone)
        axes.text(x, y - 0.11, step.detail, ha="center", va="center", fontsize=6, color=tone)
        row = y
        for label, chosen, others in step.choices:
            axes.text(right, row + 0.16, f"{label} = {chosen}", fontsize=7, va="center", weight="bold")
            shown = others[: 2 * _ACROSS]
            if len(others) > len(shown):
                shown[-1] = f"and {len(others) - len(shown) + 1} more"
            for n, value in enumerate(shown):
                left, low = right + n % _ACROSS * _CANDIDATE[0], row - 0.06 - n // _ACROSS * 0.21
                size = _CANDIDATE[0] - 0.06, _CANDIDATE[1] - 0.03
                axes.add_patch(FancyBboxPatch((left, low - 0.08), *size, **style | {"ec": "0.75"}, lw=0.7))
                words = value if len(value) < 20 else value[:18] + "…"
                axes.text(
                    left + size[0] / 2, low + 0.005, words, ha="center", va="center", fontsize=6, color="0.55"
                )
            row -= 0.16 + 0.21 * (-(-len(shown) // _ACROSS))
    return figure

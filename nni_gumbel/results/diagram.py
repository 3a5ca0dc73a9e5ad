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

from nni_gumbel.results.example import Example, batch_size
from nni_gumbel.results.pruning import traced
from nni_gumbel.results.report import chosen_value
from nni_gumbel.results.space import network_of, sample_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a call: the layer, its positional and keyword arguments, its output.
FlopsOf = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], int]

# Inches.
_LEVEL, _LANE, _BOX, _CANDIDATE, _ACROSS = 0.62, 3.0, (2.7, 0.44), 1.05, 5
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
    calls = _calls(network, example, flops_of)
    try:
        steps = _traced(network, example, calls)
    except Exception:  # a forward fails in any way that Python allows: its layers are drawn in a row
        steps = [
            Step(_described(module), calls[path], path, [(n - 1, True)] if n else [])
            for n, (path, module) in enumerate((p, network.get_submodule(p)) for p in calls)
        ]
    _place_choices(steps, space, architecture)
    return steps


def _calls(network: nn.Module, example: Example, flops_of: FlopsOf) -> dict[str, str]:
    """The details of the layers, by path, in the order in which they are called first."""
    details: dict[str, str] = {}
    batch = batch_size(example.args, example.kwargs)

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
        if module is not None:
            step = Step(_described(module), details.get(node.target, shape), node.target, used)
        else:
            function = getattr(node.target, "__name__", str(node.target))
            step = Step({"placeholder": "input", "output": "output"}.get(node.op, function), shape, "", used)
        steps.append(step)
        numbers[node] = [len(steps) - 1]
    for step in steps[:-1]:
        step.taken = False
    for step in reversed(steps):
        for source, is_used in step.inputs:
            steps[source].taken |= step.taken and is_used
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
        for label in labels if inside else ():
            if label in architecture and label not in placed:
                placed.add(label)
                chosen = chosen_value(architecture[label])
                values = map(chosen_value, variables[label].values)
                others = [value for value in values if value not in chosen.split("+")]
                inside[0].choices.append((label, chosen, others))


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
    across = right + (_CANDIDATE * _ACROSS + 0.4 if any(step.choices for step in steps) else 0)
    height = min(_LEVEL * (max(levels) + 1) + 0.8, _TALLEST)
    axes = Figure(figsize=(across + 1.2, height), layout="constrained").add_subplot()
    axes.set(xlim=(-1.2, across), ylim=(-(max(levels) + 0.8) * _LEVEL, _LEVEL), title=title)
    axes.axis("off")
    place = [(lane * _LANE + _BOX[0] / 2, -level * _LEVEL) for lane, level in zip(lanes, levels)]
    for number, step in enumerate(steps):
        for source, used in step.inputs:
            taken = used and step.taken and steps[source].taken
            look = {"color": "black", "lw": 1.1} if taken else {"color": "0.65", "lw": 0.9, "ls": (0, (4, 2))}
            (x0, y0), (x1, y1) = place[source], place[number]
            start, end, curve = (x0, y0 - _BOX[1] / 2), (x1, y1 + _BOX[1] / 2), "arc3"
            side, far = _BOX[0] / 2, levels[number] - levels[source]
            if x0 == x1 and far > 1:  # around the boxes between, on their left; the longer, the wider
                start, end, curve = (x0 - side, y0), (x1 - side, y1), f"arc3,rad={min(0.9 / far, 0.35):.2f}"
            elif x0 < x1:
                start, curve = (x0 + side, y0), "angle3,angleA=0,angleB=90"
            elif x0 > x1:
                end, curve = (x1 + side, y1), "angle3,angleA=90,angleB=0"
            arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "connectionstyle": curve, **look}
            axes.annotate("", end, start, arrowprops=arrow)
    for step, (x, y) in zip(steps, place):
        tone = "black" if step.taken else "0.6"
        corner = x - _BOX[0] / 2, y - _BOX[1] / 2
        look = {"boxstyle": "round,pad=0,rounding_size=0.08", "fc": "white", "ec": tone}
        axes.add_patch(FancyBboxPatch(corner, *_BOX, **look, lw=1.6 if step.choices else 0.9))
        for words, above, size in ((step.title, 0.1, 8), (step.detail, -0.11, 6)):
            axes.text(x, y + above, words, ha="center", va="center", fontsize=size, color=tone)
        for label, chosen, others in step.choices:
            axes.text(right, y + 0.16, f"{label} = {chosen}", fontsize=7, va="center", weight="bold")
            shown = [value if len(value) < 20 else value[:18] + "…" for value in others[: 2 * _ACROSS]]
            if len(others) > len(shown):
                shown[-1] = f"and {len(others) - len(shown) + 1} more"
            for n, words in enumerate(shown):
                middle = right + (n % _ACROSS + 0.5) * _CANDIDATE, y - 0.06 - n // _ACROSS * 0.21
                frame = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "0.75", "lw": 0.7}
                axes.text(*middle, words, ha="center", va="center", fontsize=6, color="0.55", bbox=frame)
            y -= 0.16 + 0.21 * (-(-len(shown) // _ACROSS))
    return axes.figure

"""What `nni-gumbel inspect` tells of a space before anything runs: its networks, what they cost, how they are mixed.

The cost of a candidate is what it adds to the cheapest outcome of its choice while all other choices stay the same;
it is a range, from the least to the most over those other choices. So 0 is the cheapest candidate, and a candidate
of an ``InputChoice`` of several is every set that contains it.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as Columns
from rich.text import Text
from torch import nn

from nni_gumbel.complexity.budget import largest, smallest
from nni_gumbel.complexity.counting import number_of_networks, number_of_samples
from nni_gumbel.complexity.flops import expected_flops
from nni_gumbel.complexity.params import expected_parameters
from nni_gumbel.complexity.table import ExpectedSum, Table
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.rehearsal import rehearse
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.supernet.arguments import MixedArguments
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.inputs import MixedInput
from nni_gumbel.supernet.layer import MixedLayer
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.supernet.structure import structure_of

Range = tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """A label, how it is executed in a search, and its candidates: by candidate and cost, what it adds to the cheapest
    outcome, at least and at most; ``None`` where that depends on too many choices.
    """

    label: str
    executions: tuple[str, ...]
    added: dict[str, dict[str, Range | None]]


@dataclass(frozen=True)
class Inspection:
    """A space: how many networks it has, in words; by cost, the smallest and the largest, and why one is missing."""

    space: SpaceReference
    networks: str
    ranges: dict[str, Range]
    missing: tuple[str, ...]
    choices: tuple[Choice, ...]


def inspect_space(reference: SpaceReference, example: Example) -> Inspection:
    """Build a space, relax it, try it on an example and price its networks.

    Args:
        reference: which space.
        example: a batch of what it takes; FLOPs are those of one example.

    Raises:
        UsageError: the space cannot be built or relaxed, or does not take the example.
    """
    space = reference.build()
    distribution = relax(space)
    rehearse(space, distribution, reference, example, classes=None)
    costs, missing = {"parameters": expected_parameters(space)}, []
    try:
        costs["FLOPs"] = expected_flops(space, distribution, example.args, example.kwargs)
    except UsageError as error:
        missing.append(f"FLOPs: {error}")
    networks, kind = number_of_networks(space, distribution), "networks"
    if networks is None:
        networks = number_of_samples(distribution)
        kind = "samples (so many share labels that networks are not counted)"
    ranges = {
        name: (smallest(space, distribution, cost)[0], largest(space, distribution, cost)[0])
        for name, cost in costs.items()
    }
    choices = tuple(_choices(space, distribution, costs))
    return Inspection(reference, f"{_count(networks)} {kind}", ranges, tuple(missing), choices)


def example_of(shapes: Sequence[str], batch: int) -> Example:
    """The inputs that a space is tried on.

    Args:
        shapes: of each input, ``1,28,28``, without the batch: standard normal numbers; of ``2:int`` zeros, which every
            embedding takes.
        batch: how many.

    Returns:
        ``(batch, *shape)`` for each shape, float32 or int64.

    Raises:
        UsageError: one of them is not what it should be.
    """
    if batch < 1:
        raise UsageError(f"--batch: {batch} is no number of inputs; give at least 1")
    generator, inputs = torch.Generator().manual_seed(0), []
    for shape in shapes:
        if re.fullmatch(r" *[1-9]\d*( *, *[1-9]\d*)*(:int)?", shape) is None:
            raise UsageError(
                f"--input: {shape!r} is no shape; give whole numbers, without the batch, such as 1,28,28, "
                "and :int behind them for an input of whole numbers"
            )
        size = (batch, *map(int, shape.removesuffix(":int").split(",")))
        whole = shape.endswith(":int")
        inputs.append(
            torch.zeros(size, dtype=torch.int64) if whole else torch.randn(size, generator=generator)
        )
    return Example(tuple(inputs))


def _choices(
    space: ModelSpace, distribution: Distribution, costs: dict[str, ExpectedSum]
) -> Iterator[Choice]:
    modules: dict[str, Counter[str]] = {label: Counter() for label in distribution.variables}
    for module in space.modules():
        for labels, execution in _executions(module):
            for label in labels:
                modules[label][execution] += 1
    always = structure_of(space).labels
    for label, variable in distribution.variables.items():
        ranges = {
            name: added_costs(distribution, cost, label, label in always) for name, cost in costs.items()
        }
        executions = (
            execution + (f" ({number} modules)" if number > 1 else "")
            for execution, number in modules[label].items()
        )
        added = {
            str(value): {name: found and found[place] for name, found in ranges.items()}
            for place, value in enumerate(variable.values)
        }
        yield Choice(label, tuple(executions), added)


def added_costs(
    distribution: Distribution, cost: ExpectedSum, label: str, is_always_used: bool
) -> list[Range] | None:
    """What each candidate of a label adds to the cheapest outcome of the label, all other choices being equal.

    Args:
        distribution: of the space.
        cost: the cost of every network.
        label: whose candidates.
        is_always_used: whether every network uses it; if not, only other choices count under which it matters.

    Returns:
        Per candidate the least and the most over the other choices, and over the outcomes that contain it. ``None``
        if the choices that the cost depends on have more than a million combinations.
    """
    law = distribution.laws[label]
    tables = [table for table in cost.tables if label in table.labels]
    try:
        sum_of_tables = reduce(operator.add, tables, Table.of((), 0))
    except UsageError:
        return None
    total = np.zeros((law.outcomes, 1))
    if label in sum_of_tables.labels:
        axis = sum_of_tables.labels.index(label)
        of_classes = np.moveaxis(sum_of_tables.values, axis, 0)
        total = of_classes[sum_of_tables.classes[axis]].reshape(law.outcomes, -1)
    added = total - total.min(0)
    # Where the label is not used it makes no difference; that is not a cost of 0.
    matters = added.any(0)
    if matters.any() and not is_always_used:
        added = added[:, matters]
    sets = list(law.sets())
    with_candidate = [
        added[[index for index, members in enumerate(sets) if i in members]] for i in range(law.size)
    ]
    return [(float(values.min()), float(values.max())) for values in with_candidate]


def _executions(module: nn.Module) -> Iterator[tuple[Sequence[str], str]]:
    """The labels that a module reads its weights of, and what it computes with them."""
    if isinstance(module, MixedLayer):
        plan = module.plan()
        mixture = "mixture: every candidate runs, the outputs are added by weight"
        how = f"merged: {plan.describe()}" if plan.is_merged else mixture
        yield [module.label], f"LayerChoice, {how}"
    elif isinstance(module, MixedInput):
        yield [module.label], f"InputChoice, {_weights_of_inputs(module)}"
    elif isinstance(module, MixedRepeat):
        blocks = f"the {len(module.blocks)} blocks run once"
        labels = list(module.depth_choice.simplify())
        yield labels, f"Repeat, depth prefix: {blocks}, what each depth gives is added by weight"
    elif isinstance(module, MixedArguments):
        count, runs = len(module.keys), len(set(module.keys))
        parts = f"mixture: its {count} variants run as {runs} operations with parts of one weight"
        how = parts if runs > 1 else "merged: its variants run as one operation"
        yield module.variants.table.labels, f"{module.variants.built_type.__name__}, {how}"


def _weights_of_inputs(module: MixedInput) -> str:
    number, inputs = module.n_chosen, module.n_candidates
    if number is None:
        return f"gates: the {module.reduction} of the {inputs} inputs, each by a weight of its own in [0, 1]"
    if number > 1 and module.reduction in ("concat", "none"):
        return f"slots: {number} places, at each the {inputs} inputs are added by weight"
    of_all = f", which add up to {number}" if number > 1 else ""
    return f"mixture: the {inputs} inputs are added by weight{of_all}"


# -- as a person reads it in a terminal of 100 columns ----------------------------------------------------

_NOTE = (
    "Per candidate: what it adds to the cheapest one of its choice while all other choices stay the same; from … to, "
    "over those other choices and, for one of several inputs, over the sets that contain it. Where an estimator draws "
    "single networks, their weights are 0 and 1."
)


def rendered(inspection: Inspection) -> Iterator[RenderableType]:
    """Lines and tables, the summary first; choices that are alike in everything share a table."""
    arguments = "".join(f" {key}={value}" for key, value in inspection.space.arguments.items())
    yield Text(f"{inspection.space}{arguments}", style="bold")
    yield Text(f"{inspection.networks}, {len(inspection.choices)} choices")
    summary = Columns(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("", "smallest network", "largest network"):
        summary.add_column(title, justify="right" if title else "left")
    for name, (low, high) in inspection.ranges.items():
        summary.add_row(name, f"{low:,.0f}", f"{high:,.0f}")
    yield summary
    for line in inspection.missing:
        yield Text(f"not known: {line}", style="yellow")
    yield Text(_NOTE, style="dim")
    groups: dict[str, list[Choice]] = {}
    for choice in inspection.choices:
        groups.setdefault(repr((choice.executions, choice.added)), []).append(choice)
    for choices in groups.values():
        executions, added = choices[0].executions, choices[0].added
        yield Text()
        yield Text(", ".join(choice.label for choice in choices), style="bold")
        for execution in executions:
            yield Padding.indent(Text(execution), 2)
        if all(found == (0.0, 0.0) for costs in added.values() for found in costs.values()):
            yield Padding.indent(Text(f"{', '.join(added)}: all cost the same"), 2)
            continue
        table = Columns(box=None, padding=(0, 3, 0, 0))
        table.add_column("candidate", overflow="fold")
        for cost in inspection.ranges:
            table.add_column(f"+ {cost}", justify="right")
        for candidate, costs in added.items():
            table.add_row(Text(candidate), *map(_range, costs.values()))
        yield Padding.indent(table, 2)


def _range(added: Range | None) -> str:
    if added is None:
        return "too many choices"
    low, high = (f"{value:,.0f}" for value in added)
    return low if low == high else f"{low} … {high}"


def _count(number: int) -> str:
    """Exactly; a long one shorter, too."""
    return f"{number:,}" if number < 10**15 else f"{number:.4g}".replace("e+", "e") + f" ({number:,})"

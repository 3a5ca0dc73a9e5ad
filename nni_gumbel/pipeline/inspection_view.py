"""An inspection of a space as a person reads it in a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nni_gumbel.pipeline.inspection import Choice, Inspection, Range

_NOTE = (
    "Per candidate: what it adds to the cheapest one of its choice while all other choices stay the same; from … to, "
    "over those other choices and, for one of several inputs, over the sets that contain it. Where an estimator draws "
    "single networks, their weights are 0 and 1."
)


def rendered(inspection: Inspection) -> Iterator[RenderableType]:
    """Lines and tables, the summary first; choices that are alike in everything share a table."""
    arguments = "".join(f" {key}={value}" for key, value in inspection.space.arguments.items())
    kind = (
        "networks"
        if inspection.are_distinct
        else "samples (so many share labels that networks are not counted)"
    )
    yield Text(f"{inspection.space}{arguments}", style="bold")
    yield Text(f"{_count(inspection.networks)} {kind}, {len(inspection.choices)} choices")
    summary = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("", "smallest network", "largest network"):
        summary.add_column(title, justify="right" if title else "left")
    for name, (low, high) in inspection.ranges.items():
        summary.add_row(name, _number(low), _number(high))
    yield summary
    for line in inspection.missing:
        yield Text(f"not known: {line}", style="yellow")
    yield Text(_NOTE, style="dim")
    groups: dict[tuple[object, ...], list[Choice]] = {}
    for choice in inspection.choices:
        key = choice.executions, tuple((c.name, tuple(c.added.items())) for c in choice.candidates)
        groups.setdefault(key, []).append(choice)
    for choices in groups.values():
        yield from _group(choices, list(inspection.ranges))


def _group(choices: list[Choice], costs: list[str]) -> Iterator[RenderableType]:
    first = choices[0]
    yield Text()
    yield Text(", ".join(choice.label for choice in choices), style="bold")
    for execution in first.executions:
        yield Padding(Text(execution), (0, 0, 0, 2), expand=False)
    if all(added == (0.0, 0.0) for candidate in first.candidates for added in candidate.added.values()):
        names = ", ".join(candidate.name for candidate in first.candidates)
        yield Padding(Text(f"{names}: all cost the same"), (0, 0, 0, 2), expand=False)
        return
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("candidate", overflow="fold")
    for cost in costs:
        table.add_column(f"+ {cost}", justify="right")
    for candidate in first.candidates:
        table.add_row(Text(candidate.name), *(_range(candidate.added[cost]) for cost in costs))
    yield Padding(table, (0, 0, 0, 2), expand=False)


def _range(added: Range | None) -> str:
    if added is None:
        return "too many choices"
    low, high = map(_number, added)
    return low if low == high else f"{low} … {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _count(number: int) -> str:
    """Exactly; a long one shorter, too."""
    return f"{number:,}" if number < 10**15 else f"{number:.4g}".replace("e+", "e") + f" ({number:,})"

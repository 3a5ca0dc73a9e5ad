"""The pictures of a report that are drawn from plain records: a search, stability, agreement, importance,
neighbours.

Each answers one question, which is its title, has axes with units, and can be read in black and white: what colour
tells, a marker, a pattern or a number tells too. Figures are made without pyplot: nothing is asked of the machine's
display or of a person's own settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nni_gumbel.results.agreement import LabelAgreement, choice_of
from nni_gumbel.results.neighbours import Neighbours
from nni_gumbel.results.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More rows than these are not readable on a page.
_MOST_ROWS = 160
_STYLES = (("black", "o", "-"), ("#d9480f", "s", "--"), ("#1f5fa8", "^", ":"))


@dataclass(frozen=True)
class SearchHistory:
    """What a search reported, epoch by epoch: numbers by name, and the probabilities of every label and candidate."""

    name: str
    curves: Mapping[str, Sequence[float]]
    probabilities: Mapping[str, Mapping[str, Sequence[float]]]


def draw_probabilities(history: SearchHistory, found: Mapping[str, Any]) -> Figure:
    """Every probability over the epochs, as shades of grey; a dot is beside what the search has found."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names, rows, starts = [], [], []
    for label, candidates in history.probabilities.items():
        if len(rows) + len(candidates) > _MOST_ROWS:
            break
        starts.append((len(rows), label))
        chosen = choice_of(found, label).split("+") if label in found else []
        names += [f"{name} ●" if name in chosen else name for name in candidates]
        rows += candidates.values()
    left = len(history.probabilities) - len(starts)
    more = f" ({left} labels more in probabilities.csv)" if left else ""
    epochs = max(map(len, rows), default=1)
    values = np.array([[*row, *[np.nan] * (epochs - len(row))] for row in rows])
    figure = Figure(figsize=(8.5, 1.4 + 0.14 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(epochs + 1) + 0.5, np.arange(len(rows) + 1)
    shades = axes.pcolormesh(*edges, values, cmap="Greys", vmin=0, vmax=1, rasterized=True)
    _worded(
        axes,
        f"When was each choice decided? {history.name}{more}\n● found by this search",
        "epoch of the search",
    )
    axes.grid(False)
    axes.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=6)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for start, label in starts:
        axes.axhline(start, color="#1f5fa8", lw=0.8)
        beside = {"xycoords": axes.get_yaxis_transform(), "va": "top", "fontsize": 7, "weight": "bold"}
        axes.annotate(label, (1.01, start + 0.2), **beside)
    figure.colorbar(shades, ax=axes, location="top", shrink=0.4, aspect=30, label="probability", pad=0.01)
    return figure


def draw_search(history: SearchHistory, metric: str) -> Figure | None:
    """The state of a search over its epochs, a panel for each number; ``None`` if it reported none."""
    from matplotlib.ticker import MaxNLocator

    costs = [name.removeprefix("expected_") for name in history.curves if name.startswith("expected_")]
    panels = {
        "temperature": ("temperature", "temperature"),
        "entropy": ("entropy of the structure, 1 is undecided", "mean of the labels"),
        **{f"expected_{cost}": (f"expected {cost}", cost) for cost in costs},
        "chosen_probability": ("discretisation gap: 1 - mean probability of what is chosen", "probability"),
        f"val_{metric}": (f"validation {metric} of the mixture", metric),
        "train_loss": ("training loss", "loss"),
    }
    there = [name for name in panels if history.curves.get(name)]
    if not there:
        return None
    figure, grid = _grid(len(there), 3, f"How did the search go? {history.name}")
    for axes, name in zip(grid, there):
        values = history.curves[name]
        if name == "chosen_probability":
            values = [1 - value for value in values]
        axes.plot(range(1, len(values) + 1), values, "k.-", lw=1, markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        title, unit = panels[name]
        _worded(axes, title, "epoch", unit)
    return figure


def draw_stability(records: Mapping[str, Sequence[Stability]]) -> Figure | None:
    """What is left of the metric under each disturbance; ``None`` without a record.

    Args:
        records: by the name of a network, at most three, one record a seed: the mean is drawn.
    """
    records = {name: kept for name, kept in records.items() if kept}
    if not records:
        return None
    first = next(iter(records.values()))[0]
    title = f"How much of the validation {first.metric} is left when inputs or weights are disturbed?"
    figure, grid = _grid(len(first.curves), 2 if len(first.curves) in (2, 4) else 3, title)
    for axes, curve in zip(grid, first.curves):
        for (name, kept), (color, marker, line) in zip(records.items(), _STYLES):
            curves = [each.values for record in kept for each in record.curves if each.name == curve.name]
            known = [[value for value in values if value is not None] for values in zip(*curves)]
            means = [fmean(values) if values else math.nan for values in known]
            style = {"color": color, "marker": marker, "ls": line, "markersize": 4, "lw": 1.3}
            axes.plot(curve.strengths[: len(means)], means, **style, label=name)
        if first.chance:
            axes.axhline(first.chance, color="0.5", lw=0.8, ls=(0, (1, 3)))
            beside = {"xytext": (2, 2), "textcoords": "offset points", "fontsize": 6, "color": "0.4"}
            axes.annotate("guessing", (0, first.chance), **beside)
        if not first.minimize:
            axes.set_ylim(bottom=0)
        _worded(axes, curve.name, curve.unit, f"validation {first.metric}")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _grid(count: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(10, 2.6 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def _worded(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Say what axes are of, in small letters."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)


def draw_agreement(rows: Sequence[LabelAgreement]) -> Figure:
    """Per label, how often two seeds choose alike, and how often they would by chance."""
    rows = list(rows)[:_MOST_ROWS]
    figure = _bars([row.label for row in rows], {"": [row.agreement for row in rows]})
    (axes,) = figure.axes
    for place, row in enumerate(rows):
        axes.plot([1 / row.candidates] * 2, [place - 0.4, place + 0.4], color="#d9480f", lw=2)
    axes.plot([], [], color="#d9480f", lw=2, label="chance")
    axes.legend(fontsize=7, loc="lower right")
    _worded(axes, "Which choices do seeds agree on?", "share of pairs of searches that chose alike")
    return figure


def draw_importance(importance: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Per label, how much of the spread of results it explains.

    Args:
        importance: by what the networks are, at most two kinds; then by label, ``None`` where it cannot be told.
    """
    labels = list(next(iter(importance.values())))[:_MOST_ROWS]
    bars = {kind: [by_label[label] for label in labels] for kind, by_label in importance.items()}
    figure = _bars(labels, bars)
    (axes,) = figure.axes
    axes.legend(fontsize=7, loc="lower right")
    _worded(axes, "Which choices do results depend on?", "share of the spread of results explained")
    return figure


def _bars(labels: Sequence[str], groups: Mapping[str, Sequence[float | None]]) -> Figure:
    """Horizontal bars of shares with their numbers, a row for each label, in it a bar for each group."""
    from matplotlib.figure import Figure

    thick = 0.66 / len(groups)
    figure = Figure(figsize=(8.5, 1.5 + len(labels) * (0.1 + 0.14 * len(groups))), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(groups.items()):
        places = [row + (number - (len(groups) - 1) / 2) * thick for row in range(len(labels))]
        look = {
            "color": ("0.75", "white")[number],
            "hatch": (None, "////")[number],
            "edgecolor": "black",
            "lw": 0.7,
        }
        axes.barh(places, [value or 0 for value in values], thick, label=name, **look)
        for place, value in zip(places, values):
            words = "not known" if value is None else f"{value:.2f}"
            beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
            axes.annotate(words, (value or 0, place), **beside)
    axes.set_xlim(0, 1.12)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    return figure


def draw_neighbours(neighbours: Neighbours, metric: str, error: float) -> Figure | None:
    """Per label, what networks reach that differ from the chosen one in this choice alone; ``None`` if none is known.

    Each is a part of the picture; its ``gid`` is the neighbour as text.

    Args:
        neighbours: of the chosen network.
        metric: its name.
        error: the standard error of the metric; what is within it is no worse than the network.
    """
    from matplotlib.figure import Figure

    known = [each for each in neighbours.found if each.value is not None]
    labels = list(dict.fromkeys(each.label for each in known))[:_MOST_ROWS]
    if not labels:
        return None
    figure = Figure(figsize=(8.5, 1.7 + 0.24 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    within = {"color": "0.9", "lw": 0, "label": "within one standard error"}
    axes.axvspan(neighbours.value - error, neighbours.value + error, **within)
    axes.axvline(neighbours.value, color="#d9480f", lw=1.2, label=neighbours.name)
    for each in known:
        if each.label in labels:
            (point,) = axes.plot(each.value, labels.index(each.label), "ko", markersize=5, fillstyle="none")
            point.set_gid(str(each))
    axes.plot(
        [], [], "ko", markersize=5, fillstyle="none", label="one candidate in the place of the chosen one"
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    how = "trained from scratch" if neighbours.retrained else "with the trained weights"
    _worded(axes, "What would another choice cost?", f"validation {metric}, {how}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return figure

"""The front of an experiment: every trained network by accuracy and size, as a table and as a picture.

A network is on the front if no other network found has at most as many parameters and at least as good a mean
validation metric, one of the two strictly better. Random networks are what the search is compared with: they are in
the table and in the picture, and never on the front. Test results stand in the table alone, beside the validation
results by which networks are chosen. Plain records in, files out; only the picture needs matplotlib.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from nni_gumbel.results.choice import Network
from nni_gumbel.results.report import spelled_metric, varied_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PICTURE = "front.csv", "front.png"

_FOUND, _CHOSEN, _RANDOM, _RANDOM_MEAN = "#1f5fa8", "#d9480f", "#b9bec4", "#71787f"
_LEGEND = (
    "chosen network",
    "network found",
    "front: nothing found is smaller and better",
    "random network, trained alike",
    "their mean ± standard deviation",
)
# A linear axis squeezes smaller networks into a corner where the largest has this many times their size.
_LOG_FROM = 5
# More names than these cover each other.
_MOST_NAMES = 12


def front(networks: Sequence[Network], optimize_mode: str) -> list[Network]:
    """The networks that no other one dominates in (parameters, mean validation metric), smallest first.

    Args:
        networks: those that were found.
        optimize_mode: ``maximize`` or ``minimize``.

    Returns:
        At least one, if there is any; of networks that are equal in both, each.
    """
    sign = {"maximize": 1.0, "minimize": -1.0}[optimize_mode]

    def dominates(one: Network, other: Network) -> bool:
        mine = (-one.parameters, sign * one.validation_mean)
        theirs = (-other.parameters, sign * other.validation_mean)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs))

    best = [network for network in networks if not any(dominates(other, network) for other in networks)]
    return sorted(best, key=lambda network: (network.parameters, -sign * network.validation_mean))


def write_table(
    path: str | Path, networks: Sequence[Network], chosen: Network, metric: str, optimize_mode: str
) -> None:
    """Write the front as CSV, one row a network; the random ones follow the network they are compared with.

    ``size_ratio`` is the parameters of a random network, relative to those of the one that it is compared with.

    Args:
        path: the file.
        networks: those that were found, each with its baseline.
        chosen: the one that is exported.
        metric: name of the metric; it is part of the names of four columns.
        optimize_mode: ``maximize`` or ``minimize``.

    Raises:
        OSError: the file cannot be written.
    """
    varied = list(dict.fromkeys(name for each in networks for values in each.found_with for name in values))
    best = {network.name for network in front(networks, optimize_mode)}
    rows = []
    for network in networks:
        settings = {name: varied_values(network, name) for name in varied}
        mine = {"kind": "found", "chosen": network.name == chosen.name, "on_front": network.name in best}
        rows.append(_row(network, metric, settings, mine))
        for random in network.baseline:
            theirs = {"kind": "random", "of_network": network.name, "chosen": False, "on_front": False}
            theirs["size_ratio"] = random.parameters / network.parameters if network.parameters else None
            rows.append(_row(random, metric, settings, theirs))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _row(network: Network, metric: str, settings: dict[str, str], what: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": network.name,
        "kind": what["kind"],
        "of_network": what.get("of_network"),
        "size_ratio": what.get("size_ratio"),
        "chosen": int(what["chosen"]),
        "on_front": int(what["on_front"]),
        **settings,
        "parameters": network.parameters,
        "pruned_parameters": network.pruned_parameters,
        "flops": network.flops,
        "pruned_flops": network.pruned_flops,
        "latency_ms": network.latency_ms,
        "table_latency_ms": network.table_latency_ms,
        f"validation_{metric}_mean": network.validation_mean,
        f"validation_{metric}_std": network.validation_std,
        f"test_{metric}_mean": network.test_mean,
        f"test_{metric}_std": network.test_std,
        "seeds": len(network.runs),
        "architecture": json.dumps(network.architecture),
    }


def draw(
    path: str | Path, networks: Sequence[Network], chosen: Network, metric: str, optimize_mode: str
) -> None:
    """Draw the front as PNG: validation metric against parameters, error bars over seeds.

    Args:
        path: the file.
        networks: those that were found, each with its baseline.
        chosen: the one that is marked.
        metric: name of the metric.
        optimize_mode: ``maximize`` or ``minimize``.

    Raises:
        ImportError: matplotlib is missing. Whatever else matplotlib raises is passed on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: nothing is asked of the machine's display or of a person's own settings.
    figure = Figure(figsize=(8.5, 5.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_random(axes, networks)
    _draw_front(axes, front(networks, optimize_mode))
    _draw_found(axes, networks, chosen)
    _name_points(axes, networks, chosen)
    _label_axes(axes, networks, metric, optimize_mode)
    figure.savefig(path)


def _draw_random(axes: Axes, networks: Sequence[Network]) -> None:
    # Networks of equal size share theirs, which are drawn once.
    by_trial = {each.runs[0].trial_id: each for network in networks for each in network.baseline}
    if not by_trial:
        return
    crowded = len(networks) > _MOST_NAMES
    axes.plot(
        [each.parameters for each in by_trial.values()],
        [each.validation_mean for each in by_trial.values()],
        "o", color=_RANDOM, markersize=3 if crowded else 4, alpha=0.8, zorder=1, label=_LEGEND[3],
    )  # fmt: skip
    compared = [network for network in networks if network.baseline]
    values = [[each.validation_mean for each in network.baseline] for network in compared]
    axes.errorbar(
        [network.parameters for network in compared],
        [fmean(each) for each in values],
        yerr=[stdev(each) if len(each) > 1 else 0.0 for each in values],
        fmt="_", color=_RANDOM_MEAN, markersize=8 if crowded else 13, markeredgewidth=2, zorder=2,
        elinewidth=0.5 if crowded else 1, capsize=0 if crowded else 2,
        label=_LEGEND[4],
    )  # fmt: skip


def _draw_front(axes: Axes, best: Sequence[Network]) -> None:
    if len(best) > 1:
        axes.step(
            [network.parameters for network in best],
            [network.validation_mean for network in best],
            where="post", color=_FOUND, linewidth=1.2, alpha=0.6, zorder=3,
            label=_LEGEND[2],
        )  # fmt: skip


def _draw_found(axes: Axes, networks: Sequence[Network], chosen: Network) -> None:
    crowded = len(networks) > _MOST_NAMES
    others = [network for network in networks if network.name != chosen.name]
    points = {"fmt": "o", "color": _FOUND, "markersize": 5 if crowded else 7, "label": _LEGEND[1]}
    star = {"fmt": "*", "color": _CHOSEN, "markersize": 15, "label": _LEGEND[0]}
    for group, style, height in ((others, points, 4), ([chosen], star, 5)):
        if group:
            axes.errorbar(
                [network.parameters for network in group],
                [network.validation_mean for network in group],
                yerr=[network.validation_std or 0.0 for network in group],
                elinewidth=0.8 if crowded else 1.3, capsize=0 if crowded else 3, zorder=height, **style,
            )  # fmt: skip


def _name_points(axes: Axes, networks: Sequence[Network], chosen: Network) -> None:
    for network in networks if len(networks) <= _MOST_NAMES else [chosen]:
        axes.annotate(
            network.name,
            (network.parameters, network.validation_mean),
            xytext=(8, 5),
            textcoords="offset points",
            fontsize=8,
            color=_CHOSEN if network.name == chosen.name else _FOUND,
            zorder=6,
        )


def _label_axes(axes: Axes, networks: Sequence[Network], metric: str, optimize_mode: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    drawn = [each.parameters for network in networks for each in (network, *network.baseline)]
    if min(drawn) > 0 and max(drawn) >= _LOG_FROM * min(drawn):
        axes.set_xscale("log")
        wide = max(drawn) >= 100 * min(drawn)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.12, y=0.12)
    seeds = sorted({len(network.runs) for network in networks})
    over = f"mean ± standard deviation over {'–'.join(str(n) for n in (seeds[0], seeds[-1])[: len(seeds)])} seeds"
    better = "higher" if optimize_mode == "maximize" else "lower"
    of = "one training" if seeds == [1] else over
    axes.set_title(
        f"{len(networks)} network{'s' if len(networks) > 1 else ''} found, by size and {spelled_metric(metric)}"
    )
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"validation {spelled_metric(metric)} ({better} is better)\n{of}")
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    results = [each.validation_mean for network in networks for each in (network, *network.baseline)]
    if max(results) == min(results):
        axes.set_ylim(results[0] - 0.02 * (abs(results[0]) or 1), results[0] + 0.02 * (abs(results[0]) or 1))
    # What was found before what it is compared with; matplotlib lists lines before bars.
    drawn_as = dict(zip(*reversed(axes.get_legend_handles_labels())))
    labels = [label for label in _LEGEND if label in drawn_as]
    axes.legend([drawn_as[label] for label in labels], labels, loc="best", fontsize=8, framealpha=0.9)

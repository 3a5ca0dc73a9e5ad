"""The front of an experiment: every trained network by accuracy and cost, as a table and as a picture.

A network is on the front if no other network found costs at most as much, of what the experiment prices, and has at
least as good a mean validation metric, one of the two strictly better. Random networks are what the search is compared
with: they are in the table and in the picture, and never on the front. Test results stand in the table alone, beside
the validation results by which networks are chosen. Plain records in, files out; only the picture needs matplotlib.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from nni_gumbel.results.choice import Network
from nni_gumbel.results.report import varied_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE, PICTURE = "front.csv", "front.png"

# The words of what an experiment prices.
COSTS = {
    "params": "parameters", "flops": "FLOPs (multiply-adds of one example)", "latency": "latency of one example in ms",
    "cost": "cost by the function of --cost",
}  # fmt: skip
# Those that are counts, without a fraction.
COUNTS = ("params", "flops")
# A linear axis squeezes smaller networks into a corner where the largest has this many times their size.
_LOG_FROM = 5
# Of the table.
_COLUMNS = ("parameters", "pruned_parameters", "flops", "pruned_flops", "latency_ms", "table_latency_ms")
# More names than these cover each other.
_MOST_NAMES = 12
# Of a legend: where it hides nothing.
_BELOW = {
    "loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3, "fontsize": 8, "frameon": False
}  # fmt: skip
# Of experiments side by side, told apart without colour.
_LOOKS = (("black", "o", "-"), ("#d9480f", "s", "--"), ("#1f5fa8", "^", ":"), ("0.5", "D", "-."))


@dataclass(frozen=True)
class Front:
    """The networks of an experiment, and what they are judged by."""

    networks: Sequence[Network]  # those that were found, each with its baseline
    chosen: Network
    metric: str
    optimize_mode: str  # maximize or minimize
    priced: str = "params"  # see results/choice.py
    name: str = ""  # of the experiment, among others

    @cached_property
    def best(self) -> list[Network]:
        """The networks that no other one dominates in (cost, mean validation metric), cheapest first.

        At least one, if there is any; of networks that are equal in both, each.
        """
        sign = {"maximize": 1.0, "minimize": -1.0}[self.optimize_mode]
        places = [(each.price(self.priced), -sign * each.validation_mean) for each in self.networks]

        def is_dominated(place: tuple[float, float]) -> bool:
            return any(other != place and other[0] <= place[0] and other[1] <= place[1] for other in places)

        best = [(place, each) for place, each in zip(places, self.networks) if not is_dominated(place)]
        return [each for _, each in sorted(best, key=lambda pair: pair[0])]


def write_table(path: str | Path, front: Front) -> None:
    """Write a front as CSV, one row a network; the random ones follow the network they are compared with.

    ``size_ratio`` is the parameters of a random network, relative to those of the one that it is compared with.

    Raises:
        OSError: the file cannot be written.
    """
    networks, metric = front.networks, front.metric
    varied = dict.fromkeys(name for each in networks for values in each.found_with for name in values)
    rows = []
    for network in networks:
        for each in (network, *network.baseline):
            is_random = each is not network
            rows.append({
                "name": each.name,
                "kind": "random" if is_random else "found",
                "of_network": network.name if is_random else None,
                "size_ratio": each.parameters / network.parameters if is_random and network.parameters else None,
                "chosen": int(each.name == front.chosen.name),
                "on_front": int(each in front.best),
                **{name: varied_values(network, name) for name in varied},
                **{name: getattr(each, name) for name in _COLUMNS},
                f"validation_{metric}_mean": each.validation_mean,
                f"validation_{metric}_std": each.validation_std,
                f"test_{metric}_mean": each.test_mean,
                f"test_{metric}_std": each.test_std,
                "stability_mean": each.stability_mean,
                "stability_std": each.stability_std,
                "seeds": len(each.runs),
                "architecture": json.dumps(each.architecture),
            })  # fmt: skip
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def front_figure(front: Front) -> Figure:
    """A front as a picture: validation metric against what the experiment prices, error bars over seeds.

    A network whose cost is not known is not in it. Each other one has an invisible point with its name as ``gid``, by
    which a page tells more when it is pointed at.
    """
    chosen, priced, networks = front.chosen, front.priced, _priced(front.networks, front.priced)
    # Networks of equal size share theirs, which are drawn once.
    random = {each.runs[0].trial_id: each for network in networks for each in network.baseline}
    random = _priced(random.values(), priced)
    seeds = sorted({len(network.runs) for network in networks} or {1})
    over = f"mean ± standard deviation over {'–'.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
    axes = _axes([*networks, *random], front, "one training" if seeds == [1] else over)
    blue, orange, grey, dark = "#1f5fa8", "#d9480f", "#b9bec4", "#71787f"

    shown: dict[str, Any] = {}  # for the legend, in its order
    if chosen in networks:
        star = {"fmt": "*", "color": orange, "markersize": 15, "capsize": 3, "zorder": 5}
        shown["chosen network"] = axes.errorbar(
            *_points([chosen], priced), yerr=chosen.validation_std or 0.0, **star
        )
    if others := [network for network in networks if network.name != chosen.name]:
        dots = {"fmt": "o", "color": blue, "markersize": 6, "capsize": 3, "zorder": 4}
        spread = [network.validation_std or 0.0 for network in others]
        shown["network found"] = axes.errorbar(*_points(others, priced), yerr=spread, **dots)
    if len(best := _priced(front.best, priced)) > 1:
        label = "front: nothing found is cheaper and better"
        line = {"where": "post", "color": blue, "linewidth": 1.2, "alpha": 0.6, "zorder": 3, "label": label}
        (shown[label],) = axes.step(*_points(best, priced), **line)
    if random:
        label = "random network, trained alike"
        (shown[label],) = axes.plot(*_points(random, priced), "o", color=grey, markersize=4, label=label)
        compared = [network for network in networks if network.baseline]
        values = [[each.validation_mean for each in network.baseline] for network in compared]
        spread = [stdev(each) if len(each) > 1 else 0.0 for each in values]
        shown["their mean ± standard deviation"] = axes.errorbar(
            _points(compared, priced)[0], [fmean(each) for each in values], yerr=spread, fmt="_", color=dark,
            markersize=13, capsize=2, zorder=2,
        )  # fmt: skip
    for network in networks if len(networks) <= _MOST_NAMES else [chosen]:
        look = {"fontsize": 8, "zorder": 6, "color": orange if network.name == chosen.name else blue}
        place = (network.price(priced), network.validation_mean)
        axes.annotate(network.name, place, (8, 5), textcoords="offset points", **look)
    for network in (*networks, *random):
        (point,) = axes.plot(*_points([network], priced), "o", markersize=14, alpha=0.0, zorder=9)
        point.set_gid(network.name)
    found = "1 network" if len(networks) == 1 else f"{len(networks)} networks"
    axes.set_title(f"{found} found, by cost and {_spelled(front.metric)}")
    axes.legend(shown.values(), shown.keys(), **_BELOW)
    return axes.figure


def fronts_figure(fronts: Sequence[Front]) -> Figure:
    """The fronts of several experiments, judged and priced alike, in one picture."""
    priced = fronts[0].priced
    found = [_priced(each.networks, priced) for each in fronts]
    axes = _axes([one for each in found for one in each], fronts[0], "mean over the seeds")
    for number, (each, networks) in enumerate(zip(fronts, found)):
        color, marker, dashes = _LOOKS[number % len(_LOOKS)]
        look = {"color": color, "zorder": 3}
        axes.plot(*_points(networks, priced), marker, fillstyle="none", markersize=6, **look)
        line = {"where": "post", "linestyle": dashes, "linewidth": 1.3, "marker": marker, "label": each.name}
        axes.step(*_points(_priced(each.best, priced), priced), **line, **look)
        axes.plot(*_points(_priced([each.chosen], priced), priced), "*", markersize=15, **look)
    axes.set_title("Which experiment found the better networks?")
    axes.legend(**_BELOW)
    return axes.figure


def _priced(networks: Iterable[Network], priced: str) -> list[Network]:
    return [network for network in networks if math.isfinite(network.price(priced))]


def _points(networks: Sequence[Network], priced: str) -> tuple[list[float], list[float]]:
    return [each.price(priced) for each in networks], [each.validation_mean for each in networks]


def _axes(networks: Sequence[Network], front: Front, over: str) -> Axes:
    """Axes of cost and metric that these networks fit on."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    # No pyplot: nothing is asked of the machine's display or of a person's own settings.
    axes = Figure(figsize=(8.5, 5.5), layout="constrained").add_subplot()
    sizes, _ = _points(networks, front.priced)
    if sizes and min(sizes) > 0 and max(sizes) >= _LOG_FROM * min(sizes):
        is_wide = max(sizes) >= 100 * min(sizes)
        axes.set_xscale("log", subs=() if is_wide else (2, 5))
        axes.xaxis.set_minor_formatter(NullFormatter() if is_wide else "{x:,.0f}")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if front.priced in COUNTS else "{x:.3g}"))
    axes.margins(x=0.12, y=0.12)
    better = "higher" if front.optimize_mode == "maximize" else "lower"
    axes.set_xlabel(COSTS[front.priced])
    axes.set_ylabel(f"validation {_spelled(front.metric)} ({better} is better)\n{over}")
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _spelled(metric: str) -> str:
    return "accuracy" if metric == "acc" else metric

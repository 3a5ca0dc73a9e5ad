"""Which strategy finds the best cell of NAS-Bench-201 in the same time?

    python examples/benchmarks/nasbench201/search.py --table FILE --images FILE [--minutes 10] [--clock cpu]
        [--threads 1] [--strategies default GumbelDARTS ...] [--seeds 5] [--channels 8 --cells 1 ...] [--quick]

Each search ends when its time is used: a one-shot strategy runs for as many epochs as fit, a multi-trial one trains
cells by themselves, at the same size. The table judges the cells found: accuracy after 200 epochs, rank, regret (points
below the best cell), hits (within 0.1 points of it). Where NNI's code fails, the row names the line. Stopped,
it goes on where it was: every search is a row of a CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import runs
import space
import strategies
import table
from rich.console import Console
from rich.table import Table

DEFAULT = (
    "default", "default:cost_weight=0", "darts", "snas", "gdas",
    *strategies.GRADIENT, *strategies.SAMPLING, *strategies.MULTI_TRIAL,
)  # fmt: skip
# What tells cells apart in minutes: deep networks, small images, and nearly all of them; see RESULTS.md.
PROXY = {"cells": 3, "half": 24_000, "resolution": 16}
QUICK = (
    "default",
    "default:cost_weight=0",
    *strategies.GRADIENT,
    *strategies.SAMPLING,
    *strategies.MULTI_TRIAL,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"strategies: {', '.join(strategies.NAMES)}; NAME:key=value,...",
    )
    space.add_arguments(parser)
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="all, and default:cost_weight=0")
    parser.add_argument("--minutes", type=float, default=10, help="of each search")
    parser.add_argument(
        "--clock", choices=strategies.CLOCKS, default="cpu", help="CPU time of the process, or wall"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each search; with several, --clock wall")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--learning-rate", type=float, default=0.003, help="largest, of a one-shot's weights (AdamW)"
    )
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="likewise")
    parser.add_argument("--trial-epochs", type=float, default=3, help="of a cell that is trained by itself")
    parser.add_argument(
        "--trial-learning-rate", type=float, default=0.1, help="largest, of such a cell (SGD)"
    )
    parser.set_defaults(**PROXY)
    arguments = parser.parse_args()
    if arguments.threads > 1 and arguments.clock == "cpu":
        parser.error("--threads: several share the time of --clock cpu; give --clock wall")
    if arguments.quick:
        arguments.minutes, arguments.seeds, arguments.trial_epochs = 0.05, 1, 0.5
    texts = arguments.strategies or (QUICK if arguments.quick else DEFAULT)
    judge, size = table.read(arguments.table), space.Size.of(arguments)
    size.read(arguments.images, seed=0)  # before an hour of work says that it cannot
    names = (
        "minutes", "clock", "threads", "learning_rate", "weight_decay", "trial_epochs", "trial_learning_rate"
    )  # fmt: skip
    common = {**size.job(), **{name: getattr(arguments, name) for name in names}}
    jobs = [
        {**common, "strategy": text, "settings": strategies.parse(text).resolved(), "seed": seed}
        for seed in range(arguments.seeds)
        for text in texts
    ]
    path = arguments.folder / (
        "nasbench201-search-quick.csv" if arguments.quick else "nasbench201-search.csv"
    )
    rows = list(runs.rows_of(jobs, partial(search, images=str(arguments.images)), path, arguments.workers))
    judged = [{**row, **_judged(row, judge)} for row in rows]
    flat = [{k: v for k, v in row.items() if k not in ("settings", "trajectory")} for row in judged]
    runs.write(flat, path.with_stem(f"{path.stem}-judged"))

    console = Console(width=150)
    console.print(
        f"{runs.machine()}; {size}; {arguments.minutes:g} minutes of {arguments.clock}, threads: {arguments.threads}, "
        f"seeds 0 to {arguments.seeds - 1}; best cell {judge.best:.2f}",
        highlight=False,
    )
    console.print(_table(texts, judged))
    _draw(texts, judged, judge, path.with_suffix(".png"))
    console.print(f"wrote {path}, {path.stem}-judged.csv and {path.stem}.png", highlight=False)


def search(images: str, **job: Any) -> runs.Row:
    """One search; the row has the cell as the benchmark writes it, and the trajectory as JSON."""
    import alone
    import torch

    torch.set_num_threads(job["threads"])
    size = space.Size(**{name: job[name] for name in space.Size().job()})
    data = size.read(Path(images), job["seed"])

    def train(network: Any) -> float:
        data.batches = None
        result = alone.train(
            network, data, epochs=job["trial_epochs"], learning_rate=job["trial_learning_rate"]
        )
        return result["val_acc"]

    found = strategies.search_within(
        strategies.parse(job["strategy"]), size.space, data, train=train, seconds=60 * job["minutes"],
        **{name: job[name] for name in ("clock", "seed", "learning_rate", "weight_decay")},
    )  # fmt: skip
    return {
        "arch": "" if found.sample is None else table.arch_of(table.cell_of(found.sample)),
        "seconds": round(found.seconds, 2),
        "work": found.work,
        "error": found.error,
        "trajectory": json.dumps(
            [(round(at, 2), table.arch_of(table.cell_of(sample))) for at, sample in found.trajectory]
        ),
    }


def _judged(row: runs.Row, judge: table.Table) -> dict[str, Any]:
    if not row.get("arch"):
        return {}
    cell = table.parse(row["arch"])
    return {"cell": table.short(cell), **judge.judge(cell)}


def _table(texts: list[str], rows: list[runs.Row]) -> Table:
    shown = Table(
        "strategy", "accuracy", "worst", "median rank", "regret", "hits", "seconds", "work", "cells"
    )
    for text in texts:
        own = [row for row in rows if row["strategy"] == text]
        good = [row for row in own if "accuracy" in row]
        if not good:
            shown.add_row(text, "cannot run", "", "", "", "", "", "", own[0].get("error", "") if own else "")
            continue
        shown.add_row(
            text,
            runs.spread([row["accuracy"] for row in good]),
            f"{min(row['accuracy'] for row in good):.2f}",
            f"{median(row['rank'] for row in good):,.0f}",
            runs.spread([row["regret"] for row in good]),
            f"{sum(row['hit'] for row in good)} of {len(good)}",
            runs.spread([row["seconds"] for row in good], digits=0),
            str(good[0]["work"]),
            " ".join(row["cell"] for row in good),
        )
    return shown


def _draw(texts: list[str], rows: list[runs.Row], judge: table.Table, path: Path) -> None:
    """What each strategy would have returned over time, and what it returned."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for place, text in enumerate(texts):
        colour, style = f"C{place % 10}", "-" if place < 10 else "--"
        own = [row for row in rows if row["strategy"] == text and "accuracy" in row]
        for number, row in enumerate(own):
            points = json.loads(row["trajectory"])
            left.plot(
                [at for at, _ in points], [judge.accuracy(table.parse(arch)) for _, arch in points], style,
                color=colour, linewidth=0.8, drawstyle="steps-post", label=text if number == 0 else None,
            )  # fmt: skip
        right.plot([place] * len(own), [row["accuracy"] for row in own], "o", color=colour)
    for axis in (left, right):
        axis.axhline(judge.best, color="black", linewidth=0.8)
        axis.set_ylim(
            max(60, min((row["accuracy"] for row in rows if "accuracy" in row), default=60) - 1), 95
        )
        axis.set_ylabel("test accuracy in the table, %")
    left.set(xlabel="seconds", title="over time")
    left.legend(fontsize="x-small", ncols=2)
    right.set_xticks(range(len(texts)), texts, rotation=60, ha="right", fontsize="small")
    right.set_title("cells found")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    from nni_gumbel import UsageError

    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

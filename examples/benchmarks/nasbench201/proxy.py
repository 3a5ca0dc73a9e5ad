"""What does a cell's short training by itself know of its accuracy in the table?

    python examples/benchmarks/nasbench201/proxy.py --table FILE --images FILE [--channels 8 --cells 1 --half 4000
        --resolution 32 --epochs 3] [--drawn 40] [--good 40] [--quick]

Trains cells drawn uniformly from all, and as many from those above 93 %, each by itself at a small size. Prints, for
every size that is in the CSV, the time of a training and the rank correlation (Spearman) of what it told - validation
accuracy and loss, loss of the training over all steps and at its end - with the accuracy in the table: over the
cells drawn from all, and over those above 93. Stopped, it goes on where it was: every training is a row of the CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import runs
import space
import table
from rich.console import Console
from rich.table import Table

GOOD = 93.0  # percent
# What a training tells, and the sign with which more is better.
TOLD = {"val_acc": 1, "val_loss": -1, "train_loss": -1, "last_train_loss": -1}
TITLES = ("validation accuracy", "validation loss", "training loss", "last training loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    space.add_arguments(parser)
    parser.add_argument("--epochs", type=float, default=3, help="of a training, also parts of one")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="largest (SGD, one cycle)")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels")
    parser.add_argument("--drawn", type=int, default=40, help="cells drawn from all")
    parser.add_argument("--good", type=int, default=40, help=f"cells drawn from those above {GOOD:g} %%")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of cells, and of the trainings")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.drawn, arguments.good = 0.5, 4, 4
    judge, size = table.read(arguments.table), space.Size.of(arguments)
    size.read(arguments.images, seed=0)
    common = {
        **size.job(),
        **{name: getattr(arguments, name) for name in ("epochs", "learning_rate", "smoothing")},
    }
    cells = {
        "all": judge.draw(arguments.drawn, arguments.seed),
        "good": judge.draw(arguments.good, arguments.seed + 1, above=GOOD),
    }
    jobs = [
        {**common, "arch": table.arch_of(cell), "seed": arguments.seed}
        for cell in dict.fromkeys([*cells["all"], *cells["good"]])
    ]
    path = arguments.folder / ("nasbench201-proxy-quick.csv" if arguments.quick else "nasbench201-proxy.csv")
    for _ in runs.rows_of(jobs, partial(train, images=str(arguments.images)), path, arguments.workers):
        pass
    drawn = {kind: {table.arch_of(cell) for cell in of_kind} for kind, of_kind in cells.items()}
    sizes = _by_size(path)

    console = Console(width=150)
    console.print(
        f"{runs.machine()}; {arguments.drawn} cells drawn from all, {arguments.good} from those above {GOOD:g}; seed "
        f"{arguments.seed}",
        highlight=False,
    )
    shown = Table("size", "cells", "seconds a cell", *TITLES, title="Spearman with the table: all (above 93)")
    for name, rows in sizes.items():
        shown.add_row(
            name,
            str(len(rows)),
            runs.spread([row["seconds"] for row in rows], digits=1),
            *(
                " ".join(
                    text.format(correlation(
                        [sign * row[told] for row in rows if fits(row)],
                        [judge.accuracy(table.parse(row["arch"])) for row in rows if fits(row)],
                    ))
                    for text, fits in (
                        ("{:.2f}", lambda row: row["arch"] in drawn["all"]),
                        ("({:.2f})", lambda row: judge.accuracy(table.parse(row["arch"])) >= GOOD),
                    )
                )
                for told, sign in TOLD.items()
            ),
        )  # fmt: skip
    console.print(shown)
    _draw(sizes, judge, path.with_suffix(".png"))
    console.print(f"wrote {path} and {path.stem}.png", highlight=False)


def train(images: str, **job: Any) -> runs.Row:
    """One training; ``seconds`` are those of the process's CPU time."""
    import time

    import alone
    import pytorch_lightning as pl

    size = space.Size(**{name: job[name] for name in space.Size().job()})
    data = size.read(Path(images), seed=0)  # the same images for all cells
    pl.seed_everything(job["seed"], verbose=False)
    network = size.space().freeze(table.sample_of(table.parse(job["arch"])))
    began = time.process_time()
    told = alone.train(
        network, data, **{name: job[name] for name in ("epochs", "learning_rate", "smoothing")}
    )
    return {**told, "seconds": round(time.process_time() - began, 2)}


def correlation(told: list[float], truth: list[float]) -> float:
    """Spearman's, of at least three values that are not all equal; else not a number."""
    from scipy.stats import spearmanr

    if len(told) < 3 or len(set(told)) == 1 or len(set(truth)) == 1:
        return float("nan")
    return float(spearmanr(told, truth).statistic)


def _by_size(path: Path) -> dict[str, list[runs.Row]]:
    """All rows of the CSV, also of earlier runs, by everything but the cell."""
    sizes: dict[str, list[runs.Row]] = {}
    for row in runs.read(path):
        job = json.loads(row["job"])
        size = space.Size(**{name: job[name] for name in space.Size().job()})
        name = (
            f"{size}; {job['epochs']:g} epochs, rate {job['learning_rate']:g}, smoothing {job['smoothing']:g}"
        )
        sizes.setdefault(name, []).append({**job, **row})
    return sizes


def _draw(sizes: dict[str, list[runs.Row]], judge: table.Table, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 6), layout="constrained")
    for name, rows in sizes.items():
        truth = [judge.accuracy(table.parse(row["arch"])) for row in rows]
        axis.plot([100 * row["val_acc"] for row in rows], truth, "o", markersize=4, label=name)
    axis.set(xlabel="validation accuracy of the short training, %", ylabel="test accuracy in the table, %")
    axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    from nni_gumbel import UsageError

    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

"""The structure step alone: where do the logits end, if the loss of a sample is read from the table?

    python examples/benchmarks/nasbench201/structure.py --table FILE [--strategies default default:entropy_weight_end=0]
        [--noise 0 0.05 0.3] [--bias CSV --ways mixture gumbel:1 --shares 0.5 1] [--runs 1000] [--steps 744] [--quick]

The loss of a relaxed sample is the multilinear extension of the share of test images that the cells of the table get
wrong: what a supernet would say whose weights were perfect for every cell. Thousands of searches run at once, as one
tensor. To the gradient of every logit and step is added

    noise   normal, of a given standard deviation;
    bias    a share of what the gradient of a supernet at the undecided mixture had beyond the table's, as supernet.py
            recorded it: one of its CSVs, by the way of training; each run takes one of its seeds.

Prints accuracy, worst, hits (within 0.1 points of the best cell). Every setting is a row of the CSV.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import perfect_weights
import runs
import space
import strategies
import table
from rich.console import Console
from rich.table import Table

from nni_gumbel import UsageError

# What this computes with; a strategy that sets something else is refused.
_ESTIMATORS = ("soft", "probabilities")
_USED = (
    "preset", "estimator", "temperature_start", "temperature_end", "temperature_schedule", "arc_learning_rate",
    "cost_weight", "entropy_weight_start", "entropy_weight_end",
)  # fmt: skip
CHANNELS = 16  # of the network that is priced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    space.add_arguments(parser, reads_images=False)
    parser.add_argument(
        "--strategies", nargs="+", default=["default", "default:cost_weight=0"], metavar="NAME"
    )
    parser.add_argument("--noise", nargs="+", type=float, default=[0, 0.05, 0.3], help="standard deviation")
    parser.add_argument("--bias", type=Path, help="CSV of supernet.py")
    parser.add_argument(
        "--ways", nargs="+", default=[], metavar="WAY", help="whose bias; all in the CSV, if left out"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0], help="of the bias")
    parser.add_argument("--runs", type=int, default=1000, help="at once, of each setting")
    parser.add_argument("--steps", type=int, default=744)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.steps = 16, 60
    judge = table.read(arguments.table)
    settings = {text: _checked(strategies.parse(text)) for text in arguments.strategies}
    biases = _biases(arguments.bias, arguments.ways, arguments.shares)
    common = {"runs": arguments.runs, "steps": arguments.steps, "seed": arguments.seed}
    jobs = [
        {**common, "strategy": text, "settings": of_one, "noise": noise, **bias}
        for text, of_one in settings.items()
        for noise in arguments.noise
        for bias in biases
    ]
    path = arguments.folder / (
        "nasbench201-structure-quick.csv" if arguments.quick else "nasbench201-structure.csv"
    )
    task = partial(search, table_file=str(arguments.table), bias_file=str(arguments.bias or ""))
    rows = sorted(
        runs.rows_of(jobs, task, path, arguments.workers),
        key=lambda row: (arguments.strategies.index(row["strategy"]), _bias_name(row), row["noise"]),
    )

    console = Console(width=130)
    console.print(
        f"{runs.machine()}; {arguments.runs} runs of {arguments.steps} steps, seed {arguments.seed}; best cell "
        f"{judge.best:.2f}",
        highlight=False,
    )
    shown = Table(
        "strategy",
        "noise",
        "bias",
        "accuracy",
        "worst",
        "hits",
        "probability",
        "most frequent cell",
        "seconds",
    )
    for row in rows:
        shown.add_row(
            row["strategy"], f"{row['noise']:g}", _bias_name(row), f"{row['accuracy']:.2f} ± {row['deviation']:.2f}",
            f"{row['worst']:.2f}", f"{row['hits']:.0%}", f"{row['probability']:.2f}",
            f"{table.short(table.parse(row['arch']))} {row['share_of_cell']:.0%}", f"{row['seconds']:.0f}",
        )  # fmt: skip
    console.print(shown)
    _draw(rows, judge, path.with_suffix(".png"))
    console.print(f"wrote {path} and {path.stem}.png", highlight=False)


def search(table_file: str, bias_file: str, **job: Any) -> runs.Row:
    """All runs of one setting."""
    import time

    import torch

    began = time.process_time()
    judge = table.read(Path(table_file))
    bias = None
    if job.get("way"):
        bias = job["share"] * perfect_weights.excess_gradients(runs.read(Path(bias_file)), job["way"], judge)
    torch.manual_seed(job["seed"])
    logits = perfect_weights.descend(
        torch.from_numpy((100 - judge.test) / 100).float(), job["settings"], _prices(), job["runs"], job["steps"],
        job["noise"], bias,
    )  # fmt: skip
    cells = [tuple(cell) for cell in logits.argmax(-1).tolist()]
    accuracies = np.array([judge.accuracy(cell) for cell in cells])
    frequent = max(set(cells), key=cells.count)
    return {
        "accuracy": round(float(accuracies.mean()), 4),
        "deviation": round(float(accuracies.std()), 4),
        "worst": float(accuracies.min()),
        "hits": float(np.mean([judge.is_hit(cell) for cell in cells])),
        "probability": round(float(logits.softmax(-1).amax(-1).mean()), 4),
        "arch": table.arch_of(frequent),
        "share_of_cell": cells.count(frequent) / len(cells),
        "seconds": round(time.process_time() - began, 1),
    }


def _checked(named: strategies.Named) -> dict[str, Any]:
    from nni_gumbel.search.settings import SearchSettings

    if named.name not in strategies.OURS:
        raise UsageError(
            f"--strategies: {named.text!r} is not of this plugin; give one of {', '.join(strategies.OURS)}"
        )
    settings, plain = named.resolved(), vars(SearchSettings())
    odd = [name for name, value in settings.items() if value != plain[name] and name not in _USED]
    if odd or settings["estimator"] not in _ESTIMATORS:
        what = ", ".join(odd) or settings["estimator"]
        raise UsageError(
            f"--strategies: {named.text!r} sets {what}, which this does not compute; leave it out"
        )
    return settings


def _biases(path: Path | None, ways: list[str], shares: list[float]) -> list[dict[str, Any]]:
    """Arguments of the jobs: none, and each bias at each share."""
    if path is None:
        return [{}]
    if not path.is_file():
        raise UsageError(f"--bias: {path} does not exist; write it with supernet.py")
    known = dict.fromkeys(json.loads(row["job"])["way"] for row in runs.read(path))
    missing = [way for way in ways if way not in known]
    if missing:
        raise UsageError(f"--ways: {missing[0]!r} is not in {path}; it has {', '.join(known)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return [{}, *({"way": way, "share": share, "file": digest} for way in ways or known for share in shares)]


def _bias_name(row: runs.Row) -> str:
    return f"{row['share']:g} x {row['way']}" if row.get("way") else ""


@cache
def _prices() -> Any:
    """``(6, 5)``, parameters of an operation on an edge, relative to those of the largest network."""
    import torch

    from nni_gumbel.complexity.params import expected_parameters

    priced = space.Size(channels=CHANNELS, cells=5).space()
    parameters = expected_parameters(priced)
    nothing = dict.fromkeys(table.LABELS, 0)
    least = parameters.at(nothing)
    costs = [[parameters.at({**nothing, label: k}) - least for k in range(5)] for label in table.LABELS]
    return torch.tensor(costs) / parameters.at(
        dict.fromkeys(table.LABELS, table.OPERATIONS.index("conv_3x3"))
    )


def _draw(rows: list[runs.Row], judge: table.Table, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    kinds = dict.fromkeys((row["strategy"], _bias_name(row)) for row in rows)
    for name, bias in kinds:
        own = sorted(
            (row for row in rows if (row["strategy"], _bias_name(row)) == (name, bias)),
            key=lambda row: row["noise"],
        )
        axis.errorbar(
            [row["noise"] for row in own], [row["accuracy"] for row in own], [row["deviation"] for row in own],
            marker="o", capsize=3, label=f"{name}{', bias ' + bias if bias else ''}",
        )  # fmt: skip
    axis.axhline(judge.best, color="black", linewidth=0.8)
    axis.set(xlabel="noise of the gradient, standard deviation", ylabel="accuracy of the cell found, %")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

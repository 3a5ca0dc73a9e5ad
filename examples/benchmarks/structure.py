"""Does the regulariser commit, and does what it commits to train well?

    python examples/benchmarks/structure.py [--seeds 5] [--quick] [--workers 2] [--folder DIR]

The search of `preset: gradual` in the MNIST space against one without the structural regulariser (lambda_H = 0),
several seeds each: the mean probability of what was chosen, and the accuracy of the networks found, trained from
scratch; beside them random networks, each of the size of a network of the first, trained alike. A picture shows how the
last temperature and the last weight of the regulariser set how discrete the structure ends.

Stopped, it goes on where it was: every search and every training is a row of a CSV in the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import runs
from rich.console import Console
from rich.table import Table

# By name: what differs from the settings of `preset: gradual`, the one whose end the regulariser sets.
SEARCHES = {"gradual": {}, "lambda_H = 0": {"entropy_weight_start": 0.0, "entropy_weight_end": 0.0}}
RANDOM = "random networks"
COST_WEIGHT = 0.5  # as in experiment.yml
TEMPERATURES, WEIGHTS = (0.1, 0.3, 1.0, 3.0), (0.0, 0.1, 0.5, 2.0)
QUICK_TEMPERATURES, QUICK_WEIGHTS = (0.1, 1.0), (0.0, 2.0)
SIZE_TOLERANCE = 0.05
# The arguments of runs of either kind, which are in their rows.
_TRAINING = ("seed", "epochs", "architecture")
_SEARCH = (
    "seed", "epochs", "preset", "warmup_epochs", "cost_weight", "temperature_end", "entropy_weight_start",
    "entropy_weight_end",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="searches with and without the regulariser")
    parser.add_argument("--random", type=int, default=10, help="random networks")
    parser.add_argument("--epochs", type=int, default=8, help="of each search")
    parser.add_argument("--train-epochs", type=int, default=36, help="of each training")
    parser.add_argument(
        "--quick", action="store_true", help="trainings of 12 epochs, and a picture of 4 searches"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="CSVs and picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train_epochs = min(arguments.train_epochs, 12)
    temperatures = QUICK_TEMPERATURES if arguments.quick else TEMPERATURES
    weights = QUICK_WEIGHTS if arguments.quick else WEIGHTS
    common = {"epochs": arguments.epochs, "warmup_epochs": min(1, arguments.epochs - 1)}
    common |= {"preset": "gradual", "cost_weight": COST_WEIGHT}

    def searched(jobs: list[dict[str, Any]]) -> list[runs.Row]:
        path = arguments.folder / "structure-searches.csv"
        return list(runs.rows_of(jobs, runs.search, path, arguments.workers))

    def trained(jobs: list[dict[str, Any]]) -> list[runs.Row]:
        path = arguments.folder / "structure-trainings.csv"
        return list(runs.rows_of(jobs, runs.train, path, arguments.workers))

    seeds = range(arguments.seeds)
    jobs = {name: [{**common, "seed": s, **changed} for s in seeds] for name, changed in SEARCHES.items()}
    rows = searched([job for of_one in jobs.values() for job in of_one])
    found = {name: [_row_of(job, rows) for job in of_one] for name, of_one in jobs.items()}
    networks = {name: [row["architecture"] for row in of_one] for name, of_one in found.items()}
    networks[RANDOM] = _random_networks([r["parameters"] for r in found["gradual"]], arguments.random)
    trainings = {
        name: [
            {"seed": seed, "epochs": arguments.train_epochs, "architecture": architecture}
            for seed, architecture in enumerate(of_one)
        ]
        for name, of_one in networks.items()
    }
    ended = trained([job for of_one in trainings.values() for job in of_one])
    results = {name: [_row_of(job, ended) for job in of_one] for name, of_one in trainings.items()}

    console = Console(width=120)
    console.print(
        f"{runs.machine()}; searches of {arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}; trainings of "
        f"{arguments.train_epochs} epochs"
    )
    table = Table("", "chosen probability", "parameters", "validation, %", "test, %")
    table.title = "Networks found and random ones: mean ± standard deviation"
    for name, trained_ones in results.items():
        searches = found.get(name, [])
        table.add_row(
            name,
            runs.spread((row["chosen_probability"] for row in searches), 1, 3),
            runs.spread((row["parameters"] for row in trained_ones), 1, 0),
            runs.spread((row["validation"] for row in trained_ones), 100, 2),
            runs.spread((row["test"] for row in trained_ones), 100, 2),
        )
    console.print(table)
    grid = {
        (temperature, weight): {
            **common, "seed": 0, "temperature_end": temperature, "entropy_weight_start": 0.0,
            "entropy_weight_end": weight,
        }
        for temperature in temperatures
        for weight in weights
    }  # fmt: skip
    ends = searched(list(grid.values()))
    _draw({place: _row_of(job, ends) for place, job in grid.items()}, temperatures, weights, arguments.folder)
    console.print(
        f"wrote structure-searches.csv, structure-trainings.csv, structure.png to {arguments.folder}"
    )


def _row_of(job: dict[str, Any], rows: Iterable[runs.Row]) -> runs.Row:
    """The row of a job among rows that contain what they were called with."""
    arguments = _TRAINING if "architecture" in job else _SEARCH
    return next(row for row in rows if {name: row[name] for name in arguments if name in row} == job)


def _random_networks(sizes: list[float], number: int) -> list[str]:
    """Architectures drawn at random, the sizes taking turns."""
    from nni_gumbel import relax
    from nni_gumbel.complexity.baseline import random_network
    from nni_gumbel.complexity.params import expected_parameters
    from search_spaces.mnist import MnistSpace

    space = MnistSpace()
    distribution, cost = relax(space), expected_parameters(space)
    return [
        json.dumps(random_network(space, distribution, cost, sizes[k % len(sizes)], SIZE_TOLERANCE, seed=k))
        for k in range(number)
    ]


def _draw(
    rows: dict[tuple[float, float], runs.Row],
    temperatures: tuple[float, ...],
    weights: tuple[float, ...],
    folder: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = {
        "chosen_probability": "mean probability of what was chosen",
        "entropy": "entropy (1 is uniform)",
    }
    for axis, (name, title) in zip(axes, titles.items()):
        values = [[rows[temperature, weight][name] for weight in weights] for temperature in temperatures]
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                axis.text(
                    j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black"
                )
        axis.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
        axis.set_yticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
        axis.set(xlabel="last weight of the regulariser, lambda_H", ylabel="last temperature", title=title)
        figure.colorbar(image, ax=axis)
    figure.suptitle("How discrete a search ends")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "structure.png", dpi=150)


if __name__ == "__main__":
    main()

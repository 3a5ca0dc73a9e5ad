"""Where does a network that a search found lie among random networks of its size?

    python examples/benchmarks/mnist_networks.py [--networks 200] [--data npz:FILE] [--train-epochs 36]
        [--strategies default default:cost_weight=0] [--seeds 5] [--quick]

Trains random networks of the MNIST space alike, once: their parameters, choices, validation and test accuracy are rows
of a CSV beside this script, which goes on where it was. Searches with each strategy and seed, trains the network found
in the same way, and prints its place: of the random networks nearest to it in size, how many it beats on the test
images.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import runs
import strategies
from rich.console import Console
from rich.table import Table

from nni_gumbel import UsageError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=200, help="random ones, seeds 0, 1, ...")
    parser.add_argument("--csv", type=Path, help="of the random networks; beside this script, if left out")
    parser.add_argument("--data", default=runs.MNIST, help="mnist5k, mnist (downloaded to ./data), npz:FILE")
    parser.add_argument("--train-epochs", type=int, default=36, help="of every training")
    parser.add_argument(
        "--strategies", nargs="*", default=["default", "default:cost_weight=0"], metavar="NAME"
    )
    parser.add_argument("--search-epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5, help="searches with each strategy")
    parser.add_argument("--neighbours", type=int, default=40, help="random networks of equal size")
    parser.add_argument("--quick", action="store_true", help="3 networks, 1 epoch, 1 seed: does it run?")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="other CSVs, picture")
    arguments = parser.parse_args()
    path = arguments.csv or Path(__file__).with_suffix(".csv")
    if arguments.quick:
        arguments.networks, arguments.train_epochs, arguments.search_epochs, arguments.seeds = 3, 1, 1, 1
        path = arguments.csv or arguments.folder / "mnist_networks-quick.csv"
    from search_spaces.mnist import MnistSpace

    settings = {text: _of_ours(text) for text in arguments.strategies}
    # A file is told by its name: rows outlive the folder that it was in.
    name = arguments.data
    images = {"images": name.rpartition("/")[2] if name.startswith("npz:") else name}

    jobs = [
        {"seed": seed, "epochs": arguments.train_epochs, **images, "architecture": architecture}
        for seed, architecture in enumerate(random_networks(MnistSpace, arguments.networks))
    ]
    rows_of = partial(runs.rows_of, workers=arguments.workers, beside=runs.main_settings())
    train_on, search_on = (partial(run, data=arguments.data) for run in (train, search))
    drawn = list(rows_of(jobs, train_on, path))
    jobs = [
        {"seed": seed, "epochs": arguments.search_epochs, **images, "strategy": text, "settings": of_one}
        for text, of_one in settings.items()
        for seed in range(arguments.seeds)
    ]
    found = list(rows_of(jobs, search_on, arguments.folder / "mnist_networks-searches.csv"))
    jobs = [
        {"seed": row["seed"], "epochs": arguments.train_epochs, **images, "architecture": row["architecture"]}
        for row in found
    ]
    ended = rows_of(jobs, train_on, arguments.folder / "mnist_networks-found.csv")
    trained = {(row["seed"], row["architecture"]): row for row in ended}

    console = Console(width=120)
    console.print(
        f"{runs.machine()}; {arguments.data}; trainings of {arguments.train_epochs} epochs, searches of "
        f"{arguments.search_epochs}, seeds 0 to {arguments.seeds - 1}",
        highlight=False,
    )
    sizes, tests = [row["parameters"] for row in drawn], [row["test"] for row in drawn]
    console.print(
        f"{len(drawn)} random networks: {runs.spread(sizes, digits=0)} parameters, test accuracy "
        f"{runs.spread(tests, 100)} %",
        highlight=False,
    )
    table = Table(
        "strategy", "seed", "parameters", "validation, %", "test, %", "of random ones of its size it beats"
    )
    places: dict[str, list[float]] = {}
    for row in sorted(found, key=lambda row: (arguments.strategies.index(row["strategy"]), row["seed"])):
        own = trained[row["seed"], row["architecture"]]
        place = place_among(own["parameters"], own["test"], sizes, tests, arguments.neighbours)
        places.setdefault(row["strategy"], []).append(place)
        table.add_row(
            row["strategy"], f"{row['seed']:.0f}", f"{own['parameters']:,.0f}", f"{100 * own['validation']:.2f}",
            f"{100 * own['test']:.2f}", f"{place:.0%}",
        )  # fmt: skip
    for text, of_one in places.items():
        table.add_row(text, "all", "", "", "", f"{runs.spread(of_one, 100, 0)} %, least {min(of_one):.0%}")
    console.print(table)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    _draw(drawn, found, trained, arguments.folder / "mnist_networks.png")
    console.print(
        f"wrote {path}, mnist_networks-*.csv and mnist_networks.png in {arguments.folder}", highlight=False
    )


def place_among(
    size: float, accuracy: float, sizes: Sequence[float], accuracies: Sequence[float], neighbours: int
) -> float:
    """The share of other networks of about the same size that a network beats; a draw counts half.

    Args:
        size: of the network, > 0.
        accuracy: of the network.
        sizes: of the others, > 0.
        accuracies: of the others.
        neighbours: how many of them are of the same size: those whose sizes have the nearest logarithms.

    Returns:
        In [0, 1].
    """
    nearest = sorted(range(len(sizes)), key=lambda k: abs(math.log(sizes[k] / size)))[:neighbours]
    beaten = sum((accuracy > accuracies[k]) + (accuracy == accuracies[k]) / 2 for k in nearest)
    return beaten / len(nearest)


def random_networks(make_space: Callable[[], Any], number: int) -> list[str]:
    """Architectures as JSON: the outcomes of every label are equally likely; the first ones are always the same."""
    import torch

    from nni_gumbel import relax
    from nni_gumbel.supernet.structure import used_part

    space = make_space()
    distribution = relax(space)
    generator = torch.Generator().manual_seed(0)
    drawn = (distribution.uniform_sample(generator) for _ in range(number))
    return [json.dumps(used_part(space, sample), sort_keys=True) for sample in drawn]


def train(data: str, seed: int, epochs: int, images: str, architecture: str) -> runs.Row:
    """Train one network; the row has its choices, too. ``images`` is what the CSV calls the data set."""
    choices = {label: str(value) for label, value in json.loads(architecture).items()}
    return {**runs.train(seed, epochs, architecture, data), **choices}


def search(
    data: str, seed: int, epochs: int, images: str, strategy: str, settings: dict[str, Any]
) -> runs.Row:
    """Search once; the row has the architecture as JSON."""
    from search_spaces.mnist import MnistSpace

    named = strategies.parse(strategy)
    module = strategies.searched(named, MnistSpace, runs.main_evaluator(seed, epochs, data), seed)
    return {"architecture": json.dumps(module.export())}


def _of_ours(text: str) -> dict[str, Any]:
    named = strategies.parse(text)
    if named.is_multi_trial:
        raise UsageError(f"--strategies: {text!r} is multi-trial; give a one-shot strategy")
    return named.resolved()


def _draw(drawn: list[runs.Row], found: list[runs.Row], trained: dict[Any, runs.Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axis.plot(
        [row["parameters"] for row in drawn],
        [100 * row["test"] for row in drawn],
        "o",
        color="lightgray",
        label="random",
    )
    for place, text in enumerate(dict.fromkeys(row["strategy"] for row in found)):
        own = [trained[row["seed"], row["architecture"]] for row in found if row["strategy"] == text]
        axis.plot(
            [row["parameters"] for row in own],
            [100 * row["test"] for row in own],
            "D",
            color=f"C{place}",
            label=text,
        )
    axis.set(
        xscale="log", xlabel="parameters", ylabel="test accuracy, %", title="Networks of the MNIST space"
    )
    axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

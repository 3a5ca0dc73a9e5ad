"""Does it pay to search operations and activations together?

    python examples/benchmarks/activations.py [--minutes 2] [--strategy default] [--seeds 5] [--networks 100] [--quick]

On a small space - in each of four layers 5 operations and 4 activations - searches the operations alone (activations
ReLU), the activations alone (operations 3 x 3 convolutions), and both, each for the same CPU time on one thread; in
that time random search trains random networks of both and takes the best on validation. The networks found are trained
from scratch alike, as are random ones, once: prints accuracies, and of the random networks of its size how many each
beats. Stopped, it goes on where it was: every search and every training is a row of a CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import mnist_networks
import runs
import strategies
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nni_gumbel import UsageError

LAYERS, CHANNELS, CLASSES = 4, 12, 10
FIXED = {"operation": "conv3x3", "activation": "relu"}  # where they are not searched
KINDS = ("operations", "activations", "both")
RANDOM = "random"


def operations() -> dict[str, nn.Module]:
    def conv(kernel: int, groups: int = 1) -> nn.Module:
        return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups, bias=False)

    return {
        "conv1x1": conv(1), "conv3x3": conv(3), "separable3x3": nn.Sequential(conv(3, CHANNELS), conv(1)),
        "max_pool": nn.MaxPool2d(3, stride=1, padding=1), "identity": nn.Identity(),
    }  # fmt: skip


def activations() -> dict[str, nn.Module]:
    return {"relu": nn.ReLU(), "hardswish": nn.Hardswish(), "mish": nn.Mish(), "tanh": nn.Tanh()}


class SmallSpace(ModelSpace):
    """Four layers of an operation, a normalisation and an activation on 28 x 28 digits.

    Args:
        kind: what is searched, one of :data:`KINDS`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, CHANNELS, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        ]  # fmt: skip
        for k in range(LAYERS):
            chosen: dict[str, nn.Module] = {}
            for what, candidates in (("operation", operations()), ("activation", activations())):
                searched = kind in (f"{what}s", "both")
                chosen[what] = (
                    LayerChoice(candidates, label=f"{what}{k}") if searched else candidates[FIXED[what]]
                )
            layers += [chosen["operation"], nn.BatchNorm2d(CHANNELS), chosen["activation"]]
            if k == 1:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.layers(images).mean((2, 3)))


def completed(sample: dict[str, str]) -> dict[str, str]:
    """A network of the whole space from what was searched of it."""
    fixed = {f"{what}{k}": value for k in range(LAYERS) for what, value in FIXED.items()}
    return {**fixed, **sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", default="default", metavar="NAME", help="one-shot; NAME:key=value,...")
    parser.add_argument("--minutes", type=float, default=2, help="of each search, also the random one")
    parser.add_argument(
        "--clock", choices=strategies.CLOCKS, default="cpu", help="CPU time of the process, or wall"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--trial-epochs", type=float, default=4, help="of a network that random search trains"
    )
    parser.add_argument(
        "--networks", type=int, default=100, help="random ones that are trained for comparison"
    )
    parser.add_argument("--neighbours", type=int, default=30, help="of them are of equal size")
    parser.add_argument("--train-epochs", type=int, default=24, help="of every training from scratch")
    parser.add_argument("--data", default=runs.MNIST, help="as --data of the main job")
    parser.add_argument("--quick", action="store_true", help="seconds, one seed, one epoch: does it run?")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="CSVs and picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.seeds, arguments.trial_epochs = 0.03, 1, 0.1
        arguments.networks, arguments.train_epochs = 2, 1
    named = strategies.parse(arguments.strategy)
    if named.is_multi_trial:
        raise UsageError(f"--strategy: {arguments.strategy!r} is multi-trial; give a one-shot strategy")
    common = {name: getattr(arguments, name) for name in ("minutes", "clock", "trial_epochs", "data")}
    jobs = [
        {**common, "kind": kind, "strategy": one.text, "settings": one.resolved(), "seed": seed}
        for seed in range(arguments.seeds)
        for kind, one in (*((kind, named) for kind in KINDS), (RANDOM, strategies.parse("Random")))
    ]
    path, main_settings = arguments.folder / "activations-searches.csv", runs.main_settings()
    found = list(runs.rows_of(jobs, search, path, arguments.workers, main_settings))
    train_on = {"epochs": arguments.train_epochs, "data": arguments.data}
    drawn = [
        {**train_on, "seed": seed, "architecture": architecture}
        for seed, architecture in enumerate(
            mnist_networks.random_networks(partial(SmallSpace, "both"), arguments.networks)
        )
    ]
    ended = [{**train_on, "seed": row["seed"], "architecture": row["architecture"]} for row in found]
    path = arguments.folder / "activations-trainings.csv"
    trained = {
        (row["seed"], row["architecture"]): row
        for row in runs.rows_of([*drawn, *ended], train, path, arguments.workers, main_settings)
    }
    random_ones = [trained[job["seed"], job["architecture"]] for job in drawn]
    sizes, tests = [row["parameters"] for row in random_ones], [row["test"] for row in random_ones]

    console = Console(width=130)
    console.print(
        f"{runs.machine()}; {arguments.strategy}, {arguments.minutes:g} minutes of {arguments.clock} a search, seeds 0 "
        f"to {arguments.seeds - 1}; trainings of {arguments.train_epochs} epochs; {len(drawn)} random networks: test "
        f"{runs.spread(tests, 100)} %",
        highlight=False,
    )
    table = Table(
        "searched", "parameters", "validation, %", "test, %", "beats of its size", "seconds", "work"
    )
    results = {}
    for kind in (*KINDS, RANDOM):
        rows = [row for row in found if row["kind"] == kind]
        own = results[kind] = [trained[row["seed"], row["architecture"]] for row in rows]
        places = [
            mnist_networks.place_among(row["parameters"], row["test"], sizes, tests, arguments.neighbours)
            for row in own
        ]
        table.add_row(
            kind if kind != RANDOM else "both, at random",
            runs.spread([row["parameters"] for row in own], digits=0),
            runs.spread([row["validation"] for row in own], 100),
            runs.spread([row["test"] for row in own], 100),
            f"{runs.spread(places, 100, 0)} %",
            runs.spread([row["seconds"] for row in rows], digits=0),
            rows[0]["work"],
        )
    console.print(table)
    _draw(results, random_ones, arguments.folder / "activations.png")
    console.print(f"wrote activations-*.csv and activations.png to {arguments.folder}", highlight=False)


def search(**job: Any) -> runs.Row:
    """One search; the row has the whole network as JSON."""
    import alone
    from halves import HalvedImages

    from nni_gumbel.data.images import augmentation_of
    from nni_gumbel.data.sources import read_parts

    settings, parts = runs.main_settings(), read_parts(job["data"], "data")
    data = HalvedImages(
        parts, augmentation_of(job["data"], parts), batch_size=settings.pop("batch_size"), seed=job["seed"]
    )

    def train_alone(network: Any) -> float:
        data.batches = None
        return alone.train(network, data, epochs=job["trial_epochs"], learning_rate=0.1)["val_acc"]

    kind = "both" if job["kind"] == RANDOM else job["kind"]
    found = strategies.search_within(
        strategies.parse(job["strategy"]), partial(SmallSpace, kind), data, train=train_alone,
        seconds=60 * job["minutes"], clock=job["clock"], seed=job["seed"],
        **settings,
    )  # fmt: skip
    if found.sample is None:
        raise RuntimeError(found.error)
    return {
        "architecture": json.dumps(completed(found.sample), sort_keys=True),
        "seconds": round(found.seconds, 2),
        "work": found.work,
    }


def train(seed: int, epochs: int, data: str, architecture: str) -> runs.Row:
    """Train one network of the whole space from scratch; the row has its choices, too."""
    row = runs.train_in(partial(SmallSpace, "both"), seed, epochs, architecture, data)
    return {**row, **json.loads(architecture)}


def _draw(results: dict[str, list[runs.Row]], random_ones: list[runs.Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    shown = {"random networks": random_ones, **{f"found: {kind}": rows for kind, rows in results.items()}}
    for place, (name, rows) in enumerate(shown.items()):
        axis.plot(
            [row["parameters"] for row in rows], [100 * row["test"] for row in rows],
            "D" if place else "o", color=f"C{place - 1}" if place else "lightgray", label=name,
        )  # fmt: skip
    axis.set(xlabel="parameters", ylabel="test accuracy, %", title="Operations, activations, both")
    axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

"""The paper's table: found networks against larger, random and pruned ones, and against other searches.

    python examples/paper/run.py mnist --data npz:mnist.npz [--hours 8] [--rows found darts ...] [--seeds 3]
    python examples/paper/run.py cifar10 --quick

Every search has the same time on one thread, every network the same training. The test part is looked at once, after
the last epoch, and nothing is chosen by it. Stopped, or out of hours, it goes on where it was: each search and each
training is a row of a CSV. Writes table.md, front.png and removal.png to --folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import runs
import strategies
from rich.console import Console
from rich.progress import track

from nni_gumbel import UsageError
from nni_gumbel.errors import nearest

RANDOM, LARGEST, PRUNED, OVERSIZED = "random", "largest", "pruned", "over-sized"


@dataclass(frozen=True)
class DataSet:
    """What a data set is searched for with.

    Attributes:
        space: keyword arguments of the space.
        budgets: numbers of parameters.
        minutes: of a search.
        epochs: of a training.
        batch_size: of both.
    """

    space: dict[str, Any]
    budgets: tuple[int, ...]
    minutes: float
    epochs: int
    batch_size: int


DATA = {
    "mnist": DataSet({}, (2_000, 9_000, 50_000), minutes=10, epochs=10, batch_size=128),
    "cifar10": DataSet(
        {"in_channels": 3, "width": 64}, (50_000, 100_000, 300_000), minutes=10, epochs=8,
        batch_size=128,
    ),
}  # fmt: skip
QUICK = {"minutes": 1.0, "epochs": 4}


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: of the row.
        strategy: as `strategies.parse` reads it; or one of the words above, for what is not searched.
        budget: of parameters, or none.
        space: further arguments of the space.
    """

    name: str
    strategy: str
    budget: int | None = None
    space: tuple[tuple[str, str], ...] = ()

    @property
    def is_searched(self) -> bool:
        return self.strategy not in (RANDOM, LARGEST, PRUNED, OVERSIZED)


def lines_of(data: DataSet) -> list[Line]:
    """The rows of the table, in its order."""
    small = data.budgets[1]
    within = {budget: f"≤ {budget:,}" for budget in data.budgets}
    return [
        Line("found", "default"),
        *(Line(f"found {words}", f"default:max_params={budget}", budget) for budget, words in within.items()),
        Line("largest", LARGEST),
        *(Line(f"random {words}", RANDOM, budget) for budget, words in within.items()),
        *(Line(f"pruned {words}", PRUNED, budget) for budget, words in within.items()),
        Line("over-sized (VGG)", OVERSIZED),
        Line("DARTS of NNI", "DARTS"),
        Line("GumbelDARTS of NNI", "GumbelDARTS"),
        *(
            Line(f"{preset} {within[small]}", f"{preset}:max_params={small}", small)
            for preset in ("darts", "snas", "gdas")
        ),
        Line("genetic", "RegularizedEvolution"),
        Line("reinforcement learning", "PolicyBasedRL"),
        Line("random search", "Random"),
        Line("TPE", "TPE"),
        Line(f"operations alone {within[small]}", f"default:max_params={small}", small, (("activation", "relu"),)),
        Line(f"activations alone {within[small]}", f"default:max_params={small}", small, (("operation", "conv3x3"),)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=DATA, metavar="|".join(DATA), help="what is searched for")
    parser.add_argument("--data", help="as --data of the main job; the set's own name, if left out")
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="those alone whose name begins with a word")
    parser.add_argument("--seeds", type=int, default=3, help="searches for each row")
    parser.add_argument("--train-seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--minutes", type=float, help="of each search, of CPU time on one thread")
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--hours", type=float, help="begin nothing after so many")
    parser.add_argument("--quick", action="store_true", help="mnist5k or the set, minutes a row, one seed")
    parser.add_argument(
        "--folder", type=Path, help="CSVs, table and pictures; paper-results/SET, if left out"
    )
    arguments = parser.parse_args()
    preset = DATA[arguments.set]
    if arguments.quick:
        arguments.seeds = arguments.train_seeds = 1
    quick = QUICK if arguments.quick else {}
    minutes = arguments.minutes or quick.get("minutes", preset.minutes)
    epochs = arguments.epochs or quick.get("epochs", preset.epochs)
    data = arguments.data or ("mnist5k" if arguments.quick and arguments.set == "mnist" else arguments.set)
    folder = arguments.folder or Path("paper-results") / arguments.set
    lines = _wanted(lines_of(preset), arguments.rows)
    common = {"data": data, "batch_size": preset.batch_size}
    over = None if arguments.hours is None else time.monotonic() + 3600 * arguments.hours

    searches = [
        {**common, "line": line.name, "strategy": line.strategy, "minutes": minutes, "seed": seed,
         "space": {**preset.space, **dict(line.space)}}
        for seed in range(arguments.seeds)
        for line in lines
        if line.is_searched
    ]  # fmt: skip
    found = _rows(searches, search, folder / "searches.csv", over)
    networks = list(_networks(lines, found, preset, arguments.seeds))
    trainings = [
        {**common, "epochs": epochs, "network": network, "line": name, "search_seed": of, "seed": seed}
        for seed in range(arguments.train_seeds)
        for name, of, network in networks
    ]
    trained = _rows(trainings, train, folder / "trainings.csv", over)

    import report

    report.write(folder, lines, found, trained, heading=f"{arguments.set} ({data}), {runs.machine()}")
    Console().print((folder / "table.md").read_text())
    missing = len(searches) + len(trainings) - len(found) - len(trained)
    if missing:
        print(
            f"{missing} searches and trainings are left; the same command goes on with them", file=sys.stderr
        )


def _wanted(lines: list[Line], words: list[str] | None) -> list[Line]:
    for word in words or ():
        if not any(line.name.startswith(word) for line in lines):
            raise UsageError(f"--rows: {word!r} begins no row{nearest(word, [line.name for line in lines])}")
    return [line for line in lines if words is None or any(line.name.startswith(word) for word in words)]


def _rows(jobs: list[runs.Row], run: Any, path: Path, over: float | None) -> list[runs.Row]:
    """The rows of all jobs that are done, or can be begun in time; one process at a time."""
    rows = []
    for job in track(jobs, path.stem):
        in_time = over is None or time.monotonic() < over
        rows += runs.rows_of([job], run, path, workers=int(in_time))
    return rows


def _networks(
    lines: list[Line], found: list[runs.Row], preset: DataSet, seeds: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """What is trained: row, seed of its search, and a description of the network."""
    from nni_gumbel import relax
    from nni_gumbel.complexity.baseline import random_network
    from nni_gumbel.complexity.budget import largest
    from nni_gumbel.complexity.params import expected_parameters

    space = space_of(preset.space)
    priced = space, relax(space), expected_parameters(space)

    def described(sample: dict[str, Any]) -> dict[str, Any]:
        return {"space": preset.space, "architecture": json.dumps(sample, sort_keys=True)}

    _, most = largest(*priced)
    for line in lines:
        if line.is_searched:
            for row in found:
                if row["line"] == line.name and row.get("architecture"):
                    yield line.name, row["seed"], {"space": row["space"], "architecture": row["architecture"]}
        elif line.strategy == OVERSIZED:
            yield line.name, 0, {"vgg": preset.space.get("in_channels", 1)}
        elif line.strategy == LARGEST:
            yield line.name, 0, described(most)
        elif line.strategy == PRUNED:
            yield line.name, 0, {**described(most), "pruned_to": line.budget}
        else:
            for seed in range(seeds):
                # A search within a budget spends most of it: 85 to 100 %.
                size = 0.925 * line.budget
                yield (
                    line.name,
                    seed,
                    described(random_network(*priced, size=size, tolerance=0.08, seed=seed)),
                )


# -- one search, one training: each in a process of its own -----------------------------------------------


def space_of(arguments: dict[str, Any]) -> Any:
    from search_spaces.tiny import TinySpace

    return TinySpace(**arguments)


def search(
    data: str, batch_size: int, line: str, strategy: str, minutes: float, seed: int, space: dict[str, Any]
) -> runs.Row:
    """One search; the row has the network as JSON, or NNI's error."""
    import alone
    from halves import HalvedImages

    from nni_gumbel.data.images import augmentation_of
    from nni_gumbel.data.sources import read_parts

    settings, parts = runs.main_settings(), read_parts(data, "data")
    images = HalvedImages(parts, augmentation_of(data, parts), batch_size=batch_size, seed=seed)

    def train_alone(network: Any) -> float:
        images.batches = None
        return alone.train(network, images, epochs=1, learning_rate=0.1)["val_acc"]

    found = strategies.search_within(
        strategies.parse(strategy), partial(space_of, space), images, seconds=60 * minutes, clock="cpu", seed=seed,
        learning_rate=settings["learning_rate"], weight_decay=settings["weight_decay"], train=train_alone,
    )  # fmt: skip
    sample = {} if found.sample is None else {"architecture": json.dumps(found.sample, sort_keys=True)}
    return {**sample, "seconds": round(found.seconds, 1), "work": found.work, "error": found.error}


def train(
    data: str, batch_size: int, epochs: int, network: dict[str, Any], line: str, search_seed: int, seed: int
) -> runs.Row:
    """Train a network and measure it: accuracy, sizes, latency, stability on the test part."""
    import torch

    from nni_gumbel.complexity.flops import count_flops
    from nni_gumbel.complexity.latency import alone_on_a_core, measure_latency
    from nni_gumbel.complexity.params import count_parameters
    from nni_gumbel.pipeline.evaluator import result_on_test_part, score_on, some_examples
    from nni_gumbel.results.perturbation import measure_stability
    from nni_gumbel.results.pruning import prune

    evaluator = runs.main_evaluator(seed, epochs, data, batch_size=batch_size)
    made = _made(network)
    begun = time.perf_counter()
    evaluator.evaluate(made)
    removed = 0
    if "pruned_to" in network:
        removed = prune_and_tune(
            made, network["pruned_to"], partial(runs.main_evaluator, seed, epochs, data), batch_size
        )
        evaluator.trainer.validate(evaluator.module, datamodule=evaluator.datamodule, verbose=False)
    seconds = time.perf_counter() - begun
    validation = float(evaluator.trainer.callback_metrics["val_acc"])
    # Every second batch of 512 test images that are evenly spaced: all disturbances of all images would take hours.
    batches = some_examples(evaluator, "cheap", on_test_part=True)[::2]
    stability = measure_stability(
        made, batches, partial(score_on, evaluator, "acc"), metric="acc", minimize=False, full=True
    )
    example = torch.zeros(1, *evaluator.datamodule.input_shape)
    delivered = prune(made.cpu().eval(), example)
    with alone_on_a_core():
        latency = measure_latency(delivered, (example,))
    parts = {
        f"stability: {curve.name}": stability.model_copy(update={"curves": (curve,)}).index
        for curve in stability.curves
    }
    return {
        "validation": validation,
        "test": result_on_test_part(evaluator, "acc"),
        "parameters": count_parameters(delivered) - removed,
        "parameters_trained": count_parameters(made) - removed,
        "flops": count_flops(delivered, example),
        "latency_ms": latency,
        "seconds": round(seconds, 1),
        "stability": stability.index,
        **parts,
        "calibration_error": stability.calibration_error,
        "curves": json.dumps({curve.name: [curve.strengths, curve.values] for curve in stability.curves}),
    }


def _made(network: dict[str, Any]) -> Any:
    if "vgg" in network:
        return vgg(network["vgg"])
    from nni_gumbel.results.space import network_of, sample_of

    space = space_of(network["space"])
    return network_of(space, sample_of(space, json.loads(network["architecture"])))


def vgg(in_channels: int) -> Any:
    """Three convolutions and three large layers as in VGG (arXiv 1409.1556), 10.6 million parameters."""
    from torch import nn

    layers: list[nn.Module] = []
    for width in (64, 128, 256):
        layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        in_channels = width
    layers += [nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    for before, after in ((9 * 256, 3072), (3072, 1024)):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def prune_and_tune(network: Any, size: int, evaluator_of: Any, batch_size: int) -> int:
    """Remove the smallest weights of all layers until so many parameters are left, and train on without them.

    Returns:
        How many weights were removed: they are 0, and counted nowhere.
    """
    import torch
    from torch import nn
    from torch.nn.utils import prune as magnitude

    from nni_gumbel.complexity.params import count_parameters

    layers = [
        (module, "weight") for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    removed = count_parameters(network) - size
    magnitude.global_unstructured(layers, magnitude.L1Unstructured, amount=removed)
    evaluator_of(batch_size=batch_size).evaluate(network)
    for layer, name in layers:
        magnitude.remove(layer, name)
    assert sum(int(torch.count_nonzero(layer.weight == 0)) for layer, _ in layers) >= removed
    return removed


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

"""What do the weights of a supernet know of single cells, by how they were trained and for how long?

    python examples/benchmarks/nasbench201/supernet.py --table FILE --images FILE [--ways mixture gumbel:0.3 single ...]
        [--steps 93 186 372 744] [--no-affine] [--statistics running] [--seeds 3] [--quick]

Trains the weights of NNI's NasBench201, relaxed by this plugin, its logits held at 0, in one of these ways:

    mixture     all candidates, equally weighted
    gumbel:T    all candidates, weights of a Gumbel-softmax at temperature T
    single      one network, drawn uniformly
    fair        five networks a step in which every candidate occurs once (FairNAS, arXiv 1907.01845)
    warmup      the mixture for a quarter of the steps, then single networks

After given numbers of steps three judgements of cells are compared with the table by rank (Spearman), and what each of
them would choose: the loss of single cells with these weights; a linear model of these losses (a coefficient for each
operation on each edge); and the gradient of the logits at the undecided mixture, summed since the last measurement, as
it is and each edge's divided by its norm. Stopped, it goes on where it was: every training is a row of the CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import runs
import space
import table
from proxy import correlation
from rich.console import Console
from rich.table import Table

WAYS = ("mixture", "gumbel:1", "gumbel:0.3", "single", "fair", "warmup")
STEPS = (31, 62, 93, 124, 186, 372, 744)
JUDGEMENTS = ("cells", "linear", "gradient", "normalised")
CLIP = 5.0
# Of the linear model: the losses of some 80 cells have 31 coefficients.
_RIDGE = 1.0
_WARM_UP = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__.partition("ways:")[2].partition("After")[0]
    )
    space.add_arguments(parser)
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[31, 62, 93, 124, 186, 372, 744], help="when to measure"
    )
    parser.add_argument("--drawn", type=int, default=80, help="cells whose losses are measured")
    parser.add_argument("--judged", type=int, default=512, help="images by which")
    parser.add_argument(
        "--statistics", choices=("batch", "running"), default="batch", help="of BatchNorm, for that"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the gradient; 0 is without noise")
    parser.add_argument(
        "--no-affine", action="store_true", help="candidates' BatchNorms without scale and shift"
    )
    parser.add_argument("--learning-rate", type=float, default=0.025, help="of the weights (SGD)")
    parser.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="of that rate")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.drawn, arguments.judged, arguments.seeds = [2, 4], 8, 32, 1
    judge, size = table.read(arguments.table), space.Size.of(arguments)
    size.read(arguments.images, seed=0)
    for way in arguments.ways:
        check(way)
    names = (
        "drawn",
        "judged",
        "statistics",
        "temperature",
        "no_affine",
        "learning_rate",
        "schedule",
        "smoothing",
    )
    common = {
        **size.job(),
        **{name: getattr(arguments, name) for name in names},
        "steps": sorted(arguments.steps),
    }
    jobs = [{**common, "way": way, "seed": seed} for seed in range(arguments.seeds) for way in arguments.ways]
    path = arguments.folder / (
        "nasbench201-supernet-quick.csv" if arguments.quick else "nasbench201-supernet.csv"
    )
    rows = list(runs.rows_of(jobs, partial(train, images=str(arguments.images)), path, arguments.workers))
    judged = [one for row in rows for one in _judged(row, judge)]
    runs.write(judged, path.with_stem(f"{path.stem}-judged"))

    console = Console(width=180)
    changed = ", ".join(f"{name} {common[name]}" for name in names)
    console.print(f"{runs.machine()}; {size}; {changed}; seeds 0 to {arguments.seeds - 1}", highlight=False)
    title = f"Spearman with the table (cells: {arguments.drawn} drawn, else all), and accuracy of what would be chosen"
    shown = Table("weights", "steps", "seconds", title=title)
    for name in JUDGEMENTS:
        shown.add_column(name)
        shown.add_column("chosen")
    shown.add_column("normalised,\nseeds together")
    for way in arguments.ways:
        for step in common["steps"]:
            own = [one for one in judged if (one["way"], one["step"]) == (way, step)]
            cells = [
                runs.spread([one[column] for one in own])
                for name in JUDGEMENTS
                for column in (name, f"{name}_chosen")
            ]
            cell = chosen_together([row for row in rows if row["way"] == way], step)
            cells.append(f"{table.short(cell)} {judge.accuracy(cell):.2f}")
            shown.add_row(way, str(step), runs.spread([one["seconds"] for one in own], digits=0), *cells)
        shown.add_section()
    console.print(shown)
    _draw(judged, list(arguments.ways), path.with_suffix(".png"))
    console.print(f"wrote {path}, {path.stem}-judged.csv and {path.stem}.png", highlight=False)


def check(way: str) -> None:
    """Raises UsageError: there is no such way."""
    from nni_gumbel import UsageError

    name, _, temperature = way.partition(":")
    known = {one.partition(":")[0] for one in WAYS}
    try:
        fits = name in known and (float(temperature) > 0 if name == "gumbel" else not temperature)
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"--ways: {way!r} is unknown; give some of {', '.join(WAYS)}")


# -- the training ------------------------------------------------------------------------------------


def train(images: str, **job: Any) -> runs.Row:
    """Train one supernet; the row has the cells measured, and as JSON what was measured when.

    A measurement: ``step``, ``seconds`` of CPU time so far without measurements, ``losses`` of the cells, ``gradient``
    and ``normalised``: ``(6, 5)``, mean gradient of the logits since the last measurement.
    """
    import pytorch_lightning as pl
    import torch
    from torch.nn.functional import cross_entropy

    from nni_gumbel import relax

    pl.seed_everything(job["seed"], verbose=False)
    size = space.Size(**{name: job[name] for name in space.Size().job()})
    data = size.read(Path(images), seed=job["seed"])
    supernet = size.space()
    if job["no_affine"]:
        without_affine(supernet)
    distribution = relax(supernet)
    logits = [distribution.logits[label] for label in table.LABELS]
    total = max(job["steps"])
    optimizer = torch.optim.SGD(
        supernet.parameters(), job["learning_rate"], momentum=0.9, weight_decay=3e-4, foreach=True
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    cells = [
        tuple(int(k) for k in cell)
        for cell in np.random.default_rng(job["seed"]).integers(len(table.OPERATIONS), size=(job["drawn"], 6))
    ]
    judged = _images_in_order(data, job["judged"])
    training, validation = _endless(data.train_dataloader), _endless(data.structure_dataloader)

    def loss_of(batch: Any) -> torch.Tensor:
        return cross_entropy(supernet(batch[0]), batch[1], label_smoothing=job["smoothing"])

    supernet.train()
    sums = [np.zeros((6, 5)), np.zeros((6, 5))]
    measurements, seconds, last = [], 0.0, 0
    for step in range(1, total + 1):
        began = time.process_time()
        if job["temperature"]:
            distribution.sample(job["temperature"])
        else:
            distribution.use_probabilities()
        found = torch.autograd.grad(loss_of(next(validation)), logits, materialize_grads=True)
        gradient = torch.stack(found).numpy().astype(float)
        sums[0] += gradient
        sums[1] += gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)

        optimizer.zero_grad()
        networks = 0
        batch = next(training)
        for _ in draws(distribution, job["way"], step / total):
            loss_of(batch).backward()
            networks += 1
        if networks > 1:
            for parameter in supernet.parameters():
                if parameter.grad is not None:
                    parameter.grad /= networks
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), CLIP)
        optimizer.step()
        if job["schedule"] == "cosine":
            cosine.step()
        for logit in logits:
            logit.grad = None
        seconds += time.process_time() - began
        if step in job["steps"]:
            losses = losses_of(supernet, distribution, cells, judged, job["statistics"])
            means = [(total_of / (step - last)).round(6).tolist() for total_of in sums]
            measurements.append(
                {
                    "step": step, "seconds": round(seconds, 2), "losses": losses,
                    "gradient": means[0], "normalised": means[1],
                }
            )  # fmt: skip
            sums, last = [np.zeros((6, 5)), np.zeros((6, 5))], step
    return {
        "cells": json.dumps([table.arch_of(cell) for cell in cells]),
        "measurements": json.dumps(measurements),
    }


def draws(distribution: Any, way: str, progress: float) -> Iterator[None]:
    """Make the samples of one weight step current, one after the other.

    Args:
        distribution: its logits are 0.
        way: one of :data:`WAYS`, at any temperature.
        progress: of the training, in (0, 1].
    """
    import torch

    with torch.no_grad():
        if way == "fair":
            orders = np.array([torch.randperm(len(table.OPERATIONS)).tolist() for _ in table.LABELS])
            for cell in orders.T:
                distribution.use_architecture(table.sample_of(tuple(cell.tolist())))
                with torch.enable_grad():
                    yield
            return
        if way.startswith("gumbel"):
            distribution.sample(float(way.partition(":")[2]))
        elif way == "single" or (way == "warmup" and progress > _WARM_UP):
            distribution.sample(1.0, "straight-through-gumbel", uniform=True)
        else:
            distribution.use_probabilities()
        with torch.enable_grad():
            yield


def losses_of(
    supernet: Any, distribution: Any, cells: list[table.Cell], batch: Any, statistics: str
) -> list[float]:
    """The loss of single cells with a supernet's weights.

    Args:
        supernet: left as it is.
        distribution: of it.
        cells: to be judged.
        batch: images and labels.
        statistics: of BatchNorm: ``batch``, those of each cell on these images, or ``running``, the training's.
    """
    import torch
    from torch.nn.functional import cross_entropy

    losses = []
    with torch.no_grad(), _judging(supernet, statistics):
        for cell in cells:
            distribution.use_architecture(table.sample_of(cell))
            losses.append(round(float(cross_entropy(supernet(batch[0]), batch[1])), 5))
    return losses


@contextmanager
def _judging(supernet: Any, statistics: str) -> Iterator[None]:
    import torch

    norms = [module for module in supernet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    supernet.train(statistics == "batch")
    for norm in norms:
        norm.momentum = 0.0  # the running statistics stay
    yield
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    supernet.train()


def without_affine(model: Any) -> None:
    """Take scale and shift from the BatchNorms of all candidates, in place."""
    import torch
    from nni.nas.nn.pytorch import LayerChoice

    for choice in model.modules():
        if isinstance(choice, LayerChoice):
            for norm in choice.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.affine, norm.weight, norm.bias = False, None, None


def _images_in_order(data: Any, number: int) -> Any:
    import torch

    batches = list(data.in_order())
    return tuple(torch.cat(part)[:number] for part in zip(*batches))


def _endless(loader: Any) -> Iterator[Any]:
    batches = loader()
    while True:
        yield from batches


# -- the judgement -----------------------------------------------------------------------------------


def _judged(row: runs.Row, judge: table.Table) -> list[dict[str, Any]]:
    """A row for each measurement."""
    cells = np.array([table.parse(arch) for arch in json.loads(row["cells"])])
    judged = []
    for measured in json.loads(row["measurements"]):
        losses = np.array(measured["losses"])
        of_cells = [judge.accuracy(cell) for cell in cells]
        one = {name: row[name] for name in ("way", "seed")}
        one |= {name: measured[name] for name in ("step", "seconds")}
        one["cells"] = correlation((-losses).tolist(), of_cells)
        one["cells_chosen"] = of_cells[int(losses.argmin())]
        costs = {
            "linear": linear_model(cells, losses),
            "gradient": np.array(measured["gradient"]),
            "normalised": np.array(measured["normalised"]),
        }
        for name, cost in costs.items():
            scores = -additive(cost)
            chosen = tuple(int(k) for k in cost.argmin(1))
            one[name] = correlation(scores.ravel().tolist(), judge.test.ravel().tolist())
            one |= {f"{name}_chosen": judge.accuracy(chosen), f"{name}_cell": table.short(chosen)}
        judged.append(one)
    return judged


def chosen_together(rows: list[runs.Row], step: int) -> table.Cell:
    """What the normalised gradients of several trainings, up to a measurement, choose in their mean."""
    measured = [one for row in rows for one in json.loads(row["measurements"]) if one["step"] == step]
    cost = np.mean([one["normalised"] for one in measured], axis=0)
    return tuple(int(k) for k in cost.argmin(1))


def linear_model(cells: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """``(6, 5)``, what each operation on each edge adds to the loss: least squares with a ridge of 1.

    Args:
        cells: ``(n, 6)`` integers.
        losses: ``(n,)``.
    """
    x = np.eye(len(table.OPERATIONS))[cells].reshape(len(cells), -1)
    centred = x - x.mean(0)
    gram = centred.T @ centred + _RIDGE * np.eye(x.shape[1])
    return np.linalg.solve(gram, centred.T @ (losses - losses.mean())).reshape(6, -1)


def additive(costs: np.ndarray) -> np.ndarray:
    """``(5, 5, 5, 5, 5, 5)``, for every cell the sum of ``costs``, ``(6, 5)``, over its edges."""
    total = np.zeros(table.SHAPE)
    for edge, cost in enumerate(costs):
        total = total + cost.reshape([-1 if axis == edge else 1 for axis in range(6)])
    return total


def _draw(judged: list[dict[str, Any]], ways: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(JUDGEMENTS), figsize=(15, 7), layout="constrained", sharex=True, sharey="row"
    )
    for column, name in enumerate(JUDGEMENTS):
        for place, way in enumerate(ways):
            own = [one for one in judged if one["way"] == way]
            steps = sorted({one["step"] for one in own})
            for axis, key in zip(axes[:, column], (name, f"{name}_chosen")):
                means = [np.mean([one[key] for one in own if one["step"] == step]) for step in steps]
                axis.plot(steps, means, "o-", markersize=3, color=f"C{place}", label=way)
        axes[0, column].set_title(name)
        axes[0, column].axhline(0, color="black", linewidth=0.6)
        axes[1, column].set(xlabel="steps", xscale="log")
        steps = sorted({one["step"] for one in judged})
        axes[1, column].set_xticks(steps, [str(step) for step in steps], fontsize="small")
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("Spearman with the table")
    axes[1, 0].set_ylabel("accuracy of what is chosen, %")
    axes[0, -1].legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    from nni_gumbel import UsageError

    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

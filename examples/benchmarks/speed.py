"""What does a step of a search cost, compared with training one network of its space?

    python examples/benchmarks/speed.py [--quick] [--folder DIR] [--device cuda --precision bf16]

Trains with this strategy, with NNI's GumbelDARTS, DARTS and Proxyless, and plainly (a) the largest
single network of the space and (b) random ones. Each mode is a living process on one thread; the processes take
turns, so that what else the machine does meets all of them alike. Prints times and memory as ratios to (a) and (b):
median, least and greatest of the turns; then which bars hold. Writes all turns as CSV, and a picture of the cost
against the number of candidates.

Memory is what a step holds beside the weights: bytes saved for the backward pass, by storage, and gradients.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import runs
from rich import box
from rich.console import Console
from rich.table import Table
from speed_modes import LARGEST, MODES, RANDOM
from speed_turns import Turn, Worker, measure, ratios

CHAINS = (2, 4, 8, 16, 32)
SPACES = ("mnist", "nasbench201", "activations", *(f"chain{k}" for k in CHAINS))
TITLES = {
    "mnist": "MNIST space, batch 64",
    "nasbench201": "NAS-Bench-201, 16 channels, 1 cell a stack, batch 16",
    "activations": "9 activations between 1x1 convolutions, 16 channels, 28x28, batch 32",
}
QUICK_SPACES, QUICK_MODES = (
    ("mnist", "chain2"),
    (LARGEST, RANDOM, "GumbelSearch", "GumbelDARTS"),
)
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
PARTS = ("weight", "structure", "both", "pair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--alternations", type=_positive(int), default=5, help="turns of every mode on every space"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=0.8, help="of a turn, but at least one pair of steps"
    )
    parser.add_argument(
        "--minutes",
        type=_positive(float),
        default=14,
        help="of all; turns become shorter, where it takes longer",
    )
    parser.add_argument(
        "--spaces", nargs="+", default=SPACES, choices=SPACES, metavar="NAME", help=", ".join(SPACES)
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="NAME", help="all, if left out")
    parser.add_argument(
        "--quick", action="store_true", help="few spaces, modes and steps, its own: does it run?"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="of the Trainer")
    parser.add_argument("--batch-scale", type=_positive(float), default=1.0, help="factor of all batch sizes")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="CSV and picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.alternations, arguments.seconds = min(arguments.alternations, 2), 0.05
        arguments.spaces, arguments.batch_scale = QUICK_SPACES, 0.1
        arguments.modes = QUICK_MODES
    wanted = {LARGEST, RANDOM, *(arguments.modes or MODES)}
    modes = {name: mode for name, mode in MODES.items() if name in wanted}
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no GPU; give --device cpu")
    precision = PRECISIONS[arguments.precision]
    options = {"device": arguments.device, "precision": precision, "scale": arguments.batch_scale}

    began = time.perf_counter()
    console = Console(width=155)
    console.print(
        f"{runs.machine(arguments.device)}; {precision}, batches x {arguments.batch_scale:g}", highlight=False
    )
    workers = [Worker(name, mode, options) for name, mode in modes.items()]
    turns: list[Turn] = []
    for k, space in enumerate(arguments.spaces):
        left = 60 * arguments.minutes - (time.perf_counter() - began)
        # Half of the time goes to opening, warming up and measuring memory.
        share = 0.5 * left / (len(arguments.spaces) - k) / len(workers) / arguments.alternations
        measured = measure(space, workers, arguments.alternations, min(arguments.seconds, share))
        turns += measured
        _write(turns, arguments.folder / "speed.csv")
        console.print(_table(space, workers, measured, arguments.device))
    for worker in workers:
        worker.end()
    if not arguments.quick:  # whose sizes are not those of the bars
        console.print(_bars(turns))
    _draw(turns, list(modes), arguments.folder / "speed.png")
    minutes = (time.perf_counter() - began) / 60
    console.print(f"wrote {arguments.folder}/speed.csv and speed.png; {minutes:.1f} minutes")


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = "positive number"  # as argparse calls it in its message
    return number


# -- what is printed ---------------------------------------------------------------------------------


def _table(space: str, workers: Iterable[Worker], turns: list[Turn], device: str) -> Table:
    title = (
        TITLES.get(space)
        or f"dense convolutions, K = {space.removeprefix('chain')}, 16 channels, 28x28, batch 32"
    )
    refused: list[str] = []
    table = Table("", title=title, box=box.SIMPLE_HEAD, padding=0)
    for words in (*(f"{part}\n/ (a)" for part in PARTS), "weight\n/ (b)"):
        table.add_column(words, justify="right")
    for words in ("/ (a)", "/ (b)", "structure / (a)"):
        table.add_column(f"memory\n{words}", justify="right")
    for words in ("weight", "structure"):
        table.add_column(f"{words}\nms", justify="right")
    if device == "cuda":
        table.add_column("peak\nMB", justify="right")
    for worker in workers:
        mode = worker.name
        if worker.reason is not None:
            table.add_row(mode)
            refused.append(f"{mode} cannot train it: {worker.reason}")
            continue
        cells = [
            _spread(ratios(turns, space, (mode, part), (LARGEST, "pair" if part == "pair" else "weight")))
            for part in PARTS
        ]
        cells.append(_spread(ratios(turns, space, (mode, "weight"), (RANDOM, "weight"))))
        for part, name in (("weight", LARGEST), ("weight", RANDOM), ("structure", LARGEST)):
            found = ratios(turns, space, (mode, part), (name, "weight"), "megabytes")
            cells.append(f"{found[0]:.2f}" if found else "")
        own = [turn for turn in turns if turn.mode == mode]
        for part in ("weight", "structure"):
            found = [turn.milliseconds[part] for turn in own if part in turn.milliseconds]
            cells.append(f"{median(found):.2f}" if found else "")
        if device == "cuda":
            cells.append(f"{max((turn.peak for turn in own if turn.megabytes), default=0):.0f}")
        table.add_row(mode, *cells)
    table.caption = "\n".join(refused) or None
    return table


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    digits = 2 if max(values) < 10 else 1
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _bars(turns: list[Turn]) -> Table:
    """What the project promises, and whether this run has it."""
    table = Table("bar", "measured", "limit", "holds", title="Bars")
    weight = (LARGEST, "weight")

    def bar(words: str, values: list[float], limit: float, at_most: bool = True) -> None:
        if not values:
            table.add_row(words, "not measured", f"{limit:g}", "")
            return
        held = median(values) <= limit if at_most else median(values) >= limit
        table.add_row(words, _spread(values), f"{'≤' if at_most else '≥'} {limit:g}", "yes" if held else "NO")

    for part in ("weight", "structure"):
        k8, k32 = (ratios(turns, chain, ("GumbelSearch", part), weight) for chain in ("chain8", "chain32"))
        bar(f"convolutions, K = 8: {part} step, GumbelSearch / (a)", k8, 1.15)
        bar(
            f"convolutions: {part} step, GumbelSearch, K = 32 / K = 8",
            [x / median(k8) for x in k32] if k8 else [],
            1.15,
        )
    bar(
        "MNIST space: both steps, GumbelDARTS / GumbelSearch",
        ratios(turns, "mnist", ("GumbelDARTS", "both"), ("GumbelSearch", "both")), 1.7, at_most=False,
    )  # fmt: skip
    return table


# -- what is written ---------------------------------------------------------------------------------


def _write(turns: list[Turn], path: Path) -> None:
    """One row for every part of every turn; memory has turns of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["space", "mode", "alternation", "part", "steps", "ms", "ms_wall", "megabytes", "peak_megabytes"]
        )
        for turn in turns:
            for part in turn.milliseconds or turn.megabytes:
                values = (turn.milliseconds.get(part), turn.wall.get(part), turn.megabytes.get(part))
                cells = ["" if value is None else f"{value:.6g}" for value in values]
                peak = f"{turn.peak:.6g}" if turn.peak else ""
                writer.writerow([turn.space, turn.mode, turn.number, part, turn.steps, *cells, peak])


def _draw(turns: list[Turn], modes: list[str], path: Path) -> None:
    """The cost of a step on the chains against their number of candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [k for k in CHAINS if any(turn.space == f"chain{k}" for turn in turns)]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axis, part in zip(axes, ("weight", "structure")):
        for place, mode in enumerate(modes):
            cost = {k: ratios(turns, f"chain{k}", (mode, part), (LARGEST, "weight")) for k in measured}
            points = {k: values for k, values in cost.items() if values}
            if points:
                middles = [median(values) for values in points.values()]
                below = [middle - min(values) for middle, values in zip(middles, points.values())]
                above = [max(values) - middle for middle, values in zip(middles, points.values())]
                axis.errorbar(
                    list(points), middles, (below, above),
                    marker="o", markersize=4, capsize=2, label=mode, color=f"C{place}",
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="candidates K", title=f"{part} step")
        axis.set_xticks(measured, [str(k) for k in measured])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time, relative to a training step of (a)")
    if measured:
        axes[0].legend(fontsize="small")
    figure.suptitle("Dense convolutions of 16 channels: cost of a step against the number of candidates")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

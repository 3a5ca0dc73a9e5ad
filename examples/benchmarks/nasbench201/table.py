"""The table of NAS-Bench-201: how well each of its 15,625 cells does on CIFAR-10.

Nothing but a judge reads it: a search, a supernet or a proxy that saw it would be measured by what it was told.
A cell is a tuple of six operations, by number, one an edge; to NNI it is a sample of ``NasBench201``.
"""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nni_gumbel.errors import UsageError

# As NNI's space orders them, and its labels name the edges (from, to).
OPERATIONS = ("none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
LABELS = tuple(f"cell/{start}_{end}" for start, end in EDGES)
SHAPE = (len(OPERATIONS),) * len(EDGES)
# Points below the best cell within which a cell is a hit: the trainings of one cell differ by as much.
HIT = 0.1

_LETTERS = "-s13a"
_HOW_TO_GET = (
    "a CSV (also .xz) with columns arch, c10_test_200ep, c10_valid_12ep; it can be written from NATS-Bench "
    "(github.com/D-X-Y/NATS-Bench), topology search space"
)

Cell = tuple[int, ...]


def cell_of(sample: Mapping[str, str]) -> Cell:
    """The cell of an NNI sample of ``NasBench201``."""
    return tuple(OPERATIONS.index(sample[label]) for label in LABELS)


def sample_of(cell: Cell) -> dict[str, str]:
    """The NNI sample of a cell."""
    return {label: OPERATIONS[operation] for label, operation in zip(LABELS, cell)}


def parse(arch: str) -> Cell:
    """A cell from the benchmark's own text: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|``."""
    words = [word for node in arch.split("+") for word in node.strip("|").split("|")]
    return tuple(OPERATIONS.index(word.partition("~")[0].removeprefix("nor_")) for word in words)


def arch_of(cell: Cell) -> str:
    """The benchmark's own text of a cell; :func:`parse` undoes it."""
    nodes: dict[int, str] = {}
    for (start, end), operation in zip(EDGES, cell):
        name = OPERATIONS[operation].replace("conv", "nor_conv")
        nodes[end] = nodes.get(end, "|") + f"{name}~{start}|"
    return "+".join(nodes.values())


def short(cell: Cell) -> str:
    """Six letters for people, in the order of :data:`EDGES`: ``-`` none, ``s`` skip, ``1``, ``3``, ``a`` pooling."""
    return "".join(_LETTERS[operation] for operation in cell)


@dataclass(frozen=True)
class Table:
    """Accuracies in percent, ``(5, 5, 5, 5, 5, 5)`` float64, an axis an edge.

    Attributes:
        test: on the test images after 200 epochs; mean of one to three trainings.
        validation: on validation images after 12 epochs.
    """

    test: np.ndarray
    validation: np.ndarray

    @property
    def best(self) -> float:
        return float(self.test.max())

    def accuracy(self, cell: Cell) -> float:
        """Test accuracy in percent."""
        return float(self.test[tuple(cell)])

    def rank(self, cell: Cell) -> int:
        """1 for the best cell; cells that are equally good have the same rank."""
        return 1 + int((self.test > self.accuracy(cell)).sum())

    def regret(self, cell: Cell) -> float:
        """Points of test accuracy below the best cell, at least 0."""
        return self.best - self.accuracy(cell)

    def is_hit(self, cell: Cell) -> bool:
        """Whether a cell is no more than :data:`HIT` below the best one."""
        return self.regret(cell) <= HIT

    def judge(self, cell: Cell) -> dict[str, float | int | bool]:
        """All of this by name, as the columns of a CSV."""
        return {
            "accuracy": self.accuracy(cell),
            "rank": self.rank(cell),
            "regret": round(self.regret(cell), 4),
            "hit": int(self.is_hit(cell)),
        }

    def draw(self, number: int, seed: int, above: float = 0.0) -> list[Cell]:
        """Different cells drawn uniformly from those with a test accuracy of at least ``above`` percent."""
        fitting = np.flatnonzero(self.test.ravel() >= above)
        drawn = np.random.default_rng(seed).choice(fitting, min(number, len(fitting)), replace=False)
        return [tuple(int(k) for k in np.unravel_index(index, SHAPE)) for index in drawn]


def read(path: Path) -> Table:
    """Read the table.

    Raises:
        UsageError: the file is missing, or does not hold all cells.
    """
    if not path.is_file():
        raise UsageError(f"--table: {path} does not exist; give {_HOW_TO_GET}")
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()
    test, validation = np.full(SHAPE, np.nan), np.full(SHAPE, np.nan)
    try:
        for row in csv.DictReader(io.StringIO(text)):
            cell = parse(row["arch"])
            test[cell], validation[cell] = float(row["c10_test_200ep"]), float(row["c10_valid_12ep"])
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"--table: {path} cannot be read ({error!r}); give {_HOW_TO_GET}") from error
    missing = int(np.isnan(test).sum())
    if missing:
        raise UsageError(f"--table: {path} lacks {missing:,} of {test.size:,} cells; give {_HOW_TO_GET}")
    return Table(test, validation)

"""Table and pictures of the paper from the rows of `run.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import runs
from matplotlib.figure import Figure

_MARKERS = "osD^v"

# Column: what of a training it shows, its factor and its digits.
_COLUMNS: dict[str, tuple[str, float, int]] = {
    "test, %": ("test", 100, 2),
    "parameters": ("parameters", 1, 0),
    "before pruning": ("parameters_trained", 1, 0),
    "10⁶ FLOPs": ("flops", 1e-6, 2),
    "latency, ms": ("latency_ms", 1, 2),
    "stability": ("stability", 1, 3),
    "training, s": ("seconds", 1, 0),
}


def write(
    folder: Path, lines: Sequence[Any], searches: Sequence[runs.Row], trainings: Sequence[runs.Row], heading: str
) -> None:  # fmt: skip
    """Write ``table.md``, ``front.png`` and ``removal.png``.

    Args:
        folder: of the files.
        lines: rows of the table, in their order.
        searches, trainings: those that are done.
        heading: what was measured, where.
    """
    by_line = {line.name: [row for row in trainings if row["line"] == line.name] for line in lines}
    found = {line.name: [row for row in searches if row["line"] == line.name] for line in lines}
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{heading}\n\n{_table(by_line, found)}\n\n{_parts(by_line)}\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    if trainings:
        _draw_front(by_line, folder / "front.png")
        _draw_removal(by_line, folder / "removal.png")


def _table(by_line: dict[str, list[runs.Row]], found: dict[str, list[runs.Row]]) -> str:
    head = ["row", "networks × seeds", *_COLUMNS, "search agrees", "search, s"]
    body = []
    for name, rows in by_line.items():
        errors = {row["error"] for row in found[name] if row.get("error")}
        networks = {row["search_seed"] for row in rows}
        counted = (
            f"{len(networks)} × {len(rows) // len(networks)}" if rows else "; ".join(errors) or "not run"
        )
        cells = [
            runs.spread([row[key] for row in rows if row.get(key) is not None], *form)
            for key, *form in _COLUMNS.values()
        ]
        seconds = runs.spread([row["seconds"] for row in found[name] if "architecture" in row], digits=0)
        body.append([name, counted, *cells, _agreement(found[name]), seconds])
    return _markdown(head, body)


def _parts(by_line: dict[str, list[runs.Row]]) -> str:
    """The parts of the stability, and the error of the confidence."""
    parts = list(dict.fromkeys(
        key for rows in by_line.values() for row in rows for key in row if key.startswith("stability: ")
    ))  # fmt: skip
    head = ["row", *(part.removeprefix("stability: ") for part in parts), "calibration error"]
    columns = [*parts, "calibration_error"]
    body = [
        [
            name,
            *(
                runs.spread([row[key] for row in rows if row.get(key) is not None], digits=3)
                for key in columns
            ),
        ]
        for name, rows in by_line.items()
        if rows
    ]
    return _markdown(head, body)


def _agreement(rows: Sequence[runs.Row]) -> str:
    """How often two seeds choose alike, mean over the labels that any of them uses."""
    from nni_gumbel.results.agreement import choice_of, pairwise_agreement

    networks = [json.loads(row["architecture"]) for row in rows if row.get("architecture")]
    if len(networks) < 2:
        return ""
    labels = sorted({label for network in networks for label in network})
    agreed = [pairwise_agreement([[choice_of(network, label) for network in networks]]) for label in labels]
    return f"{sum(agreed) / len(agreed):.2f}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def _draw_front(by_line: dict[str, list[runs.Row]], path: Path) -> None:
    with _axis(path) as axis:
        for place, (name, rows) in enumerate((name, rows) for name, rows in by_line.items() if rows):
            sizes, tests = ([row[key] for row in rows] for key in ("parameters", "test"))
            axis.plot(
                sizes, [100 * test for test in tests], _MARKERS[place // 10 % len(_MARKERS)], color=f"C{place % 10}",
                label=name,
            )  # fmt: skip
        axis.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_removal(by_line: dict[str, list[runs.Row]], path: Path) -> None:
    with _axis(path) as axis:
        for name, rows in by_line.items():
            if not rows or not (name.startswith("found") or name in ("largest", "over-sized (VGG)")):
                continue
            curves = [json.loads(row["curves"])["weights removed"] for row in rows]
            shares = curves[0][0]
            means = [100 * sum(values[k] for _, values in curves) / len(curves) for k in range(len(shares))]
            axis.plot([100 * share for share in shares], means, "o-", label=name)
        axis.set(xlabel="weights removed, %, the smallest first", ylabel="test accuracy, %")
        axis.legend(fontsize=8)


@contextmanager
def _axis(path: Path) -> Iterator[Any]:
    """An axis of a figure that is written to a file."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    yield figure.add_subplot()
    figure.savefig(path, dpi=150)

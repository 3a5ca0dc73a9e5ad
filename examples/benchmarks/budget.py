"""Do budgets hold, are they used, and does the weight of the cost do what it says?

    python examples/benchmarks/budget.py [--seeds 3] [--workers 2] [--folder DIR]

Searches the MNIST space with budgets of 10 to 50 % of its largest network's parameters, and with six weights of
the cost, each with several seeds. Prints two tables and writes them and a picture to the folder. A search counts
as using its budget if the network that it returns, before any choice between networks, has at least 85 % of the
parameters allowed, or no single other candidate of one of its choices would have more and still fit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import runs
from rich.console import Console
from rich.table import Table

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
COST_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="searches for each budget and each weight")
    parser.add_argument("--epochs", type=int, default=8, help="of each search")
    parser.add_argument("--workers", type=int, default=2, help="searches at a time, each on one thread")
    parser.add_argument(
        "--folder", type=Path, default=Path("benchmark-results"), help="CSV files and pictures"
    )
    arguments = parser.parse_args()

    distribution, cost, largest = _space()
    limits = {fraction: int(fraction * largest) for fraction in FRACTIONS}
    common = [
        {"seed": seed, "epochs": arguments.epochs, "preset": "gradual", "warmup_epochs": 1}
        for seed in range(arguments.seeds)
    ]
    jobs = [{**one, "max_params": limit} for limit in limits.values() for one in common]
    jobs += [{**one, "cost_weight": weight} for weight in COST_WEIGHTS for one in common]
    rows = list(runs.rows_of(jobs, runs.search, arguments.folder / "budget.csv", arguments.workers))

    console = Console()
    console.print(
        f"{runs.machine()}; searches of {arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}; largest network "
        f"of the space: {largest:,.0f} parameters"
    )
    table = Table("budget", "parameters found", "used", "exceeded", "used well", title="Budgets")
    for fraction, limit in limits.items():
        found = [row for row in rows if row.get("max_params") == limit]
        used = [row["parameters"] / limit for row in found]
        well = [_is_used(json.loads(row["architecture"]), limit, distribution, cost) for row in found]
        table.add_row(
            f"{fraction:.0%} = {limit:,}",
            ", ".join(f"{row['parameters']:,.0f}" for row in found),
            ", ".join(f"{share:.0%}" for share in used),
            f"{sum(share > 1 for share in used)} of {len(found)}",
            f"{sum(well)} of {len(found)}",
        )
    console.print(table)
    table = Table("cost_weight", "parameters found", "median", title="Weights of the cost")
    for weight in COST_WEIGHTS:
        found = [row["parameters"] for row in rows if row.get("cost_weight") == weight]
        table.add_row(f"{weight:g}", ", ".join(f"{one:,.0f}" for one in found), f"{median(found):,.0f}")
    console.print(table)
    _draw(rows, limits, arguments.folder / "budget.png")
    console.print(f"wrote {arguments.folder}/budget.csv and budget.png")


def _space() -> tuple[Any, Any, float]:
    from nni_gumbel import relax
    from nni_gumbel.complexity.budget import largest
    from nni_gumbel.complexity.params import expected_parameters
    from search_spaces.mnist import MnistSpace

    space = MnistSpace()
    distribution = relax(space)
    cost = expected_parameters(space)
    return distribution, cost, largest(space, distribution, cost)[0]


def _is_used(sample: dict[str, Any], limit: int, distribution: Any, cost: Any) -> bool:
    """At least 85 % of the limit, or no single change makes the network larger and keeps it within."""
    outcomes = {label: int(distribution.outcome(label, value).argmax()) for label, value in sample.items()}
    now = cost.at(outcomes)
    others = (
        cost.at({**outcomes, label: k})
        for label in outcomes
        for k in range(distribution.laws[label].outcomes)
    )
    return now >= 0.85 * limit or not any(now < other <= limit for other in others)


def _draw(rows: list[dict[str, Any]], limits: dict[float, int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for limit in limits.values():
        found = [row for row in rows if row.get("max_params") == limit]
        left.plot([limit] * len(found), [row["parameters"] for row in found], "o", color="tab:blue")
    ends = [0, max(limits.values()) * 1.05]
    left.plot(ends, ends, color="black", linewidth=1, label="the whole budget")
    left.plot(ends, [0.85 * end for end in ends], "--", color="gray", linewidth=1, label="85 % of it")
    left.set(xlabel="budget: parameters allowed", ylabel="parameters of the network found", title="Budgets")
    left.legend()
    priced = [(w, [r["parameters"] for r in rows if r.get("cost_weight") == w]) for w in COST_WEIGHTS]
    places = range(len(priced))
    for place, (_, found) in zip(places, priced):
        right.plot([place] * len(found), found, "o", color="tab:blue")
    right.plot(places, [median(found) for _, found in priced], color="tab:orange", label="median")
    right.set_xticks(places, [f"{weight:g}" for weight, _ in priced])
    right.set(xlabel="cost_weight", ylabel="parameters of the network found", title="Weights of the cost")
    right.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

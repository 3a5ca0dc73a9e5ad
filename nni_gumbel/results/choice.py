"""Which of the trained networks is exported: the least complex one that is neither worse nor less stable.

The one-standard-error rule: among the networks whose mean validation metric is within one standard
error of the best mean, and whose stability is not below the median of these, the one that costs least wins: least of
what the experiment prices, ties by parameters and by FLOPs, all as exported, without unreachable layers. A validation
part is itself a sample, so for a proportion such as accuracy the error is at least that of a proportion of ``n``
images; few seeds that happen to agree cannot make it smaller.

Test results travel in the records, for the report, and are never read here by :func:`choose`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median_low, stdev
from typing import Any, Literal

# Networks are of equal size if their numbers of parameters differ by at most this part.
EQUAL_SIZE = 0.05


@dataclass(frozen=True)
class TrainedRun:
    """One training from scratch of one network: its trial, its seed and what it reached."""

    trial_id: str
    seed: int
    validation: float
    test: float | None
    # The index of results/stability.py; None where it was not measured.
    stability: float | None = None


@dataclass(frozen=True)
class Network:
    """A distinct network, its cost, and its runs with different seeds (at least one)."""

    name: str
    architecture: dict[str, Any]
    settings: dict[str, Any]
    parameters: int
    flops: int | None  # None where it could not be counted
    runs: tuple[TrainedRun, ...]
    validation_size: int | None
    # Without the layers that cannot reach the output; None where that was not counted.
    pruned_parameters: int | None = None
    pruned_flops: int | None = None
    # Measured on the frozen network, and as the search's table has it; None where latency plays no part.
    latency_ms: float | None = None
    table_latency_ms: float | None = None
    # By the function that `--cost` names; None without one.
    own_cost: float | None = None
    # What `searchSpace` varied, for each combination whose searches found it.
    found_with: tuple[dict[str, Any], ...] = ()
    # Random networks of equal size, trained alike, each once: never chosen from.
    baseline: tuple[Network, ...] = ()

    @property
    def exported_parameters(self) -> int:
        """Of the network as it is exported: without unreachable layers, where these were counted."""
        return self.parameters if self.pruned_parameters is None else self.pruned_parameters

    @property
    def exported_flops(self) -> int | None:
        return self.flops if self.pruned_flops is None else self.pruned_flops

    @property
    def is_pruned(self) -> bool:
        """Whether something is left out of the export."""
        return (self.exported_parameters, self.exported_flops) != (self.parameters, self.flops)

    @property
    def unequal(self) -> tuple[Network, ...]:
        """Those of the baseline that are not of equal size: where no sample of it was found, the nearest is taken."""
        most = EQUAL_SIZE * self.parameters
        return tuple(each for each in self.baseline if abs(each.parameters - self.parameters) > most)

    @property
    def validation_mean(self) -> float:
        return fmean(run.validation for run in self.runs)

    @property
    def validation_std(self) -> float | None:
        """Sample standard deviation over the seeds; ``None`` for a single run."""
        return _std([run.validation for run in self.runs])

    @property
    def test_mean(self) -> float | None:
        """``None`` unless every run has a test result."""
        tests = [run.test for run in self.runs]
        return None if None in tests else fmean(tests)

    @property
    def test_std(self) -> float | None:
        return None if self.test_mean is None else _std([run.test for run in self.runs])

    @property
    def stability_mean(self) -> float | None:
        """Of the runs in which it is known; ``None`` if it is in none."""
        known = [run.stability for run in self.runs if run.stability is not None]
        return fmean(known) if known else None

    @property
    def stability_std(self) -> float | None:
        return _std([run.stability for run in self.runs if run.stability is not None])

    def price(self, priced: str) -> float:
        """What it costs, of ``params``, ``flops``, ``latency`` or ``cost``; infinite where that is not known."""
        latency = self.latency_ms if self.table_latency_ms is None else self.table_latency_ms
        price = {
            "params": self.exported_parameters, "flops": self.exported_flops, "latency": latency, "cost": self.own_cost
        }[priced]  # fmt: skip
        return math.inf if price is None else price


def _std(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


_WORDS = {
    "params": "{:,} parameters",
    "flops": "{:,} FLOPs",
    "latency": "{:.3g} ms",
    "cost": "a cost of {:.4g}",
}


# What is chosen by: all that the module says, all but stability, the validation metric alone.
Rule = Literal["cheapest-stable", "cheapest", "best"]


@dataclass(frozen=True)
class Choice:
    """The network to export, the run whose weights are taken, and why."""

    network: Network
    run: TrainedRun
    best: Network  # on validation
    standard_error: float  # of its result
    reason: str
    # Each network that was chosen from, and how the rule has judged it, in words with the numbers.
    decisions: tuple[tuple[Network, str], ...]


def choose(
    networks: Sequence[Network],
    metric: str,
    optimize_mode: str,
    priced: str = "params",
    rule: Rule = "cheapest-stable",
) -> Choice:
    """Apply the rule to validation results.

    ``standard_error = max(s / sqrt(m), sqrt(p (1 - p) / n))`` of the best network: ``s`` its sample
    standard deviation over ``m`` seeds, ``p`` its mean, ``n`` the size of the validation part; the
    second term only where the metric is a proportion and ``n`` is known.

    The median of the stabilities is the lower one of an even number: at least half of the networks are not below it. A
    stability that is not known is not held against a network.

    Args:
        networks: at least one, each with at least one run; validation results are finite.
        metric: name of the validation metric; see :func:`is_accuracy`.
        optimize_mode: ``maximize`` or ``minimize``.
        priced: what the experiment prices: ``params``, ``flops``, ``latency`` (by the table of the searches; as
            measured where there is no table) or ``cost`` (a function of the person's own). A network whose price is
            not known counts as dearer than all others.
        rule: ``cheapest-stable``, ``cheapest`` (whatever its stability) or ``best`` (whatever its cost).

    Returns:
        The choice. Equal results are decided by complexity, then by the order given; of equal runs
        the first seed's is taken.

    Raises:
        ValueError: there is no network.

    Source: Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    if not networks:
        raise ValueError("there is no trained network to choose from")
    sign = {"maximize": 1.0, "minimize": -1.0}[optimize_mode]
    costs = (priced, "params", "flops")

    def score(network: Network) -> float:
        return sign * network.validation_mean

    def complexity(network: Network) -> list[float]:
        return [network.price(cost) for cost in costs]

    best = min(networks, key=lambda network: (-score(network), *complexity(network)))
    error = _standard_error(best, metric)
    near = [network for network in networks if score(best) - score(network) <= error]
    known = [each.stability_mean for each in near if each.stability_mean is not None]
    median = median_low(known) if known and rule == "cheapest-stable" else -math.inf
    less_stable = [each for each in near if each.stability_mean is not None and each.stability_mean < median]
    if rule == "best":
        chosen = best
    else:
        eligible = [network for network in near if network not in less_stable]
        chosen = min(eligible, key=lambda network: (*complexity(network), -score(network)))
    run = min(chosen.runs, key=lambda run: (-sign * run.validation, run.seed))

    def decision(network: Network) -> str:
        price = _worded(network, priced)
        if network is chosen:
            return f"chosen: {price}, the {'best' if rule == 'best' else 'least of those that are left'}"
        if rule == "best":
            return f"not chosen: {metric} {network.validation_mean:.4g} is not the best"
        if network not in near:
            return (
                f"out: {metric} {network.validation_mean:.4g} is further than one standard error ({error:.2g}) from "
                f"the best, {best.validation_mean:.4g}"
            )
        if network in less_stable:
            stability = f"{network.stability_mean:.4g}"
            return f"out: stability {stability} is below the median {median:.4g} of those near the best"
        # Of equal price the next cost decides, and then the metric.
        return f"not chosen: {price}, not less than {chosen.name}"

    reached = f"validation {metric} {best.validation_mean:.4g}"
    if len(networks) == 1:
        reason = f"{chosen.name} is the only network that was trained ({reached})."
    elif rule == "best":
        reason = f"{chosen.name} is the best on validation ({reached})."
    elif chosen is best:
        reason = (
            f"{chosen.name} is the best on validation ({reached}), and no simpler network "
            f"{'that is as stable ' if less_stable else ''}is within one standard error ({error:.2g}) of it."
        )
    else:
        # The first in which the two differ: of equal price the smaller one was chosen.
        by = next((cost for cost in costs if chosen.price(cost) != best.price(cost)), priced)
        reason = (
            f"{chosen.name} has {_worded(chosen, by)}, the best ({best.name}, {reached}) has {_worded(best, by)}, and "
            f"its validation {metric} {chosen.validation_mean:.4g} is within one standard error ({error:.2g}) of that."
        )
    if median > -math.inf and chosen.stability_mean is not None and len(networks) > 1:
        out = f"; that of {', '.join(each.name for each in less_stable)} is" if less_stable else ""
        of = f"the median {median:.4g} of the networks within one standard error"
        reason += f" Its stability {chosen.stability_mean:.4g} is not below {of}{out}."
    return Choice(chosen, run, best, error, reason, tuple((each, decision(each)) for each in networks))


def _worded(network: Network, cost: str) -> str:
    price = network.price(cost)
    return "a cost that is not known" if math.isinf(price) else _WORDS[cost].format(price)


def _standard_error(best: Network, metric: str) -> float:
    over_seeds = (best.validation_std or 0.0) / math.sqrt(len(best.runs))
    p, n = best.validation_mean, best.validation_size
    is_proportion = is_accuracy(metric) and 0 <= p <= 1
    return max(over_seeds, math.sqrt(p * (1 - p) / n)) if is_proportion and n else over_seeds


def is_accuracy(metric: str) -> bool:
    """Whether a metric of this name is a share of examples: ``acc``, ``accuracy``, ``top5_acc`` ..."""
    return metric.rsplit("_", 1)[-1] in ("acc", "accuracy")

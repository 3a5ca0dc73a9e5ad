"""The latency table of an experiment: measured once, by the first trial that needs it, and read by the others.

It lies beside the output directories of the trials. A lock lets one trial measure at a time: measurements would
make each other longer, and a budget is to mean the same in every search.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_gumbel.complexity.latency import LatencyTable, expected_latency, measure_latency, measure_missing
from nni_gumbel.complexity.table import cost_of
from nni_gumbel.errors import first_line
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax

FILE = "latency-table.json"

_log = logging.getLogger(__name__)


def prices_latency(settings: SearchSettings) -> bool:
    """Whether a search needs to know how long networks take."""
    return settings.cost == "latency" or settings.max_latency_ms is not None


def shared_table(
    supernet: ModelSpace, distribution: Distribution, example: Example, output: Path
) -> LatencyTable:
    """The experiment's table, with all layers of a space; what it lacks is measured, while others wait.

    Args:
        supernet: a relaxed space.
        distribution: of its networks.
        example: a batch of inputs; times are of all of it.
        output: the trial's output directory.

    Raises:
        UsageError: a layer cannot be measured, or the file is no table.
    """
    path = output.parent / FILE
    with FileLock(f"{path}.lock"):
        known = LatencyTable.load(path) if path.exists() else LatencyTable()
        table = measure_missing(supernet, distribution, example.args, example.kwargs, known)
        if table != known:
            # A trial that is killed leaves the old file or the new one.
            fresh = path.with_name(f".{FILE}.{os.getpid()}")
            table.save(fresh)
            os.replace(fresh, path)
    return table


def latencies(
    network: nn.Module,
    architecture: Mapping[str, Any],
    reference: SpaceReference,
    example: Example,
    output: Path,
) -> dict[str, float | None]:
    """How long a network takes for a batch, in milliseconds; a training is not lost to what cannot be told.

    Args:
        network: frozen, of the space, as it is exported.
        architecture: its NNI sample.
        reference: of the space.
        example: a batch of inputs.
        output: the trial's output directory.

    Returns:
        ``latency_ms``, the whole network measured now; ``table_latency_ms``, the sum of its layers by the table of
        the experiment, which searches go by. ``None`` for one that cannot be told, with one warning that names the
        network and the reason.
    """

    def measured() -> float:
        on_cpu = example.cpu()
        return measure_latency(network.cpu(), on_cpu.args, on_cpu.kwargs)

    def by_table() -> float:
        supernet = reference.build()
        distribution = relax(supernet)
        # The supernet is on the CPU, and so is what its layers are measured with.
        inputs = example.cpu()
        table = shared_table(supernet, distribution, inputs, output)
        cost = expected_latency(supernet, distribution, inputs.args, inputs.kwargs, table)
        return cost_of(distribution, cost, architecture)

    found: dict[str, float | None] = {}
    reasons: dict[str, list[str]] = {}
    ways: dict[str, Callable[[], float]] = {"latency_ms": measured, "table_latency_ms": by_table}
    for field, tell in ways.items():
        try:
            found[field] = tell()
        except Exception as error:  # whatever a person's network raises: the training is done, and is kept
            found[field] = None
            reasons.setdefault(first_line(error), []).append(field)
    if reasons:
        told = "; ".join(f"{' and '.join(fields)}: {reason}" for reason, fields in reasons.items())
        _log.warning("network %s: its latency is left out (%s)", dict(architecture), told)
    return found

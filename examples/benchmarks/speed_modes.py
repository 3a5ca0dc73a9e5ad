"""The modes of the speed benchmark, by name. Imports nothing heavy: the process that gives turns reads them, too."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

LARGEST, SAMPLED = "(a) largest network", "(b) sampled networks"


@dataclass(frozen=True)
class Mode:
    """One way of training on a space.

    Attributes:
        strategy: the class; ``None`` is the plain training of single networks.
        settings: arguments of the strategy.
        varies: a step's cost depends on the network that it draws, so that a turn counts with its mean; else with its
            median.
    """

    strategy: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    varies: bool = False

    @property
    def is_sampled(self) -> bool:
        """Whether its weight steps run single networks of this strategy's drawing."""
        return self.settings.get("execution") == "sampled"


MODES = {
    LARGEST: Mode(),
    SAMPLED: Mode(varies=True),
    "merged": Mode("GumbelSearch", {"execution": "merged"}),
    "plain": Mode("GumbelSearch", {"execution": "plain"}),
    "sampled": Mode("GumbelSearch", {"execution": "sampled"}, varies=True),
    "sampled, two": Mode(
        "GumbelSearch", {"execution": "sampled", "structure_candidates": "two"}, varies=True
    ),
    "sampled, one": Mode(
        "GumbelSearch", {"execution": "sampled", "structure_candidates": "sampled"}, varies=True
    ),
    "GumbelDARTS": Mode("GumbelDARTS"),
    "DARTS": Mode("DARTS"),
    "Proxyless": Mode("Proxyless", varies=True),
}


def serve(connection: Connection, name: str, mode: Mode, options: dict[str, Any]) -> None:
    """:func:`speed_process.serve`, whose imports only the living processes make."""
    warnings.simplefilter("ignore")
    import speed_process

    speed_process.serve(connection, name, mode, options)

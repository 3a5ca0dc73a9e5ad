"""The modes of the speed benchmark, by name. Imports nothing heavy: the process that gives turns reads them, too."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

LARGEST, RANDOM = "(a) largest network", "(b) random networks"


@dataclass(frozen=True)
class Mode:
    """One way of training on a space.

    Attributes:
        strategy: the class; ``None`` is the plain training of single networks.
        varies: a step's cost depends on the network that it draws, so that a turn counts with its mean; else with its
            median.
    """

    strategy: str | None = None
    varies: bool = False


MODES = {
    LARGEST: Mode(),
    RANDOM: Mode(varies=True),
    "GumbelSearch": Mode("GumbelSearch"),
    "GumbelDARTS": Mode("GumbelDARTS"),
    "DARTS": Mode("DARTS"),
    "Proxyless": Mode("Proxyless", varies=True),
}


def serve(connection: Connection, name: str, mode: Mode, options: dict[str, Any]) -> None:
    """:func:`speed_process.serve`, whose imports only the living processes make."""
    warnings.simplefilter("ignore")
    import speed_process

    speed_process.serve(connection, name, mode, options)

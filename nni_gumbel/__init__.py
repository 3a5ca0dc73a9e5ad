"""Gradient-based neural architecture search as a first-class citizen of NNI.

- :class:`GumbelSearch`: the search as a strategy of NNI's ``NasExperiment``.
- :func:`relax`: the same for a training loop of your own; it returns the space's :class:`Distribution`.
- :func:`private_portal`: NNI's portal for this machine alone, where Python starts it.
- :func:`load`: an exported network.
- ``results``: the trials of an experiment as a table, see :func:`nni_gumbel.pipeline.records.results`.
- :func:`assert_supernet_equals_frozen`: the check of a space, before a search.
- :class:`UsageError`: what all of them raise for a mistake, in one line.

The names are imported on first use (PEP 562): NNI gives a tuner ten seconds to connect, and torch alone takes
several of them.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "GumbelSearch": "nni_gumbel.search.strategy",
    "relax": "nni_gumbel.supernet.mutation",
    "Distribution": "nni_gumbel.supernet.distribution",
    "private_portal": "nni_gumbel.pipeline.start",
    "load": "nni_gumbel.results.bundle",
    "assert_supernet_equals_frozen": "nni_gumbel.testing",
    "UsageError": "nni_gumbel.errors",
}

# A room that can be called: see its own docstring.
_ROOM = "results"

__all__ = ["__version__", *_HOME, _ROOM]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == _ROOM:
        return import_module(f"nni_gumbel.{_ROOM}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

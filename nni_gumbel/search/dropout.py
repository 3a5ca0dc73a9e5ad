"""A dropout rate as a choice: what a search can learn about it, and how.

Dropout makes a loss worse while it is on; it pays off in the weights that it leads to. So a step of first order, which
looks at the weights as they are, takes the smallest rate, whatever is best. One of second order looks at the weights
after a training step with dropout, and judges them as the network will be used: with dropout off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from nni_gumbel.supernet.arguments import MixedArguments

_logger = logging.getLogger(__name__)

# Modules whose training mode means dropout and nothing else, with the argument that is its rate. Recurrent layers drop
# out inside one operation, which is out of reach.
_RATES = {_DropoutNd: "p", nn.MultiheadAttention: "dropout"}
_DROPOUTS = tuple(_RATES)


def dropout_rates(supernet: nn.Module) -> list[str]:
    """The labels that the rate of a dropout depends on."""
    labels = (
        label
        for module in supernet.modules()
        if isinstance(module, MixedArguments)
        for kind, argument in _RATES.items()
        if isinstance(module, kind)
        for label in module.variants.table.labels_of.get(argument, ())
    )
    return list(dict.fromkeys(labels))


@contextmanager
def dropout_off(network: nn.Module) -> Iterator[None]:
    """Dropout, that of attention too, in evaluation mode; everything else, batch norms among them, as it is.

    That of recurrent layers, and what a forward pass of a person's own calls as a function, stays on.
    """
    on = [module for module in network.modules() if isinstance(module, _DROPOUTS) and module.training]
    try:
        for module in on:
            module.training = False
        yield
    finally:
        for module in on:
            module.training = True


def tell_dropout_rates(supernet: nn.Module, level: str) -> None:
    """Say, where it is so, that the search will choose the smallest rate whatever is best.

    Args:
        supernet: a relaxed space.
        level: the setting.
    """
    labels = dropout_rates(supernet)
    if labels and level != "unrolled":
        _logger.warning(
            "dropout rate %s: with level %r the structure sees dropout as noise alone and takes the smallest rate; "
            "give level: unrolled", ", ".join(map(repr, labels)), level,
        )  # fmt: skip

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


def dropout_rates(supernet: nn.Module) -> list[str]:
    """The labels that are the rate of a dropout."""
    labels = (
        label
        for module in supernet.modules()
        if isinstance(module, MixedArguments) and isinstance(module, _DropoutNd)
        for label in module.variants.table.labels
    )
    return list(dict.fromkeys(labels))


@contextmanager
def dropout_off(network: nn.Module) -> Iterator[None]:
    """Every dropout module, mixed or not, in evaluation mode; everything else, batch norms among them, as it is.

    Dropout that a forward pass of a person's own calls as a function is out of reach.
    """
    on = [module for module in network.modules() if isinstance(module, _DropoutNd) and module.training]
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

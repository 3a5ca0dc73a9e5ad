"""A dropout rate as a choice: what a search can learn about it, and how.

Dropout makes a loss worse while it is on; it pays off in the weights that it leads to. So the structure is judged with
dropout off, as the network will be used, and what tells rates apart are networks that are trained with them: those of
the stages, and the finalists. A gradient with respect to a rate is then 0.
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


def tell_dropout_rates(supernet: nn.Module, stages: int) -> None:
    """Say, where it is so, that the search learns nothing of a rate that it is to choose.

    Args:
        supernet: a relaxed space.
        stages: the setting.
    """
    labels = dropout_rates(supernet)
    if labels and not stages:
        _logger.warning(
            "dropout rate %s: the gradient of the structure does not depend on it; leave rounds, stages and finalists "
            "above 0, which train networks with each rate", ", ".join(map(repr, labels)),
        )  # fmt: skip

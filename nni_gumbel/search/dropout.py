"""A dropout rate as a choice: what a search can and cannot learn about it."""

from __future__ import annotations

import logging

from torch import nn

from nni_gumbel.supernet.arguments import MixedArguments

_logger = logging.getLogger(__name__)


def dropout_rates(supernet: nn.Module) -> list[str]:
    """The labels that are the rate of a dropout."""
    labels = (
        label
        for module in supernet.modules()
        if isinstance(module, MixedArguments) and isinstance(module, nn.modules.dropout._DropoutNd)
        for label in module.variants.table.labels
    )
    return list(dict.fromkeys(labels))


def tell_dropout_rates(supernet: nn.Module, level: str) -> None:
    """Say, where it is so, that the search will choose the smallest rate whatever is best.

    In the first-order step the loss of the structure is that of the weights as they are, to which dropout only adds
    noise. What it is good for is seen in the weights that it leads to: by the second-order step alone.

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

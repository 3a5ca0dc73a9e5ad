"""A layer of fixed width behind a chosen one: torch's error, told with the layer and the choice.

self.lin1, self.lin2 = MutableLinear(10, width), MutableLinear(width, 3)
self.norm = nn.BatchNorm1d(self.lin2.in_features)     # takes the width that was the first candidate
"""

from __future__ import annotations

import traceback

import torch
from torch import nn

from nni_gumbel.errors import first_line
from nni_gumbel.search.dropout import dropout_rates
from nni_gumbel.supernet.arguments import MixedArguments


def misfit(space: nn.Module, error: Exception) -> str | None:
    """Which choice a layer does not fit, in one line.

    Args:
        space: a relaxed space, or a network.
        error: what one of its modules raised.

    Returns:
        ``None`` if it was raised elsewhere, or if no size is chosen anywhere around the layer.
    """
    if not isinstance(error, (RuntimeError, ValueError)) or isinstance(error, torch.cuda.OutOfMemoryError):
        return None
    paths = {module: path for path, module in space.named_modules()}
    raising = [
        frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), nn.Module) and frame.f_locals["self"] in paths
    ]
    if not raising or isinstance(raising[-1], MixedArguments) or list(raising[-1].children()):
        return None
    path = paths[raising[-1]]
    for end in (len(path.split(".")) - n for n in range(1, len(path.split(".")) + 1)):
        sizes = _chosen_sizes(space.get_submodule(".".join(path.split(".")[:end])))
        if sizes:
            kind = type(raising[-1]).__name__
            return (
                f"choice {' or '.join(map(repr, sizes))}: {kind} at {path!r} takes one width, and not each of those "
                f"to choose from ({first_line(error)}); give it the chosen width (NNI's Mutable{kind}), or fix it"
            )
    return None


def _chosen_sizes(part: nn.Module) -> list[str]:
    """The labels in the arguments of its modules, without the rates of dropouts."""
    mixed = (module for module in part.modules() if isinstance(module, MixedArguments))
    labels = dict.fromkeys(label for module in mixed for label in module.variants.table.labels)
    rates = dropout_rates(part)
    return [label for label in labels if label not in rates]

"""Which networks of a space have which of a module's children."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import mul

import numpy as np
from nni.mutable import Mutable
from nni.nas.nn.pytorch import LayerChoice, Repeat
from torch import nn

from nni_gumbel.complexity.table import ONE, Table
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.hub import MixedStage


def children_of(module: nn.Module) -> Iterator[tuple[nn.Module, Table]]:
    """The children of a module, each with 1 in the networks that have it and 0 in the others."""
    if isinstance(module, LayerChoice):
        identity = np.eye(len(module.names), dtype=np.int64)
        for name, chosen in zip(module.names, identity):
            yield module[name], Table.of((module.label,), chosen)
    elif isinstance(module, Repeat) and isinstance(module.depth_choice, Mutable):
        labels, depths = depths_of(module)
        for index, block in enumerate(module.blocks):
            yield block, Table.of(labels, np.int64(depths > index))
        if isinstance(module, MixedStage) and module.transformation is not None:
            yield module.transformation, Table.of(labels, np.int64(depths == 1))
    elif isinstance(module, MixedCell) and module.op_candidates_factory is not None:
        sizes = {label: len(variable.values) for label, variable in module.simplify().items()}
        for candidate, *choices in module.candidates_of_factories():
            chosen = (Table.of((label,), np.eye(sizes[label], dtype=np.int64)[k]) for label, k in choices)
            yield candidate, reduce(mul, chosen)
        for part in (module.preprocessor, module.postprocessor):
            if isinstance(part, nn.Module):
                yield part, ONE
    else:
        for child in module.children():
            yield child, ONE


def depths_of(repeat: Repeat) -> tuple[tuple[str, ...], np.ndarray]:
    """The depth of a ``Repeat`` whose depth is a choice, or an expression of choices.

    Returns:
        The labels that it depends on, and integers with one axis per label, in the order of its candidates.
    """
    table = Tabulated({"depth": repeat.depth_choice})
    return table.labels, np.array([values["depth"] for values in table.distinct])[table.index]

"""How much the layers after the cells of NNI's hub read: as much as is loose in the cell that they follow.

In the supernet such a layer is as wide as all nodes of the cell before it; in a frozen network
(:func:`nni_gumbel.supernet.hub.fit_to_loose_ends`) it is as wide as the nodes that no later node takes as its
input. Which cell is before it depends on the depth of the stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from nni.nas.hub.pytorch.nasnet import NDS
from torch import nn

from nni_gumbel.complexity.table import ONE, Table, combined, where
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.structure import Condition, depths_of

# The cell whose output is read, and 1 in the networks where it is that one; None is the stem.
Sources = list[tuple[Table, MixedCell | None]]


def readers_of_loose_ends(space: nn.Module) -> dict[nn.Module, Sources]:
    """The convolutions and linear layers that read the output of a cell with loose ends, and where that comes from.

    Only the supernet of one of NNI's ``NDS``, or of a space with one inside, has such layers. The sources of a layer
    are alternatives that exclude each other.
    """
    readers: dict[nn.Module, Sources] = {}
    for part in (part for part in space.modules() if isinstance(part, NDS)):
        if any(isinstance(cell, MixedCell) and cell.is_of_hub for cell in part.modules()):
            readers |= _readers_in(part)
    return readers


def _readers_in(space: NDS) -> dict[nn.Module, Sources]:
    readers: dict[nn.Module, Sources] = {}
    latest: list[Sources] = [[(ONE, None)], [(ONE, None)]]
    for stage in space.stages:
        depths: list[tuple[Table, list[Sources]]] = []
        for number, cell in enumerate(stage.blocks if isinstance(stage, MixedRepeat) else stage, start=1):
            for layer, sources in zip((cell.preprocessor.pre0, cell.preprocessor.pre1), latest):
                readers |= {conv: sources for conv in layer.modules() if isinstance(conv, nn.Conv2d)}
            latest = [latest[1], [(ONE, cell)]]
            if isinstance(stage, MixedRepeat):
                candidates, depth = depths_of(stage)
                ends = latest
                if number == 1 and stage.transformation is not None:
                    convs = (m for m in stage.transformation.modules() if isinstance(m, nn.Conv2d))
                    readers |= dict.fromkeys(convs, latest[0])
                    ends = [[(ONE, None)], latest[1]]
                depths.append((where(Condition(candidates, depth == number)), ends))
        if depths:
            latest = [_in_one(depths, place) for place in range(2)]
    return readers | {space.classifier: latest[1]}


def loose_nodes(cell: MixedCell) -> dict[tuple[int, ...], Table]:
    """The sets of nodes of a cell that may be those which no later node takes as its input.

    Returns:
        By their places in the states of the cell, 1 in the networks where these are the loose ones and 0 in the others.

    Raises:
        UsageError: there are too many ways to connect the nodes.
    """
    loose = [_is_loose(cell, node) for node in range(cell.num_nodes)]
    # A bit for each node.
    sets = combined(lambda *some: sum(one << node for node, one in enumerate(some)), loose)
    return {
        tuple(
            cell.num_predecessors + node for node in range(cell.num_nodes) if number >> node & 1
        ): sets.equals(number)
        for number in np.unique(sets.values).tolist()
    }


def parts_read(sources: Sources) -> tuple[int, list[Table]]:
    """How many equal parts a layer's weight has, and how many of them it has in each network.

    The second is the sum of tables, one for each node of each kind of cell that may be before the layer: whether a
    node is loose is a matter of the later nodes alone, each of which takes it or not.
    """
    (nodes,) = {cell.num_nodes for _, cell in sources if cell is not None} or {1}
    return nodes, [
        condition * part
        for condition, cell in sources
        for part in ([Table.of((), nodes)] if cell is None else map(partial(_is_loose, cell), range(nodes)))
    ]


def _in_one(depths: Iterable[tuple[Table, list[Sources]]], place: int) -> Sources:
    """The sources at one of the two places, whatever the depth is; those of one kind are one."""
    merged: dict[str, tuple[Table, MixedCell | None]] = {}
    for depth, latest in depths:
        for condition, cell in latest[place]:
            kind = "" if cell is None else cell.label  # cells of one label have one sample
            here = condition * depth
            merged[kind] = (merged[kind][0] + here if kind in merged else here), cell
    return [(condition, cell) for condition, cell in merged.values() if condition.values.any()]


def _is_loose(cell: MixedCell, node: int) -> Table:
    """1 in the networks where no later node takes a node."""
    loose = ONE
    for later, slots in enumerate(cell.labels):
        for source, _ in slots if later > node else ():
            loose *= Table.of(
                (source,), np.int64(np.arange(cell.num_predecessors + later) != cell.num_predecessors + node)
            )
    return loose

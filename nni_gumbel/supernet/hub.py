"""What the cell-based spaces of NNI's hub need besides: ``NASNet``, ``ENAS``, ``AmoebaNet``, ``PNAS``, ``DARTS``.

They are one class, ``NDS``, whose networks are built anew at every ``freeze``: what a cell takes in, and how
wide it is, follows from the cells before it.

- A stage of chosen depth is mixed like any ``Repeat``, as long as it has two cells or more. After a stage of
  one cell NNI builds another kind of layer (``nasnet.py``, ``last_cell_reduce`` and ``C_pprev``).
- With ``merge_op="loose_end"`` the layer after a cell is as wide as the loose nodes need. In the supernet it
  is as wide as all nodes, and a node counts by the weight that it is loose; since these layers are linear
  in what they take in, a network's narrower layer is the part of it that reads the loose nodes.
"""

from __future__ import annotations

import copy
from typing import Any

from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDS, NDSStage
from nni.nas.nn.pytorch import Cell, ModelSpace
from nni.nas.oneshot.pytorch.strategy import MutationHook
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat


def hooks_for(space: ModelSpace) -> tuple[MutationHook, ...]:
    """Mutation hooks that spaces of the hub need, ``space`` itself or parts of it; to be run before all others."""
    # A cell of a person's own beside them is mixed like any other.
    theirs = {module for part in space.modules() if isinstance(part, NDS) for module in part.modules()}

    def mix(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        if module not in theirs:
            return None
        stage = _mix_stage(module, name, memo, mutate_kwargs)
        return FullWidthCell.mutate(module, name, memo, mutate_kwargs) if stage is None else stage

    return (mix,) if theirs else ()


class FullWidthCell(MixedCell):
    """A cell with loose ends whose output has a place for every node; a node that is not loose is 0."""

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook: replaces ``Cell`` with loose ends."""
        if type(module) is Cell and module.merge_op == "loose_end":
            return cls(module, mutate_kwargs["joint_sample"])
        return None

    @property
    def width_varies(self) -> bool:
        """``False``."""
        return False

    def _outputs(self, states: list[Any]) -> list[Tensor]:
        nodes = [states[index] for index in self.output_node_indices]
        return [
            node if weight is None else node * weight.to(node.dtype)
            for node, weight in zip(nodes, self.loose_weights())
        ]


def fit_to_loose_ends(network: NDS) -> None:
    """Narrow the layers after the cells of a frozen network to the nodes that are loose, in place.

    Args:
        network: an ``NDS`` whose choices have been replaced, its cells and itself not shared with a supernet.
    """
    if network.merge_op != "loose_end":
        return
    before: list[Cell | None] = [None, None]  # the stem gives both inputs of the first cell
    for cell in (cell for stage in network.stages for cell in stage):
        cell.preprocessor = copy.deepcopy(cell.preprocessor)
        for layer, source in zip((cell.preprocessor.pre0, cell.preprocessor.pre1), before[-2:]):
            for conv in layer.modules():
                if source is not None and isinstance(conv, nn.Conv2d):
                    conv.weight, conv.in_channels = _read_only(source, conv.weight)
        before.append(cell)
    network.classifier = classifier = copy.deepcopy(network.classifier)
    classifier.weight, classifier.in_features = _read_only(before[-1], classifier.weight)


def _read_only(source: Cell, weight: nn.Parameter) -> tuple[nn.Parameter, int]:
    """The part of a weight, ``(out, in, ...)``, that reads the loose nodes of a cell, and its new ``in``."""
    per_node = weight.detach().unflatten(1, (source.num_nodes, -1))
    loose = [index - source.num_predecessors for index in source.output_node_indices]
    narrow = per_node[:, loose].flatten(1, 2).clone()
    return nn.Parameter(narrow, requires_grad=weight.requires_grad), narrow.shape[1]


def _mix_stage(
    module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
) -> nn.Module | None:
    """NNI's mutation hook for ``NDSStage``, in place of NNI's own, which knows only NNI's logits."""
    if not (isinstance(module, NDSStage) and isinstance(module.depth_choice, Mutable)):
        return None
    if module.min_depth < 2:
        labels = ", ".join(map(repr, module.depth_choice.simplify()))
        raise UsageError(
            f"choice {labels}: stage {name!r} may have {module.min_depth} cells, and after fewer than 2 NNI "
            "builds another kind of layer; let num_cells be at least 6"
        )
    return MixedRepeat(module, mutate_kwargs["joint_sample"])

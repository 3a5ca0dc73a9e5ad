"""What the cell-based spaces of NNI's hub need besides: ``NASNet``, ``ENAS``, ``AmoebaNet``, ``PNAS``, ``DARTS``.

They are one class, ``NDS``, whose networks are built anew at every ``freeze``: what a cell takes in, and how
wide it is, follows from the cells before it.

- A stage of chosen depth is mixed like any ``Repeat``. After a stage of one cell NNI builds another kind of layer
  (``nasnet.py``, ``last_cell_reduce`` and ``C_pprev``). As in NNI's own supernet, a layer gives what a single cell
  passes on the shape that it has in deeper stages, and an export has it, too (:class:`ShortStage`).
- With ``merge_op="loose_end"`` the layer after a cell is as wide as the loose nodes need. In the supernet it
  is as wide as all nodes, and a node counts by the weight that it is loose; since these layers are linear
  in what they take in, a network's narrower layer is the part of it that reads the loose nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDS, NDSStage
from nni.nas.nn.pytorch import Cell, ModelSpace
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.joint_sample import JointSample

_log = logging.getLogger(__name__)


def parts_of_hub(space: ModelSpace) -> set[nn.Module]:
    """The modules of the hub's spaces, ``space`` itself or parts of it; what a person has beside them is their own."""
    return {module for part in space.modules() if isinstance(part, NDS) for module in part.modules()}


def mix_of_hub(module: nn.Module, name: str, joint_sample: JointSample) -> nn.Module | None:
    """What becomes of a stage or a cell of the hub's spaces; ``None`` for what is mixed as everywhere."""
    if type(module) is Cell and module.merge_op == "loose_end":
        return MixedCell(module, joint_sample, is_of_hub=True)
    if not (isinstance(module, NDSStage) and isinstance(module.depth_choice, Mutable)):
        return None
    labels = ", ".join(map(repr, module.depth_choice.simplify()))
    if module.min_depth < 1:
        raise UsageError(
            f"choice {labels}: stage {name!r} may have no cell at all; let num_cells be at least 3"
        )
    if module.min_depth > 1:
        return MixedRepeat(module, joint_sample)
    _log.warning(
        "choice %s: stage %r may have a single cell, after which NNI builds another kind of layer. In the search, and "
        "in what it exports, there is a layer that gives what the cell passes on its shape, as in NNI's supernet: a "
        "network that is built anew at such a sample is not exactly the one that was searched",
        labels, name,
    )  # fmt: skip
    transformation = module.first_cell_transformation_factory()
    like = next(module.parameters(), None)
    transformation = transformation and transformation.to(like).train(module.training)
    return MixedRepeat(module, joint_sample, transformation)


class ShortStage(nn.Module):
    """A stage of a single cell, with the layer that gives what the cell passes on the shape of its own output."""

    def __init__(self, cell: nn.Module, transformation: nn.Module) -> None:
        super().__init__()
        self.cell, self.transformation = cell, transformation

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.cell,))

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """Two tensors in, two out."""
        before, own = self.cell(states)
        return [self.transformation(before), own]


def fit_to_loose_ends(network: NDS) -> None:
    """Narrow the layers after the cells of a frozen network, a copy, to the nodes that are loose, in place."""
    if network.merge_op != "loose_end":
        return
    before: list[Cell | None] = [None, None]  # the stem gives both inputs of the first cell
    for stage in network.stages:
        for cell in stage:
            _narrow(cell.preprocessor.pre0, before[-2])
            _narrow(cell.preprocessor.pre1, before[-1])
            before.append(cell)
        if isinstance(stage, ShortStage):
            _narrow(stage.transformation, before[-2])
            before[-2] = None  # the transformation passes on all that it makes
    _narrow(network.classifier, before[-1])


def _narrow(layer: nn.Module, source: Cell | None) -> None:
    """Let the convolutions or the classifier read the loose nodes of a cell alone; ``None`` is no such cell."""
    if source is None:
        return
    loose = [index - source.num_predecessors for index in source.output_node_indices]
    for part in layer.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            per_node = part.weight.detach().unflatten(1, (source.num_nodes, -1))
            narrow = per_node[:, loose].flatten(1, 2).clone()
            part.weight = nn.Parameter(narrow, requires_grad=part.weight.requires_grad)
            setattr(part, "in_channels" if isinstance(part, nn.Conv2d) else "in_features", narrow.shape[1])

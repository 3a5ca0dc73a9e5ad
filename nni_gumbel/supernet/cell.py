"""``Cell`` in a supernet.

Node ``i`` of a cell sums ``num_ops_per_node`` operations, each of one candidate on one earlier node.

- A cell whose candidates are modules consists of ``LayerChoice`` and ``InputChoice``: mixed as everywhere.
- A cell whose candidates come from factories has a ``LayerChoice`` of its own for each input ``j``, of candidates
  ``op_jo``, for a factory may build another operation for another input (of stride 2, say). With the weights ``v`` of
  the inputs and ``w`` of the operations a node computes ``sum_j v_j sum_o w_o op_jo(x_j)``.
- With ``merge_op="loose_end"`` the output concatenates the nodes that no other node takes as its input.
  In a mixture these are all nodes that may be loose, each times the weight that it is:
  ``prod (1 - v_i)`` over the inputs of later nodes. The width of the output depends on the sample, so what
  follows the cell must accept every width; :func:`check_loose_ends` tries. Where that takes the width of all nodes
  only, every node has its place in the output, one that is not loose as zeros (*full width*): what is searched is then
  what NNI's supernet is, and no network with fewer loose ends runs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nni.nas.nn.pytorch import Cell, LayerChoice
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.nn.pytorch.cell import create_cell_op_candidates, preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from nni_gumbel.copies import instance, take_over
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.results.example import in_eval
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.joint_sample import JointSample

_log = logging.getLogger(__name__)


class MixedCell(Cell, BaseSuperNetModule):
    """A cell from factories, or with loose ends.

    Args:
        cell: the module to replace. Candidates that are modules, the preprocessor and the postprocessor
            are taken over, not copied; factories are called once for every node, operation and input.
        joint_sample: where the current weights are read.
        is_of_hub: whether the layers after it are narrowed to its loose ends when it is frozen
            (:mod:`nni_gumbel.supernet.hub`); in the supernet they take its full width.

    Raises:
        UsageError: what choices a candidate from a factory has depends on its input.
    """

    def __init__(self, cell: Cell, joint_sample: JointSample, is_of_hub: bool = False) -> None:
        take_over(self, cell)
        self._joint_sample = joint_sample
        self.is_of_hub = self.is_full_width = is_of_hub
        # Node by node, the labels of the input and of the operation of each slot.
        self.labels = [
            [(source.label, op.label) for source, op in zip(*slots)] for slots in zip(cell.inputs, cell.ops)
        ]
        if self.op_candidates_factory is not None:
            self.ops = self._built_for_every_input(cell)
            if unknown := set(self.simplify()) - set(cell.simplify()):
                raise UsageError(
                    f"choice {min(unknown)!r}: a factory of cell {cell.label!r} makes it for some inputs only; "
                    "let every candidate have the same choices whatever its input is"
                )

    def forward(self, *inputs: Any) -> Any:
        """Takes a list of ``num_predecessors`` tensors, or the tensors; returns what the postprocessor does."""
        predecessors = preprocess_cell_inputs(self.num_predecessors, *inputs)
        # Like NNI's cell: where there is no preprocessor, the postprocessor sees the nodes among its inputs.
        states = self.preprocessor(predecessors)
        for node in range(self.num_nodes):
            slots = [self._slot(node, k, states) for k in range(self.num_ops_per_node)]
            states.append(torch.sum(torch.stack(slots), 0))
        return self.postprocessor(torch.cat(self._outputs(states), self.concat_dim), predecessors)

    def freeze(
        self, sample: Mapping[str, Any], freeze: Callable[[nn.Module], nn.Module] | None = None
    ) -> Cell:
        """NNI's cell at a sample, with the weights of this one; ``freeze``, or NNI's own, freezes a module inside."""
        freeze = freeze or (lambda module: recursive_freeze(module, dict(sample))[0])
        own = ("_joint_sample", "labels", "is_of_hub", "is_full_width")
        frozen = instance(Cell, {name: value for name, value in vars(self).items() if name not in own})
        frozen._modules = dict(self._modules)
        for name in frozen._modules.keys() - {"inputs", "ops"}:
            frozen._modules[name] = freeze(self._modules[name])
        frozen.inputs = nn.ModuleList(nn.ModuleList(map(freeze, slots)) for slots in self.inputs)
        frozen.ops = nn.ModuleList(
            nn.ModuleList(
                freeze(op if self.op_candidates_factory is None else op[source.chosen[0]])
                for op, source in zip(*slots)
            )
            for slots in zip(self.ops, frozen.inputs)
        )
        if self.merge_op == "loose_end":
            taken = {index for slots in frozen.inputs for source in slots for index in source.chosen}
            frozen.output_node_indices = [i for i in self.output_node_indices if i not in taken]
        return frozen

    def get_extra_state(self) -> Tensor:
        """Whether it is of full width: what a checkpoint keeps besides its tensors."""
        return torch.tensor(self.is_full_width)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of :meth:`get_extra_state`."""
        self.is_full_width = bool(state)

    def loose_weights(self) -> list[Tensor | None]:
        """Per node, the scalar weight that no later node takes it; ``None`` for the last, which is loose."""
        weights: list[Tensor | None] = [None] * self.num_nodes
        for later, slots in enumerate(self.labels):
            for source, _ in slots:
                free = 1 - self._joint_sample.weights(source)[self.num_predecessors :]
                for node in range(later):
                    weights[node] = free[node] if weights[node] is None else weights[node] * free[node]
        return weights

    def _slot(self, node: int, k: int, states: list[Any]) -> Tensor:
        choose, ops = self.inputs[node][k], self.ops[node][k]
        if self.op_candidates_factory is None:
            return ops(choose(states))
        active = self._joint_sample.active(choose.label)
        return choose([op(x) if j in active else None for j, (op, x) in enumerate(zip(ops, states))])

    def _outputs(self, states: list[Any]) -> list[Tensor]:
        """The nodes that are concatenated, each by the weight that it is loose."""
        nodes = [states[index] for index in self.output_node_indices]
        if self.merge_op == "all":
            return nodes
        *weights, _ = self.loose_weights()
        may_be_loose = [self.is_full_width or bool(weight != 0) for weight in weights]
        scaled = [n * w.to(n.dtype) for n, w, is_in in zip(nodes, weights, may_be_loose) if is_in]
        return [*scaled, nodes[-1]]

    def _built_for_every_input(self, cell: Cell) -> nn.ModuleList:
        """Per node and slot, for each input the choice of the candidates that the factories build for it."""

        def built(node: int, k: int, source: int) -> LayerChoice:
            with self.label_scope, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                candidates, _ = create_cell_op_candidates(cell.op_candidates_factory, node, k, source)
            return LayerChoice(candidates, label=cell.ops[node - self.num_predecessors][k].label)

        ops = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(built(node, k, source) for source in range(node)) for k in range(len(slots))
            )
            for node, slots in enumerate(self.labels, start=self.num_predecessors)
        )
        return ops.to(next(cell.parameters(), None)).train(cell.training)


def check_loose_ends(supernet: nn.Module, distribution: Distribution, run: Callable[[], Any]) -> None:
    """Try whether what follows the cells with loose ends accepts every width.

    Every such cell in turn has each possible number of loose ends, all else being the noise-free mixture. One for
    which that fails becomes a cell of full width, and a warning says so. Nothing is learnt: ``run`` is called in
    ``eval()`` and without gradients, the modes and the random state are as before, and so is the current sample, if
    it was the noise-free mixture.

    Args:
        supernet: a relaxed space.
        distribution: its distribution.
        run: calls the supernet on some batch.

    Raises:
        Exception: whatever ``run`` raises with all cells as the noise-free mixture.
    """
    cells: dict[str, list[MixedCell]] = {}
    for cell in supernet.modules():
        if isinstance(cell, MixedCell) and cell.merge_op == "loose_end" and not cell.is_full_width:
            cells.setdefault(cell.label, []).append(cell)
    if not cells:
        return
    gpus = {parameter.device for parameter in supernet.parameters() if parameter.device.type == "cuda"}
    with in_eval(supernet), torch.no_grad(), torch.random.fork_rng(devices=list(gpus)):
        try:
            distribution.use_probabilities()
            run()
            for same in cells.values():
                for number in range(1, same[0].num_nodes + 1):
                    _leave_loose(distribution, same[0], number)
                    try:
                        run()
                    except Exception as error:  # whatever a layer raises that gets another width
                        _log.warning(
                            "choice %r: merge_op 'loose_end' gives an output of 1 to %d nodes, and what follows the "
                            "cell does not accept %d (%s): it is searched at full width, as in NNI's supernet, and a "
                            "network with fewer loose ends cannot be frozen so that it runs; use merge_op='all', or "
                            "layers that accept every width",
                            same[0].label, same[0].num_nodes, number, first_line(error),
                        )  # fmt: skip
                        for cell in same:
                            cell.is_full_width = True
                        break
        finally:
            distribution.use_probabilities()


def _leave_loose(distribution: Distribution, cell: MixedCell, number: int) -> None:
    """Make the noise-free mixture the current sample, but with inputs that leave ``number`` nodes of a cell loose."""
    draws = {label: law.exact(distribution.logits[label]) for label, law in distribution.laws.items()}
    for node, slots in enumerate(cell.labels):
        source = cell.num_predecessors + node - 1 if 1 <= node <= cell.num_nodes - number else 0
        for label, _ in slots:
            draws[label] = distribution.laws[label].hard(distribution.outcome(label, [source]))
    distribution.joint_sample.set(draws)

"""What a network costs: counted for one network, expected for a distribution over networks.

The expected number of parameters is exact and differentiable. A parameter tensor is part of a frozen
network under a condition: that every choice above it takes the candidate that leads to it. Labels are
independent, so the probability of a condition is a product of one probability per label - a label
that occurs twice on the way counts once, which is what makes shared labels exact. A tensor that can be
reached in several ways (tied weights) is kept if any of its conditions holds: inclusion-exclusion.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from nni.nas.nn.pytorch import LayerChoice
from torch import Tensor, nn

from nni_gumbel.errors import UsageError

# A condition: (label, index of the candidate) pairs that must all hold.
Condition = frozenset[tuple[str, int]]

LARGEST_TABLE = 1_000_000


def count_parameters(network: nn.Module) -> int:
    """Number of scalars in the parameters of a frozen network, each tensor once."""
    return sum(parameter.numel() for parameter in network.parameters())


class ExpectedParameters:
    """The expected number of parameters under a distribution, as a differentiable function.

    The terms are built once from the space and evaluated each step.

    Args:
        space: a model space, mutated to a supernet or not.

    Raises:
        UsageError: a term depends on too many choices to be tabulated, or a tensor is tied across
            too many candidates.
    """

    def __init__(self, space: nn.Module) -> None:
        sizes: dict[str, int] = {}
        for module in space.modules():
            if isinstance(module, LayerChoice):
                sizes[module.label] = len(module.names)
        coefficients = _coefficients(space)
        self.constant = coefficients.pop(frozenset(), 0)
        self._tables: dict[tuple[str, ...], Tensor] = {}
        for condition, numel in coefficients.items():
            labels = tuple(sorted(label for label, _ in condition))
            if labels not in self._tables:
                shape = [sizes[label] for label in labels]
                if math.prod(shape) > LARGEST_TABLE:
                    raise UsageError(
                        f"choices {', '.join(labels)}: a parameter depends on {math.prod(shape):,} combinations "
                        f"of them; nest fewer choices (at most {LARGEST_TABLE:,} combinations)"
                    )
                # float64: counts stay exact integers up to 2^53.
                self._tables[labels] = torch.zeros(shape, dtype=torch.float64)
            self._tables[labels][tuple(dict(condition)[label] for label in labels)] += numel
        self.largest = self._largest_bound()

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Scalar: the expected number of parameters, ``sum_t numel_t P(t is part of the network)``.

        Args:
            probabilities: ``(K,)`` per label, on the simplex, float; at least one label.

        Returns:
            Scalar in the dtype of the probabilities, added up in float64.
        """
        first = next(iter(probabilities.values()))
        total = torch.tensor(float(self.constant), dtype=torch.float64, device=first.device)
        for labels, table in self._tables.items():
            if table.device != first.device:
                table = self._tables[labels] = table.to(first.device)
            for label in labels:
                # Not a matrix product, which autocast would lower to half precision.
                probability = probabilities[label].double()
                table = (probability.view(-1, *[1] * (table.dim() - 1)) * table).sum(dim=0)
            total = total + table
        return total.to(first.dtype)

    def _largest_bound(self) -> float:
        """An upper bound on the parameters of any network: the scale that makes costs comparable."""
        return self.constant + sum(float(table.clamp_min(0).max()) for table in self._tables.values())


def _coefficients(space: nn.Module) -> dict[Condition, int]:
    """Number of scalars per condition; inclusion-exclusion makes some of them negative."""
    conditions: dict[int, set[Condition]] = defaultdict(set)
    numels: dict[int, int] = {}
    for parameter, condition in _parameters_with_conditions(space, frozenset()):
        conditions[id(parameter)].add(condition)
        numels[id(parameter)] = parameter.numel()
    coefficients: dict[Condition, int] = defaultdict(int)
    for key, alternatives in conditions.items():
        minimal = [c for c in alternatives if not any(other < c for other in alternatives)]
        if len(minimal) > 12:
            raise UsageError(
                f"space: one parameter tensor is shared by {len(minimal)} candidates; "
                "give the candidates modules of their own (at most 12 may share one)"
            )
        for size in range(1, len(minimal) + 1):
            for chosen in combinations(minimal, size):
                joint = frozenset().union(*chosen)
                if _consistent(joint):
                    coefficients[joint] += (-1) ** (size + 1) * numels[key]
    return coefficients


def _parameters_with_conditions(
    module: nn.Module, condition: Condition
) -> Iterator[tuple[nn.Parameter, Condition]]:
    for parameter in module.parameters(recurse=False):
        yield parameter, condition
    if isinstance(module, LayerChoice):
        for index, name in enumerate(module.names):
            inner = condition | {(module.label, index)}
            if _consistent(inner):
                yield from _parameters_with_conditions(module[name], inner)
    else:
        for child in module.children():
            yield from _parameters_with_conditions(child, condition)


def _consistent(condition: Condition) -> bool:
    """Whether no label is asked to take two candidates at once."""
    return len({label for label, _ in condition}) == len(condition)


def count_flops(network: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass, for one example.

    NNI's formulas for convolution, linear layers and BatchNorm, applied per call to the real shapes of
    a forward pass (a module called twice counts twice); every elementwise activation except Identity
    costs 1 per element of its input. Everything else counts 0: pooling, additions, and layers that have
    no formula here (transposed convolution, attention, other norms).

    Args:
        network: a frozen network; run once in eval mode, left as it was.
        example: a batch of inputs; the count is per example.

    Returns:
        Multiply-adds for one example.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _flops_of_call(module, inputs[0], output)

    leaves = [m for m in network.modules() if _is_counted(m)]
    hooks = [m.register_forward_hook(add) for m in leaves]
    training = {m: m.training for m in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return total // len(example)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _is_activation(module: nn.Module) -> bool:
    is_one = type(module).__module__ == nn.ReLU.__module__
    return is_one and not isinstance(module, nn.MultiheadAttention)


def _is_counted(module: nn.Module) -> bool:
    return isinstance(module, (*_CONVOLUTIONS, *_BATCH_NORMS, nn.Linear)) or _is_activation(module)


def _flops_of_call(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        return y.numel() * (per_output + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return y.numel() * (module.in_features + (module.bias is not None))
    if isinstance(module, _BATCH_NORMS):
        return x.numel() * 2 * (1 + module.affine)
    return x.numel()

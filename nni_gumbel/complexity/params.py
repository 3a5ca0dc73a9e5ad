"""Parameters: counted for one network, expected for a distribution over networks.

The expected number is exact and differentiable. How many scalars a tensor has in a frozen
network, none included, depends on the choices above it (the candidates that lead to it, the depth of a
``Repeat``) and on those of its own shape (widths, kernels). It is tabulated over the labels that it
depends on, and the table is contracted with their probabilities: labels are independent. A tensor that
can be reached in several ways (tied weights) is there if any of them is: the largest of its tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from nni_gumbel.complexity.loose_ends import Sources, parts_read, readers_of_loose_ends
from nni_gumbel.complexity.table import ONE, ExpectedSum, Table, elementwise_maximum, where
from nni_gumbel.supernet.arguments import parameter_sizes
from nni_gumbel.supernet.structure import children


def count_parameters(network: nn.Module) -> int:
    """Number of scalars in the parameters of a frozen network, each tensor once."""
    return sum(parameter.numel() for parameter in network.parameters())


def expected_parameters(space: nn.Module) -> ExpectedSum:
    """The expected number of parameters of a space, mutated to a supernet or not; differentiable.

    Cells from factories are counted in a supernet only.

    Raises:
        UsageError: a tensor depends on too many choices to be tabulated.
    """
    sizes: dict[tuple[int, int], list[Table]] = {}
    for part, size in _sizes(space, ONE, readers_of_loose_ends(space)):
        sizes.setdefault(part, []).append(size)
    return ExpectedSum(elementwise_maximum(ways) for ways in sizes.values())


def _sizes(
    module: nn.Module, presence: Table, readers: Mapping[nn.Module, Sources]
) -> Iterator[tuple[tuple[int, int], Table]]:
    """Every part of a parameter below a module, with its number of scalars in each network, per way to it.

    A parameter is one part, except the weight of a layer that reads loose ends: see :func:`parts_read`.
    """
    own = parameter_sizes(module)
    for name, parameter in module.named_parameters(recurse=bool(own)):
        size = Table.of(*own[name]) if own else Table.of((), parameter.numel())
        if name == "weight" and module in readers:
            nodes, parts = parts_read(readers[module])
            size = size.map(lambda values, nodes=nodes: values // nodes)
            for number, part in enumerate(parts):
                yield (id(parameter), number), presence * size * part
        else:
            yield (id(parameter), 0), presence * size
    if not own:
        for child, condition in children(module):
            yield from _sizes(child, presence * where(condition), readers)

"""Small model spaces, generated at random from every primitive: nested, with shared labels."""

from __future__ import annotations

import itertools
from typing import Any

import nni
import torch
from hypothesis import strategies as st
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm1d,
    MutableDropout,
    MutableLayerNorm,
    MutableLinear,
    Repeat,
)
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WIDTH = 3


class Inputs(nn.Module):
    """Chooses among its input, a layer's output and their sum."""

    def __init__(self, layer: nn.Module, n_chosen: int | None, reduction: str, label: str) -> None:
        super().__init__()
        self.layer = layer
        self.n_chosen = n_chosen or 1
        self.choice = InputChoice(3, n_chosen=n_chosen, reduction=reduction, label=label)
        if reduction == "concat":
            self.project = nn.Linear(self.n_chosen * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        chosen = self.choice([x, y, x + y])
        if isinstance(chosen, list):
            # Depends on the order of the places.
            return sum((place + 1) * value for place, value in enumerate(chosen))
        return self.project(chosen) if self.choice.reduction == "concat" else chosen


class Hidden(nn.Module):
    """A hidden layer of a width that is chosen, with everything behind it that must follow."""

    def __init__(self, norm: str, factor: int, bias: bool, rate: bool, label: str) -> None:
        super().__init__()
        width = nni.choice(f"{label}.width", [1, 2, 4]) * factor
        norms = {
            "batch": lambda: MutableBatchNorm1d(width, affine=bias),
            "layer": lambda: MutableLayerNorm(width, elementwise_affine=bias),
            "none": nn.Identity,
        }
        self.layers = nn.Sequential(
            MutableLinear(WIDTH, width, bias=bias),
            norms[norm](),
            nn.Sigmoid(),  # not 0 at 0: what is cut off must stay out
            MutableDropout(nni.choice(f"{label}.rate", [0.0, 0.3, 0.6])) if rate else nn.Identity(),
            MutableLinear(width, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Tied(nn.Module):
    """Two layers of one weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.first(x)))


class MaskedBlock(nn.Module):
    """Takes and returns values, a mask that is no floating-point tensor, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
        x, mask, factor = state
        return self.layer(x).masked_fill(mask, 0.0) * factor, mask.clone(), factor


class Masked(nn.Module):
    """A chosen number of blocks with a mask."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.blocks = Repeat(lambda _: MaskedBlock(), (0, 2), label=label)

    def forward(self, x: Tensor) -> Tensor:
        x, mask, factor = self.blocks((x, torch.arange(WIDTH) == 1, 2))
        assert mask.dtype == torch.bool and factor == 2
        return x


def initialised() -> nn.Module:
    """A layer with an initialisation of its own, beside a parametrized one."""
    first, second = nn.Linear(WIDTH, WIDTH), weight_norm(nn.Linear(WIDTH, WIDTH))
    nn.init.eye_(first.weight)
    nn.init.constant_(first.bias, 0.5)
    return nn.Sequential(first, second)


def build(plan: Any) -> nn.Module:
    """Make the module that a plan describes; the same plan makes the same labels."""
    kind, *rest = plan
    if kind == "linear":
        return nn.Linear(WIDTH, WIDTH, bias=rest[0])
    if kind == "norm":
        return nn.BatchNorm1d(WIDTH)
    if kind == "tanh":
        return nn.Tanh()
    if kind == "dropout":
        return nn.Dropout(0.4)
    if kind == "identity":
        return nn.Identity()
    if kind == "tied":
        return Tied()
    if kind == "initialised":
        return initialised()
    if kind == "masked":
        return Masked(f"masked{rest[0]}")
    if kind == "sequence":
        return nn.Sequential(*map(build, rest[0]))
    if kind == "inputs":
        layer, (n_chosen, reduction), label = rest
        return Inputs(build(layer), n_chosen, reduction, f"inputs{label}.{n_chosen}")
    if kind == "hidden":
        norm, factor, bias, rate, label = rest
        return Hidden(norm, factor, bias, rate, f"hidden{label}")
    if kind == "repeat":
        block, (low, high), label = rest
        return Repeat(lambda _: build(block), (low, high), label=f"repeat{label}.{low}{high}")
    if kind == "cell":
        ops, (nodes, per_node), factory, label = rest
        candidates = [(lambda *_, op=op: build(op)) if factory else build(op) for op in ops]
        # A label fixes the number of candidates, so it contains that.
        name = f"cell{label}.{len(ops)}{nodes}{per_node}{'f' if factory else ''}"
        cell = Cell(candidates, nodes, per_node, 1, label=name)
        return nn.Sequential(cell, nn.Linear(nodes * WIDTH, WIDTH))
    candidates, label, named = rest
    modules = list(map(build, candidates))
    label = f"layers{label}.{len(modules)}{'n' if named else ''}"
    if named:
        return LayerChoice({f"candidate{i}": module for i, module in enumerate(modules)}, label=label)
    return LayerChoice(modules, label=label)


class GeneratedSpace(ModelSpace):
    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(*map(build, plan))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


_labels = st.integers(0, 2)  # few, so that some are shared
_leaves = st.one_of(
    st.tuples(st.just("linear"), st.booleans()),
    st.tuples(st.just("norm")),
    st.tuples(st.just("tanh")),
    st.tuples(st.just("dropout")),
    st.tuples(st.just("identity")),
    st.tuples(st.just("tied")),
    st.tuples(st.just("initialised")),
)
_inputs = st.sampled_from(
    [
        *itertools.product([1, 2, 3], ["sum", "mean", "concat", "none"]),
        *itertools.product([None], ["sum", "mean"]),
    ]
)
_hidden = st.tuples(
    st.just("hidden"),
    st.sampled_from(["batch", "layer", "none"]),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    _labels,
)
_cells = st.tuples(
    st.just("cell"),
    st.lists(_leaves, min_size=1, max_size=2),
    st.sampled_from([(1, 1), (1, 2), (2, 1)]),
    st.booleans(),
    _labels,
)


def _choices(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.tuples(st.just("layers"), st.lists(children, min_size=2, max_size=3), _labels, st.booleans()),
        st.tuples(st.just("inputs"), children, _inputs, _labels),
        st.tuples(st.just("repeat"), children, st.sampled_from([(0, 1), (0, 2), (1, 2)]), _labels),
        st.tuples(st.just("masked"), _labels),
        _hidden,
        _cells,
    )


def _branches(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        _choices(children),
        st.tuples(st.just("layers"), st.lists(children, min_size=1, max_size=1), _labels, st.booleans()),
        st.tuples(st.just("sequence"), st.lists(children, min_size=1, max_size=2)),
    )


_modules = st.recursive(_leaves, _branches, max_leaves=8)
plans = st.lists(_choices(_modules), min_size=1, max_size=3)


def samples_of(space: ModelSpace, limit: int = 24) -> list[dict[str, Any]]:
    """The samples of a small space, the first ``limit`` of a larger one; no choice of inputs is empty."""
    variables = space.simplify()
    values = [
        [list(value) for value in v.grid() if value] if hasattr(v, "n_chosen") else v.values
        for v in variables.values()
    ]
    products = itertools.islice(itertools.product(*values), limit)
    return [dict(zip(variables, chosen)) for chosen in products]


def example_batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(7))

"""Small model spaces, generated at random: nested choices, shared labels, several inputs."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import strategies as st
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import Tensor, nn

WIDTH = 3


class TwoInputs(nn.Module):
    """Chooses one of its input, a layer's output and their sum."""

    def __init__(self, layer: nn.Module, reduction: str, label: str) -> None:
        super().__init__()
        self.layer = layer
        self.choice = InputChoice(3, n_chosen=1, reduction=reduction, label=label)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        chosen = self.choice([x, y, x + y])
        return chosen[0] if isinstance(chosen, list) else chosen


def build(plan: Any) -> nn.Module:
    """Make the module that a plan describes; the same plan makes the same labels."""
    kind, *rest = plan
    if kind == "linear":
        return nn.Linear(WIDTH, WIDTH, bias=rest[0])
    if kind == "norm":
        return nn.BatchNorm1d(WIDTH)
    if kind == "tanh":
        return nn.Tanh()
    if kind == "identity":
        return nn.Identity()
    if kind == "sequence":
        return nn.Sequential(*map(build, rest[0]))
    if kind == "inputs":
        layer, reduction, label = rest
        return TwoInputs(build(layer), reduction, f"inputs{label}")
    candidates, label, named = rest
    modules = list(map(build, candidates))
    # A label fixes the candidates' names, so it contains their number and kind.
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
    st.tuples(st.just("identity")),
)


def _branches(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.tuples(st.just("layers"), st.lists(children, min_size=1, max_size=3), _labels, st.booleans()),
        st.tuples(st.just("inputs"), children, st.sampled_from(["sum", "mean", "concat", "none"]), _labels),
        st.tuples(st.just("sequence"), st.lists(children, min_size=1, max_size=2)),
    )


_modules = st.recursive(_leaves, _branches, max_leaves=8)
_choices = st.one_of(
    st.tuples(st.just("layers"), st.lists(_modules, min_size=2, max_size=3), _labels, st.booleans()),
    st.tuples(st.just("inputs"), _modules, st.sampled_from(["sum", "mean", "concat", "none"]), _labels),
)
plans = st.lists(_choices, min_size=1, max_size=3)


def samples_of(space: ModelSpace, limit: int = 24) -> list[dict[str, Any]]:
    """The samples of a small space, the first ``limit`` of a larger one."""
    variables = space.simplify()
    values = [list(v.grid()) if hasattr(v, "n_chosen") else v.values for v in variables.values()]
    products = itertools.islice(itertools.product(*values), limit)
    return [dict(zip(variables, chosen)) for chosen in products]


def example_batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(7))

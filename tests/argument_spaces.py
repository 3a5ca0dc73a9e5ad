"""Spaces around modules whose arguments are choices, and what they are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax


class Space(ModelSpace):
    """One module, made by a function."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = make()

    def forward(self, *inputs: Any) -> Any:
        return self.net(*inputs)


class Called(nn.Module):
    """A module, or a list of them, called by a function."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.module, *inputs)


def supernet_of(make: Callable[[], nn.Module]) -> tuple[Space, Distribution]:
    """A supernet in float64 with random weights, scales and statistics, so that each entry is another."""
    supernet = Space(make)
    distribution = relax(supernet)
    supernet.double()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in supernet.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return supernet, distribution


def all_samples(space: ModelSpace, limit: int = 12) -> list[dict[str, Any]]:
    """Every sample of a space, or about ``limit`` of them at equal distances."""
    variables = space.simplify()
    samples = [dict(zip(variables, v)) for v in itertools.product(*(c.values for c in variables.values()))]
    return samples[:: max(1, len(samples) // limit)]


def assert_equals_frozen(make: Callable[[], nn.Module], *inputs: Tensor, limit: int = 8) -> None:
    """At every sample the supernet computes what the network that NNI freezes computes with its weights.

    Outputs in train and in eval mode, and the buffers after the step in train mode.
    """
    supernet, distribution = supernet_of(make)
    reference = Space(make)
    for sample in all_samples(reference, limit):
        distribution.use_architecture(sample)
        frozen = reference.freeze(sample).double()
        exported = supernet.freeze(sample)
        assert structure(exported) == structure(frozen)
        frozen.load_state_dict(exported.state_dict(), strict=True)
        for train in (False, True):
            results = []
            for network in (supernet, frozen):
                network.train(train)
                torch.manual_seed(1)
                results.append([*tensors_in(network(*inputs))])
            for got, expected in zip(*results, strict=True):
                assert_close(got, expected, f"output at {sample}, {train=}")
        buffers = dict(supernet.freeze(sample).named_buffers())
        for name, expected in frozen.named_buffers():
            assert_close(buffers[name], expected, f"{name} at {sample}")


def structure(network: nn.Module) -> list[tuple[str, type, str]]:
    """Names, types and settings of all modules."""
    return [(name, type(module), module.extra_repr()) for name, module in network.named_modules()]


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    """Equal to 1e-9 of the largest entry: float64 sums in another order differ by far less."""
    assert got.shape == expected.shape, f"{what}: {got.shape} is not {expected.shape}"
    got, expected = got.detach().double(), expected.detach().double()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((got - expected).abs().max()) if expected.numel() else 0.0
    assert error <= 1e-9 * scale + 1e-15, f"{what}: differs by {error:.2g} of {scale:.2g}"


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of a nested output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for entry in output:
            yield from tensors_in(entry)

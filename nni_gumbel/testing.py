"""A check for people's own spaces: the supernet computes what the frozen networks compute.

Our own tests use it, too. It is worth a minute before hours of search: a space whose forward depends
on something that is no choice, or that concatenates tensors of variable width, shows here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from nni.mutable import CategoricalMultiple
from nni.nas.nn.pytorch import ModelSpace
from numpy.random import RandomState
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax

# Relative to the largest entry. Float64 sums in another order differ by some 1e-15 an operation.
TOLERANCE = 1e-9

# A mixture that has all but decided: how far it may be from the network that it tends to.
ALMOST_ONE = 1e-9
CONTINUITY_TOLERANCE = 1e-4
_ALMOST = (
    "output of the almost decided mixture (compared unless continuous=False; a mixture of widths needs features "
    "that are the first ones of a larger width, which a concatenation or a mean over them does not give)"
)


def assert_supernet_equals_frozen(
    space: ModelSpace,
    inputs: Any,
    samples: int | Sequence[Mapping[str, Any]] = 10,
    *,
    seed: int = 0,
    continuous: bool = True,
) -> None:
    """Compare the supernet at single networks with the networks that NNI freezes.

    For every sample, in float64: the supernet's exported weights load strictly into a second, never
    mutated instance that NNI's own code froze; the outputs agree to 1e-9 of their largest entry in
    ``train()`` and in ``eval()``, the random generator set anew before each side; so do BatchNorm's
    buffers after the step in ``train()``. Then a mixture that has almost decided for the sample must
    compute nearly the same, to 1e-4: a search that cools ends there.

    Args:
        space: an instance of the space, not mutated; it is left as it is.
        inputs: what its forward takes: a tensor, or a tuple of arguments; floats are made float64.
        samples: NNI samples that name every label, or how many are drawn at random.
        seed: of the samples and of the forward passes.
        continuous: whether to compare the mixture, too. It cannot agree where the shape of an
            intermediate result depends on the sample, as after a ``Cell`` with ``loose_end``.

    Raises:
        AssertionError: names the sample, the mode and the difference.
        UsageError: the space cannot be relaxed.

    Example:
        >>> assert_supernet_equals_frozen(MySpace(), torch.randn(8, 4))
    """
    if not isinstance(space, ModelSpace):
        raise UsageError(f"space: {space!r} is no instance of a ModelSpace; give one")
    arguments = tuple(_double(x) for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
    reference = copy.deepcopy(space).double()
    supernet = copy.deepcopy(reference)
    distribution = relax(supernet).double()
    _unlike_fresh(supernet, seed)
    for sample in random_samples(space, samples, seed) if isinstance(samples, int) else samples:
        distribution.use_architecture(sample)
        frozen = _frozen_by_nni(reference, sample)
        _load(frozen, supernet, sample)
        for mode in ("train", "eval"):
            got, expected = (_run(net, mode, arguments, seed) for net in (supernet, frozen))
            _assert_close(got, expected, TOLERANCE, f"output in {mode}()", sample)
            if mode == "train":
                exported = supernet.freeze(sample).state_dict()
                for name, value in frozen.state_dict().items():
                    _assert_close(exported[name], value, TOLERANCE, f"{name} after a step in train()", sample)
        if continuous:
            _almost_decide(distribution)
            # In eval(): where statistics are the batch's, a channel that fades out keeps its variance.
            got = _run(supernet, "eval", arguments, seed)
            _assert_close(got, expected, CONTINUITY_TOLERANCE, _ALMOST, sample)


def random_samples(space: ModelSpace, number: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Draw NNI samples that name every label, by NNI's own random choice; subsets of several inputs are not empty."""
    random = RandomState(seed)
    variables = space.simplify()
    for _ in range(number):
        sample = {label: variable.random(random_state=random) for label, variable in variables.items()}
        for label, variable in variables.items():
            multiple = isinstance(variable, CategoricalMultiple)
            if multiple and not sample[label] and len(variable.values) > 1:
                sample[label] = [variable.values[random.randint(len(variable.values))]]
        yield sample


@torch.no_grad()
def _unlike_fresh(supernet: nn.Module, seed: int) -> None:
    """Move every weight and statistic: among weights that are all 1, those of another channel go unnoticed."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

    for parameter in supernet.parameters():
        parameter += 0.2 * (noise(parameter) - 0.5)
    for name, buffer in supernet.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.2 * noise(buffer)
        elif name.endswith("running_var"):
            buffer *= 0.8 + 0.4 * noise(buffer)


def _double(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_double(entry) for entry in x)
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _frozen_by_nni(reference: ModelSpace, sample: Mapping[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        # Some of NNI's modules are built anew outside any space when they are frozen.
        warnings.simplefilter("ignore")
        return copy.deepcopy(reference.freeze(dict(sample))).double()


def _load(frozen: nn.Module, supernet: ModelSpace, sample: Mapping[str, Any]) -> None:
    try:
        frozen.load_state_dict(supernet.freeze(dict(sample)).state_dict(), strict=True)
    except RuntimeError as error:
        raise AssertionError(f"{dict(sample)}: the supernet's weights do not load: {error}") from error


def _run(network: nn.Module, mode: str, arguments: tuple[Any, ...], seed: int) -> Any:
    network.train(mode == "train")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return network(*arguments)


def _almost_decide(distribution: Distribution) -> None:
    """Give every candidate a weight that is almost 0 or almost 1."""
    joint = distribution.joint_sample
    draws = {}
    for label in distribution.variables:
        draw = joint.draw(label)
        draws[label] = draw * (1 - ALMOST_ONE) + ALMOST_ONE * draw.sum(-1, keepdim=True) / draw.shape[-1]
    joint.set(draws)


def _assert_close(got: Any, expected: Any, tolerance: float, what: str, sample: Mapping[str, Any]) -> None:
    if isinstance(expected, (tuple, list)):
        assert len(got) == len(expected), (
            f"{dict(sample)}: {what} has {len(got)} entries, not {len(expected)}"
        )
        for one, other in zip(got, expected):
            _assert_close(one, other, tolerance, what, sample)
        return
    if isinstance(expected, dict):
        for key in expected:
            _assert_close(got[key], expected[key], tolerance, what, sample)
        return
    if not isinstance(expected, Tensor):
        assert got == expected, f"{dict(sample)}: {what} is {got}, not {expected}"
        return
    assert got.shape == expected.shape, (
        f"{dict(sample)}: {what} has shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    )
    if expected.numel() == 0:
        return
    scale = float(expected.abs().max())
    difference = float((got - expected).abs().max())
    assert difference <= tolerance * max(scale, 1e-3), (
        f"{dict(sample)}: {what} differs by {difference:.3g}, its largest entry is {scale:.3g}"
    )

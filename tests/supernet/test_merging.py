"""Mixtures over sizes: what they are by definition, computed as one operation, continuous, differentiable.

The reference runs every frozen module by itself, on the features that it reads, fills its output up with
zeros and adds up.
"""

import math

import nni
import numpy as np
import pytest
import torch
from argument_modules import kernel, randn, width
from argument_spaces import all_samples, assert_close, supernet_of
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.hub.pytorch.proxylessnas import make_divisible
from nni.nas.nn.pytorch import (
    MutableBatchNorm1d,
    MutableBatchNorm2d,
    MutableConv1d,
    MutableConv2d,
    MutableConvTranspose2d,
    MutableEmbedding,
    MutableGroupNorm,
    MutableInstanceNorm2d,
    MutableLayerNorm,
    MutableLinear,
    MutablePReLU,
)
from torch import nn
from torch.nn import functional

from nni_gumbel.supernet import sizes as sizes_of_one
from nni_gumbel.supernet.expressions import Tabulated


def groups():
    return nni.choice("groups", [1, 2])


CHANNELS = {"in_channels": 1, "num_features": 1, "num_channels": 1, "in_features": -1}


def narrowed(network, x):
    """The features that a frozen module reads."""
    for name, dim in CHANNELS.items():
        if hasattr(network, name):
            return x.narrow(dim, 0, getattr(network, name))
    if isinstance(network, nn.LayerNorm):
        return x[..., : network.normalized_shape[-1]]
    if isinstance(network, nn.PReLU) and network.num_parameters > 1:
        return x[:, : network.num_parameters]
    return x


def reference_mixture(supernet, distribution, x):
    """``sum over samples of P(sample) pad(frozen module(x))``."""
    outputs = []
    for sample in all_samples(supernet, limit=10_000):
        probability = math.prod(
            distribution.joint_sample.weights(label)[supernet.simplify()[label].values.index(value)]
            for label, value in sample.items()
        )
        frozen = supernet.freeze(sample).net
        outputs.append(probability * frozen(narrowed(frozen, x)))
    total = outputs[0].new_zeros([max(sizes) for sizes in zip(*(o.shape for o in outputs))])
    for output in outputs:
        total[tuple(slice(size) for size in output.shape)] += output
    return total


def assert_is_the_reference_mixture(make, x, train=True):
    supernet, distribution = supernet_of(make)
    distribution.double().sample(1.0)
    supernet.train(train)
    with torch.no_grad():
        expected = reference_mixture(supernet, distribution, x)
        assert_close(supernet(x), expected, "mixture")


IMAGE = randn(2, 6, 7, 6)
MIXTURES = {
    "linear": (lambda: MutableLinear(width(), nni.choice("out", [3, 5])), randn(4, 6)),
    "linear, tied sizes": (lambda: MutableLinear(width(), 8 - width()), randn(2, 3, 6)),
    "choice of a bias": (
        lambda: MutableLinear(width(), 3, bias=nni.choice("bias", [True, False])),
        randn(4, 6),
    ),
    "everything": (
        lambda: MutableConv2d(width(), width() + nni.choice("more", [1, 3]), kernel(), padding=kernel() // 2),
        IMAGE,
    ),
    "stride and dilation": (
        lambda: MutableConv2d(width(), 4, kernel(), stride=2, padding=2 * (kernel() // 2), dilation=2),
        IMAGE,
    ),
    "choice of dilation": (
        lambda: MutableConv2d(
            width(), 4, 3, padding=nni.choice("d", [1, 2]), dilation=nni.choice("d", [1, 2])
        ),
        IMAGE,
    ),
    "rectangles": (
        lambda: MutableConv2d(
            width(), 4, kernel((1, 3), (3, 1), (5, 3)), padding="same", padding_mode="circular"
        ),
        IMAGE,
    ),
    "even kernels": (lambda: MutableConv1d(width(), 4, kernel(1, 2, 3, 4), padding="same"), randn(2, 6, 7)),
    "even kernels that are aligned": (
        lambda: MutableConv1d(6, 4, kernel(2, 4, 6), padding=kernel(2, 4, 6) // 2, padding_mode="replicate"),
        randn(2, 6, 7),
    ),
    "depthwise": (
        lambda: MutableConv2d(width(), width(), kernel(), padding=kernel() // 2, groups=width()),
        IMAGE,
    ),
    "depthwise with a multiplier": (lambda: MutableConv2d(width(), width() * 2, 3, groups=width()), IMAGE),
    "choice of groups": (lambda: MutableConv2d(width(), width() * 2, 3, groups=groups()), IMAGE),
    "transposed": (
        lambda: MutableConvTranspose2d(width(), width() + 1, kernel(), padding=kernel() // 2, stride=2),
        IMAGE,
    ),
    "batch norm": (lambda: MutableBatchNorm2d(width()), IMAGE),
    "batch norm without affine": (lambda: MutableBatchNorm1d(width(), affine=False), randn(5, 6)),
    "batch norm without anything": (
        lambda: MutableBatchNorm2d(width(), affine=False, track_running_stats=False),
        IMAGE,
    ),
    "choice of eps": (lambda: MutableBatchNorm2d(width(), eps=nni.choice("eps", [1e-5, 1.0])), IMAGE),
    "layer norm": (lambda: MutableLayerNorm(width()), randn(2, 3, 6)),
    "group norm": (lambda: MutableGroupNorm(groups(), width()), IMAGE),
    "instance norm": (lambda: MutableInstanceNorm2d(width(), affine=True), IMAGE),
    "prelu": (lambda: MutablePReLU(nni.choice("n", [1, 6])), IMAGE),
    "embedding": (lambda: MutableEmbedding(5, width()), torch.randint(0, 5, (3, 2))),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_the_weighted_sum_of_its_frozen_modules(name, train):
    assert_is_the_reference_mixture(*MIXTURES[name], train=train)


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True)


@given(
    channels=st.tuples(sizes, sizes),
    kernels=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3, unique=True),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "half"]),
    shared=st.booleans(),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_mixture_of_convolutions_is_the_weighted_sum_of_them(
    channels, kernels, stride, dilation, padding, shared, bias
):
    if padding == "half":  # keeps the shape of the output for odd kernels
        kernels = [(2 * (a // 2) + 1, 2 * (b // 2) + 1) for a, b in kernels]
        kernels = list(dict.fromkeys(kernels))
    k = nni.choice("k", kernels)
    pad = nni.choice("k", kernels) if padding == "half" else None

    def make():
        padding_of_k = (
            "same" if pad is None else nni.mutable.MutableList([k[i] // 2 * dilation for i in (0, 1)])
        )
        return MutableConv2d(
            nni.choice("in", channels[0]),
            nni.choice("in", channels[0]) + 1 if shared else nni.choice("out", channels[1]),
            k,
            stride=1 if padding == "same" else stride,
            padding=padding_of_k,
            dilation=dilation,
            bias=bias,
        )

    assert_is_the_reference_mixture(make, randn(2, max(channels[0]), 7, 6))


def count_calls(function, calls):
    def counted(*args, **kwargs):
        calls.append(args[1].shape)
        return function(*args, **kwargs)

    return counted


def test_hundreds_of_combinations_are_one_convolution(monkeypatch):
    calls = []
    monkeypatch.setattr(functional, "conv2d", count_calls(functional.conv2d, calls))
    multipliers = [0.5, 0.625, 0.75, 1.0, 1.25, 1.5, 2.0]

    def make():
        hidden = make_divisible(
            nni.choice("in", multipliers) * 16 * nni.choice("expand", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 8
        )
        out = make_divisible(nni.choice("out", multipliers) * 16, 8)
        return MutableConv2d(hidden, out, nni.choice("k", [1, 3]), padding=nni.choice("k", [1, 3]) // 2)

    supernet, distribution = supernet_of(make)
    assert supernet.net.variants.table.index.size == 7 * 6 * 7 * 2
    distribution.double().sample(1.0)
    supernet(randn(1, 192, 3, 3))
    assert calls == [(32, 192, 3, 3)]


def test_a_mixture_is_as_large_as_the_largest_active_variant():
    supernet, distribution = supernet_of(lambda: MutableConv2d(3, width(), kernel(), padding=kernel() // 2))
    weights = {"width": [0.5, 0.5, 0.0], "kernel": [0.5, 0.5, 0.0]}
    distribution.joint_sample.set({label: torch.tensor(w) for label, w in weights.items()})
    with torch.no_grad():
        supernet.net.weight[4:] = torch.nan
        supernet.net.weight[..., 0] = torch.nan
    output = supernet(IMAGE[:, :3])
    assert output.shape == (2, 4, 7, 6) and torch.isfinite(output).all()


# -- gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["everything", "batch norm", "choice of groups", "layer norm", "choice of a bias"]
)
def test_gradients_of_a_mixture_are_those_of_finite_differences(name):
    make, x = MIXTURES[name]
    supernet, distribution = supernet_of(make)
    distribution.double().sample(1.0)
    labels = list(distribution.logits)
    weights = [distribution.joint_sample.weights(label).detach().requires_grad_() for label in labels]
    parameters = dict(supernet.named_parameters())
    x = x[:, :, :3, :3].contiguous() if x.dim() == 4 else x

    def mixture(*values):
        distribution.joint_sample.set(dict(zip(labels, values)))
        state = dict(zip(parameters, values[len(labels) :]))
        return torch.func.functional_call(supernet, state, x)

    assert torch.autograd.gradcheck(mixture, (*weights, *parameters.values()), fast_mode=True)


def chain():
    return nn.Sequential(
        MutableConv2d(3, width(), kernel(), padding=kernel() // 2),
        MutableBatchNorm2d(width()),
        nn.ReLU(),
        MutableConv2d(width(), width() * 2, 3, padding=1, groups=width()),
        MutableGroupNorm(1, width() * 2),
        nn.SiLU(),
        nn.Flatten(),
        MutableLinear(width() * 2 * 16, nni.choice("hidden", [3, 5])),
        MutableLayerNorm(nni.choice("hidden", [3, 5])),
        nn.Tanh(),
        MutableLinear(nni.choice("hidden", [3, 5]), 2),
    )


def test_a_hard_sample_has_the_value_of_its_network_and_gradients_for_every_candidate():
    supernet, distribution = supernet_of(chain)
    distribution.double().sample(1.0, "straight-through-gumbel")
    sample = {
        label: distribution.value(label, distribution.joint_sample.weights(label).detach())
        for label in distribution.logits
    }
    network = supernet.freeze(sample)
    x = randn(4, 3, 4, 4)
    output = supernet(x)
    assert_close(output, network(x), "a hard sample")
    output.pow(2).sum().backward()
    for label, logits in distribution.logits.items():
        assert (logits.grad != 0).all(), label
    for name, expected in network.named_buffers():
        assert_close(dict(supernet.freeze(sample).named_buffers())[name], expected, name)


# -- continuity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_a_mixture_that_has_almost_decided_is_close_to_its_network(train):
    supernet, distribution = supernet_of(chain)
    supernet.train(train)
    x = randn(4, 3, 4, 4)
    for sample in all_samples(supernet, limit=9):
        distribution.double().use_architecture(sample)
        one_hot = {label: distribution.joint_sample.weights(label) for label in distribution.logits}
        with torch.no_grad():
            expected = supernet(x)
            errors = []
            for epsilon in (1e-4, 1e-6):
                draws = {label: (1 - epsilon) * w + epsilon / len(w) for label, w in one_hot.items()}
                distribution.joint_sample.set(draws)
                errors.append(float((supernet(x) - expected).abs().max()) / epsilon)
        # Of the first order in epsilon: the quotient does not grow.
        assert errors[1] <= 2 * errors[0] + 1e-6 and errors[0] < 1e3, (sample, errors)


# -- running statistics ------------------------------------------------------------------------------


def test_running_statistics_of_a_mixture_are_updated_once():
    supernet, distribution = supernet_of(
        lambda: MutableBatchNorm2d(width(), eps=nni.choice("eps", [1e-5, 1e-2]))
    )
    reference = nn.BatchNorm2d(6).double()
    reference.load_state_dict(supernet.net.state_dict())
    distribution.sample(1.0)
    with torch.no_grad():
        reference(IMAGE), supernet(IMAGE)
    for name, expected in reference.named_buffers():
        assert_close(getattr(supernet.net, name), expected, name)


def test_a_mixture_of_momenta_updates_with_their_mean():
    supernet, distribution = supernet_of(lambda: MutableBatchNorm2d(6, momentum=nni.choice("m", [0.1, 0.5])))
    distribution.joint_sample.set({"m": torch.tensor([0.25, 0.75], dtype=torch.float64)})
    before = supernet.net.running_mean.clone()
    supernet(IMAGE)
    expected = before + 0.4 * (IMAGE.mean((0, 2, 3)) - before)
    assert_close(supernet.net.running_mean, expected, "running mean")
    assert supernet.net.num_batches_tracked == 1


def test_statistics_of_channels_that_a_hard_sample_lacks_stay():
    supernet, distribution = supernet_of(lambda: MutableBatchNorm2d(width()))
    before = supernet.net.running_mean.clone()
    draw = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    distribution.joint_sample.set({"width": draw}, {"width": [0, 1, 2]})
    supernet(IMAGE)
    assert torch.equal(supernet.net.running_mean[4:], before[4:])
    assert (supernet.net.running_mean[:4] != before[:4]).all()


@pytest.mark.parametrize("train", [True, False])
def test_a_mixture_is_in_the_mode_of_its_module_whatever_others_of_its_sizes_are(train):
    def make():
        return nn.ModuleList([MutableBatchNorm2d(width()), MutableBatchNorm2d(width())])

    supernet, distribution = supernet_of(make)
    distribution.sample(1.0)
    for mode, norm in zip((not train, train), supernet.net):
        before = norm.running_mean.clone()
        norm.train(mode)(IMAGE)
        assert torch.equal(norm.running_mean, before) != mode


# -- planted bugs ----------------------------------------------------------------------------------------


def plant(bug, monkeypatch):
    smallest_rank, weighted = sizes_of_one._smallest_rank, Tabulated.weighted

    def beside(*arguments):
        return np.roll(smallest_rank(*arguments), 1)

    def turned_around(table, joint):
        positions, weights = weighted(table, joint)
        return positions, weights.flip(0)

    if bug == "survival off by one":
        monkeypatch.setattr(sizes_of_one, "_smallest_rank", beside)
    if bug == "a kernel in the corner":
        monkeypatch.setattr(
            sizes_of_one, "_smallest_rank", lambda full, sizes, _: smallest_rank(full, sizes, False)
        )
    if bug == "the weight of another variant":
        monkeypatch.setattr(Tabulated, "weighted", turned_around)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("linear", "survival off by one"),
        ("everything", "survival off by one"),
        ("batch norm", "survival off by one"),
        ("everything", "a kernel in the corner"),
        ("layer norm", "the weight of another variant"),
        ("linear", "the weight of another variant"),
    ],
)
def test_the_reference_finds_a_planted_bug(name, bug, monkeypatch):
    plant(bug, monkeypatch)
    with pytest.raises(AssertionError):
        assert_is_the_reference_mixture(*MIXTURES[name])

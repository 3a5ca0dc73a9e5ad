"""Elementwise candidates as one operation: the numbers of the plain mixture, and one tensor kept."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nni.nas.hub.pytorch.nasbench201 import Zero
from one_choice import OneChoice
from torch import nn

from nni_gumbel import relax
from nni_gumbel.supernet import elementwise
from nni_gumbel.supernet.candidates import plan

CANDIDATES = [
    nn.Identity(),
    nn.ReLU(),
    nn.LeakyReLU(0.1),
    nn.Hardtanh(-0.5, 2.0),
    nn.ReLU6(),
    nn.ELU(0.7),
    nn.ELU(-0.7),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Mish(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardswish(),
    nn.Softplus(1.5, 10.0),
    Zero(3, 3, 1),
]
OTHERS = [nn.SELU(), nn.PReLU(), nn.Dropout(0.0), nn.RReLU(0.2, 0.2), nn.BatchNorm2d(3), nn.Softmax(1)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def results(candidates, merged, weights, x, is_double=False):
    """Output and gradients of input and weights; of second order, too."""
    space = OneChoice(candidates)
    distribution = relax(space, merged=merged)
    weights, x = weights.clone().requires_grad_(), x.detach().clone().requires_grad_()
    distribution.joint_sample.set({"layer": weights})
    output = space.to(x.dtype)(x)
    gradients = torch.autograd.grad((output**3).sum(), [x, weights], create_graph=is_double)
    if not is_double:
        return [output, *gradients]
    return [output, *gradients, *torch.autograd.grad(sum((g**2).sum() for g in gradients), [x, weights])]


def assert_equal(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@given(
    st.lists(st.sampled_from(CANDIDATES), min_size=2, max_size=9),
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_mixture_gives_the_outputs_and_gradients_of_the_plain_one(
    candidates, dtype, scale, is_double, seed
):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 5, 4, dtype=dtype) * scale
    # The entries where a derivative jumps.
    x[0, 0, 0] = torch.tensor([0.0, -0.5, 2.0, 6.0])
    weights = torch.rand(len(candidates), dtype=dtype) * (torch.rand(len(candidates)) < 0.8)
    assume(weights.any())
    is_double = is_double and scale < 30  # that of Softplus overflows
    found, expected = (results(candidates, way, weights, x, is_double) for way in (True, False))
    assert_equal(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("candidate", CANDIDATES, ids=repr)
def test_each_entry_is_exact_far_from_zero_and_near_it(candidate):
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.logspace(-30, 0, 50), -torch.logspace(-30, 0, 50)])
    for dtype, tolerance in TOLERANCE.items():
        weights = torch.tensor([1.0, 1e-3], dtype=dtype)
        pair = [candidate, nn.Identity()]
        found, expected = (results(pair, way, weights, x.to(dtype)) for way in (True, False))
        # Not the gradient of the weights: summed over both signs it is what rounding leaves.
        for one, other in zip(found[:2], expected[:2], strict=True):
            assert torch.allclose(one, other, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5, 7), (0, 3)])
def test_tensors_larger_than_a_part_are_worked_through_part_by_part(shape, monkeypatch):
    monkeypatch.setattr(elementwise, "_CHUNK", 11)
    x, weights = torch.randn(shape, dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    pair = [nn.Mish(), nn.Tanh()]
    found, expected = (results(pair, way, weights, x) for way in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_the_layout_in_memory_changes_no_number_and_channels_last_stays(layout):
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "sliced": x[:, ::2, 1:],
        "expanded": x[:, :1].expand(2, 4, 6, 5),
    }[layout]
    space = OneChoice([nn.Mish(), nn.GELU(), nn.Identity()])
    distribution = relax(space)
    distribution.use_probabilities()
    output = space(x)
    expected = (nn.functional.mish(x) + nn.functional.gelu(x) + x) / 3
    assert torch.allclose(output, expected, rtol=1e-6)
    if layout == "channels_last":
        assert output.is_contiguous(memory_format=torch.channels_last)


def test_one_tensor_is_kept_for_the_backward_pass():
    space = OneChoice([nn.ReLU(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Mish(), nn.Sigmoid()])
    distribution = relax(space)
    distribution.sample(1.0)
    kept = []
    x = torch.randn(8, 3, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        space(x)
    assert [t.shape for t in kept if t.numel() > 6] == [x.shape]


@pytest.mark.parametrize("candidate", OTHERS, ids=repr)
def test_what_has_parameters_or_draws_numbers_runs_by_itself(candidate):
    found = plan({"relu": nn.ReLU(), "other": candidate, "identity": nn.Identity()})
    assert list(found.alone) == ["other"]
    assert found.describe().startswith("relu, identity as one elementwise operation")


def test_an_identity_joins_the_convolutions_where_there_are_any():
    found = plan({"conv": nn.Conv2d(2, 2, 1), "id": nn.Identity(), "relu": nn.ReLU(), "tanh": nn.Tanh()})
    assert [operation.names for operation in found.operations] == [("conv", "id"), ("relu", "tanh")]


def test_zeros_alone_and_in_place_activations_run_by_themselves():
    assert list(plan({"a": Zero(2, 2, 1), "b": Zero(2, 2, 1)}).alone) == ["a", "b"]
    assert list(plan({"a": nn.ReLU(inplace=True), "b": nn.ReLU(inplace=True)}).alone) == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_near_as_the_plain_mixture(dtype):
    candidates = CANDIDATES
    x, weights = torch.randn(64, 32), torch.rand(len(candidates)) / len(candidates)
    exact = results(candidates, False, weights, x)[0]
    space = OneChoice(candidates)
    distribution = relax(space)
    distribution.joint_sample.set({"layer": weights})
    output = space(x.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - exact).abs().max() < 0.02 * exact.abs().max()

"""Merging is chosen for the input at hand: kernels are weighted and added, or outputs are."""

import pytest
import torch
import torch.utils.checkpoint
from nni.nas.hub.pytorch.nasnet import Zero
from one_choice import OneChoice
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.supernet.candidates import plan


def convolutions(channels, kernels=(1, 3)):
    return [nn.Conv2d(channels, channels, k, padding=k // 2) for k in kernels]


@pytest.mark.parametrize(
    ("candidates", "shape", "repays"),
    [
        (convolutions(16), (8, 16, 28, 28), True),
        (
            convolutions(16),
            (8, 16, 2, 2),
            False,
        ),  # a late layer: more entries in the kernels than in the outputs
        ([nn.Linear(256, 256) for _ in range(4)], (512, 256), True),
        ([nn.Linear(256, 256) for _ in range(4)], (2, 256), False),
        ([nn.Linear(64, 64), nn.ReLU()], (4, 64), False),  # the weight of one alone scales its outputs
        ([nn.Conv1d(4, 4, 3, padding=1), nn.Identity()], (4, 100), True),  # without a batch
    ],
)
def test_candidates_run_as_one_where_their_kernels_are_small_beside_their_outputs(candidates, shape, repays):
    space = OneChoice(candidates)
    distribution = relax(space)
    (operation,) = plan({k: space.layer[k] for k in space.layer.names}).operations
    x = torch.randn(shape)
    assert operation.repays(x) == repays
    distribution.sample(1.0)
    weights = distribution.joint_sample.weights("layer").detach()
    expected = sum(weight * module(x) for weight, module in zip(weights, candidates))
    assert torch.allclose(space(x), expected, atol=1e-4)


def test_what_is_kept_of_a_plan_outlives_inference_mode():
    space = OneChoice({"pool": nn.MaxPool2d(3, 1, 1), **dict(zip("ab", convolutions(4)))})
    distribution = relax(space)
    x = torch.randn(2, 4, 16, 16)
    with torch.inference_mode():
        distribution.use_probabilities()
        space(x)
    distribution.sample(1.0)
    space(x).sum().backward()
    assert distribution.logits["layer"].grad is not None


def test_a_zero_that_keeps_its_channels_joins_no_convolution_that_changes_them():
    candidates = {"zero": Zero(1), "narrow": nn.Conv2d(4, 2, 1), "wide": nn.Conv2d(4, 2, 3, padding=1)}
    assert all("zero" not in operation.names for operation in plan(candidates).operations)
    space = OneChoice(candidates)
    relax(space)
    with pytest.raises(UsageError, match="outputs of different shapes"):
        space(torch.randn(2, 4, 16, 16))


def test_an_input_that_is_changed_after_activations_have_run_is_told_in_one_line():
    space = OneChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()})
    distribution = relax(space)
    distribution.sample(1.0)
    x = torch.randn(3, 4, requires_grad=True) * 1
    y = space(x)
    x += 1
    with pytest.raises(UsageError, match="relu, tanh: their input is changed in place after they have run"):
        y.sum().backward()


@pytest.mark.parametrize("candidates", [[nn.ReLU(), nn.Tanh()], [nn.Tanh(), nn.Identity()]], ids=repr)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_output_of_activations_may_be_changed_in_place(candidates, layout):
    space = OneChoice(candidates)
    distribution = relax(space)
    distribution.sample(1.0)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = space((x * 1).contiguous(memory_format=layout))
    y += 1
    y[:, 0] = 0
    nn.functional.relu_(y).sum().backward()
    assert x.grad is not None and y.is_contiguous(memory_format=layout)


def test_a_choice_that_is_checkpointed_runs_again_as_it_ran_first():
    def separable():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1))

    space = OneChoice({"a": nn.Conv2d(4, 4, 3, padding=1), "b": separable()})
    distribution = relax(space)
    distribution.sample(1.0)
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    torch.utils.checkpoint.checkpoint(space, x, use_reentrant=False).sum().backward()
    assert x.grad is not None


def test_a_merged_supernet_runs_on_the_meta_device():
    space = OneChoice(dict(zip("ab", convolutions(4))))
    distribution = relax(space)
    space.to("meta")
    distribution.to("meta")
    distribution.use_probabilities()
    assert space(torch.randn(2, 4, 16, 16, device="meta")).shape == (2, 4, 16, 16)


def test_the_gradient_of_a_weight_is_summed_in_the_precision_of_the_weights(monkeypatch):
    """Parts of 64 entries: their sums in bfloat16 would lose all but two digits."""
    monkeypatch.setattr("nni_gumbel.supernet.elementwise._CHUNK", 64)
    space = OneChoice({"relu": nn.ReLU(), "identity": nn.Tanh()})
    distribution = relax(space)
    weights = torch.full((2,), 0.5, requires_grad=True)
    distribution.joint_sample.set({"layer": weights})
    x = torch.ones(64 * 999, dtype=torch.bfloat16, requires_grad=True)
    space(x).sum().backward()
    assert float(weights.grad[0]) == pytest.approx(64 * 999, rel=1e-4)

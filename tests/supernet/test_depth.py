"""``Repeat`` with a depth to choose: the mixture of the depths, at a sample the frozen network."""

import itertools

import nni
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.testing import assert_supernet_equals_frozen

WIDTH = 3


def block(i=0):
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())


class Pair(nn.Module):
    """Takes and returns two tensors, in a tuple or a list."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(WIDTH, WIDTH), kind

    def forward(self, pair):
        return self.kind([pair[1], pair[0] + self.layer(pair[1])])


class Depth(ModelSpace):
    """One ``Repeat``, made by a function so that labels are new for every space."""

    def __init__(self, make, prepare=lambda x: x):
        super().__init__()
        self.repeat, self._prepare = make(), prepare

    def forward(self, x):
        return self.repeat(self._prepare(x))


def shared_choice():
    return LayerChoice([block(), nn.Tanh()], label="shared")


def choice_of_its_own(i):
    return LayerChoice([block(), nn.Tanh()], label=f"own{i}")


def nested():
    deep = Repeat(block, (0, 2), label="inside")
    return LayerChoice({"deep": deep, "flat": nn.Linear(WIDTH, WIDTH)}, label="outside")


SPACES = {
    "from 0": lambda: Repeat(block, (0, 3), label="depth"),
    "from 2": lambda: Repeat(block, (2, 4), label="depth"),
    "a choice": lambda: Repeat([block(), block(), block(), block()], nni.choice("depth", [4, 0, 1])),
    "an expression": lambda: Repeat(block, nni.choice("twice", [0, 1]) * 2 + nni.choice("once", [0, 1])),
    "shared choices": lambda: Repeat(shared_choice(), (0, 2), label="depth"),
    "choices of their own": lambda: Repeat(choice_of_its_own, (1, 2), label="depth"),
    "in a layer choice": nested,
    "in itself": lambda: Repeat(lambda i: Repeat(block, (0, 2), label="inner"), (1, 2), label="outer"),
}


def all_samples(space):
    variables = space.simplify()
    values = itertools.product(*(variable.values for variable in variables.values()))
    return [dict(zip(variables, chosen)) for chosen in values]


def batch(dtype=torch.float64):
    return torch.randn(5, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_at_every_sample_it_is_the_frozen_network(make):
    space = Depth(make)
    assert_supernet_equals_frozen(space, batch(), all_samples(space))


@pytest.mark.parametrize("kind", [tuple, list])
def test_blocks_that_pass_on_several_tensors_are_mixed_entry_by_entry(kind):
    space = Depth(lambda: Repeat(lambda i: Pair(kind), (0, 3), label="depth"), lambda x: kind([x, 2 * x]))
    assert_supernet_equals_frozen(space, batch(), all_samples(space))
    relax(space)
    assert isinstance(space(batch(torch.float32)), kind)


def test_the_mixture_is_the_weighted_sum_of_the_depths_the_input_among_them():
    space = Depth(SPACES["from 0"]).eval()
    x = batch(torch.float32)
    outputs = [space.freeze({"depth": depth})(x) for depth in range(4)]
    distribution = relax(space)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    distribution.joint_sample.set({"depth": weights})
    expected = sum(weight * output for weight, output in zip(weights, outputs))
    assert torch.allclose(space(x), expected, atol=1e-6)
    assert torch.equal(outputs[0], x)


def test_an_expression_gives_a_depth_the_weight_of_all_its_combinations():
    space = Depth(lambda: Repeat(block, nni.choice("a", [0, 1]) + nni.choice("b", [0, 1]))).eval()
    x = batch(torch.float32)
    outputs = [space.freeze({"a": a, "b": b})(x) for a, b in [(0, 0), (0, 1), (1, 1)]]
    relax(space).joint_sample.set({"a": torch.tensor([0.75, 0.25]), "b": torch.tensor([0.5, 0.5])})
    expected = sum(weight * output for weight, output in zip([0.375, 0.5, 0.125], outputs))
    assert torch.allclose(space(x), expected, atol=1e-6)


def test_blocks_beyond_the_deepest_active_depth_are_not_run():
    space = Depth(SPACES["from 0"])
    distribution = relax(space)
    with torch.no_grad():
        space.repeat.blocks[2][0].weight.fill_(float("nan"))
    distribution.joint_sample.set({"depth": torch.tensor([0.5, 0.0, 0.5, 0.0])})
    assert torch.isfinite(space(batch(torch.float32))).all()


@pytest.mark.parametrize(
    ("name", "estimator"), [*((name, "soft") for name in SPACES), ("from 0", "straight-through-gumbel")]
)
def test_one_loss_has_a_gradient_in_every_logit(name, estimator):
    space = Depth(SPACES[name])
    distribution = relax(space)
    distribution.sample(1.0, estimator)
    space(batch(torch.float32)).square().sum().backward()
    for label, logits in distribution.logits.items():
        assert (logits.grad != 0).all(), label


def test_a_repeat_of_constant_depth_stays_and_the_choices_in_it_are_mixed():
    space = Depth(lambda: Repeat(choice_of_its_own, 2))
    assert_supernet_equals_frozen(space, batch(), all_samples(space))
    relax(space)
    assert type(space.repeat) is Repeat


def test_depths_of_different_shapes_are_refused_in_one_line_that_names_the_label():
    blocks = [nn.Linear(WIDTH, 4), nn.Linear(4, 4)]
    space = Depth(lambda: Repeat(blocks, (0, 2), label="depth"))
    relax(space)
    with pytest.raises(
        UsageError, match=r"'depth': .*depth 0 gives \(5, 3\), depth 1 gives \(5, 4\)"
    ) as caught:
        space(batch(torch.float32))
    assert "\n" not in str(caught.value)


def test_the_check_finds_a_depth_that_is_off_by_one(monkeypatch):
    forward = MixedRepeat.forward

    monkeypatch.setattr(MixedRepeat, "forward", lambda self, x: forward(_Shifted(self), x))
    space = Depth(SPACES["from 0"])
    with pytest.raises(AssertionError, match="output in train"):
        assert_supernet_equals_frozen(space, batch(), all_samples(space))


class _Shifted:
    """A ``MixedRepeat`` whose blocks start one too late."""

    def __init__(self, repeat):
        self._joint_sample, self._depths = repeat._joint_sample, repeat._depths
        self.blocks = [nn.Identity(), *repeat.blocks]

    of_depth = MixedRepeat.of_depth
    transformation = None

"""Choices in the arguments of modules: at a sample the supernet is the frozen network.

The reference is a second, never mutated instance, frozen by NNI's own code, with the supernet's weights.
"""

import copy
import pickle

import nni
import pytest
import torch
from argument_modules import MODULES, kernel, randn, width
from argument_spaces import Space, all_samples, assert_close, assert_equals_frozen, supernet_of
from nni.nas.nn.pytorch import (
    MutableBatchNorm2d,
    MutableConv2d,
    MutableDropout,
    MutableLinear,
    MutableLSTM,
    MutableMaxPool2d,
    MutableMultiheadAttention,
    MutableReLU,
    ParametrizedModule,
)
from nni.nas.oneshot.pytorch.supermodule.operation import MixedConv2d, MixedMultiHeadAttention
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet import arguments
from nni_gumbel.supernet.arguments import MixedArguments, parameter_sizes
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.supernet.variants import Variants

# What labels of these names choose is seen by the statistics, not by an output in train mode.
WITHOUT_GRADIENT = {"momentum", "track"}


def conv_net():
    return nn.Sequential(
        MutableConv2d(3, width(), kernel(), padding=kernel() // 2, bias=False),
        MutableBatchNorm2d(width()),
        nn.ReLU(),
        MutableConv2d(width(), width() * 2, 3, padding=1, groups=width()),
        nn.Flatten(),
        MutableLinear(width() * 2 * 25, 4),
    )


IMAGE = randn(3, 3, 5, 5)


@pytest.mark.parametrize("name", MODULES)
def test_the_supernet_at_a_sample_equals_the_frozen_module(name):
    make, *inputs = MODULES[name]
    assert_equals_frozen(make, *inputs)


@pytest.mark.parametrize("name", MODULES)
def test_a_mixture_has_finite_gradients_to_weights_and_to_every_label(name):
    make, *inputs = MODULES[name]
    supernet, distribution = supernet_of(make)
    distribution.double().sample(1.0)
    output = supernet(*inputs)
    first = output if torch.is_tensor(output) else output[0]
    # Not the plain sum, to which a norm has no gradient.
    (first * randn(*first.shape)).sum().backward()
    for label, logits in distribution.logits.items():
        assert torch.isfinite(logits.grad).all(), label
        assert logits.grad.abs().sum() > 0 or label in WITHOUT_GRADIENT, label
    for parameter_name, parameter in supernet.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), parameter_name


# -- planted bugs: each makes the comparison fail ---------------------------------------------------


def rolled(dim):
    """Runs a module with weights one entry beside the right ones."""

    def call(template, tensors, args, kwargs=None):
        moved = {name: tensor.roll(1, dim) if tensor.dim() else tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(template, moved, args, kwargs)

    return call


def plant(bug, monkeypatch):
    if bug == "slice off by one":
        monkeypatch.setattr(arguments, "functional_call", rolled(0))
    if bug == "kernel beside the centre":
        monkeypatch.setattr(arguments, "functional_call", rolled(-1))
    if bug == "another variant is exported":
        position = Tabulated.position
        monkeypatch.setattr(
            Tabulated, "position", lambda table, s: (position(table, s) + 1) % len(table.distinct)
        )
    if bug == "statistics of a copy":
        parts = Variants.parts
        monkeypatch.setattr(Variants, "parts", lambda *a: {n: t.clone() for n, t in parts(*a).items()})


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("linear", "slice off by one"),
        ("embedding", "slice off by one"),
        ("layer norm", "slice off by one"),
        ("attention", "slice off by one"),
        ("batch norm", "slice off by one"),
        ("kernel with padding", "kernel beside the centre"),
        ("dropout", "another variant is exported"),
        ("linear", "another variant is exported"),
        ("batch norm", "statistics of a copy"),
        ("instance norm", "statistics of a copy"),
    ],
)
def test_the_comparison_finds_a_planted_bug(name, bug, monkeypatch):
    plant(bug, monkeypatch)
    make, *inputs = MODULES[name]
    with pytest.raises(AssertionError):
        assert_equals_frozen(make, *inputs)


# -- which part of the weights ------------------------------------------------------------------------


def test_a_convolution_takes_the_part_of_its_kernel_that_nnis_own_mixed_operation_takes():
    supernet, _ = supernet_of(lambda: MutableConv2d(3, width(), kernel(2, 3, 4, 5)))
    theirs = MixedConv2d({"in_channels": 3, "out_channels": width(), "kernel_size": kernel(2, 3, 4, 5)})
    theirs.load_state_dict(supernet.net.state_dict())
    for sample in all_samples(supernet):
        ours, expected = supernet.net.freeze(sample).state_dict(), theirs.freeze(sample).state_dict()
        assert all(torch.equal(ours[name].float(), expected[name]) for name in ("weight", "bias"))


def test_an_attention_takes_the_parts_that_nnis_own_mixed_operation_takes():
    def embed():
        return nni.choice("embed", [4, 8])

    supernet, _ = supernet_of(lambda: MutableMultiheadAttention(embed(), 2, add_bias_kv=True))
    theirs = MixedMultiHeadAttention({"embed_dim": embed(), "num_heads": 2, "add_bias_kv": True})
    theirs.load_state_dict(supernet.net.state_dict())
    ours = supernet.net.freeze({"embed": 4}).state_dict()
    for name, expected in theirs.freeze({"embed": 4}).state_dict().items():
        assert torch.equal(ours[name].float(), expected)


def test_gates_of_a_recurrent_layer_keep_their_places():
    supernet, _ = supernet_of(lambda: MutableLSTM(3, nni.choice("h", [2, 4])))
    small, large = (supernet.net.freeze({"h": h}) for h in (2, 4))
    for gate, whole in zip(small.weight_ih_l0.chunk(4), large.weight_ih_l0.chunk(4)):
        assert torch.equal(gate, whole[:2])


def test_every_entry_that_some_variant_has_is_initialised():
    supernet = Space(lambda: nn.Sequential(MutableLinear(3, width()), MutableLinear(width(), 8 - width())))
    relax(supernet)
    assert supernet.net[1].weight.shape == (6, 6)
    for sample in all_samples(supernet):
        assert (supernet.freeze(sample).net[1].weight != 0).all()


# -- modules without a choice in their arguments ------------------------------------------------------


class Scaled(ParametrizedModule):
    """A person's own module, with a choice inside."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.inner = nn.Sequential(MutableLinear(size, nni.choice("hidden", [2, 3])), MutableReLU())

    def forward(self, x):
        return self.inner(x * self.scale)


def test_modules_without_a_choice_become_the_frozen_module_with_their_weights():
    supernet = Space(
        lambda: nn.Sequential(
            MutableConv2d(3, 4, 1, bias=False),
            MutableBatchNorm2d(4, affine=False),
            MutableDropout(width() / 10),
        )
    )
    weight = supernet.net[0].weight
    called = []
    supernet.net[0].register_forward_hook(lambda *_: called.append(True))
    relax(supernet)
    assert type(supernet.net[0]) is nn.Conv2d and type(supernet.net[1]) is nn.BatchNorm2d
    assert supernet.net[0].weight is weight
    frozen = supernet.freeze({"width": 2})
    assert torch.equal(frozen.net[0].weight, weight)
    frozen.net[0](IMAGE.float())
    assert called


def test_a_module_without_a_choice_is_as_it_was_built_from_its_arguments():
    # The hub's `reset_parameters` sets an eps that NNI's frozen module does not have.
    supernet = Space(lambda: nn.Sequential(MutableBatchNorm2d(3, momentum=0.2), MutableDropout(width() / 10)))
    supernet.net[0].eps = 0.5
    reference = copy.deepcopy(supernet).freeze({"width": 2})
    relax(supernet)
    assert supernet.net[0].eps == reference.net[0].eps == 1e-5 and supernet.net[0].momentum == 0.2


def test_a_persons_own_module_keeps_its_weights_and_choices_inside_it_are_frozen():
    assert_equals_frozen(lambda: Scaled(3), randn(5, 3))
    supernet, _ = supernet_of(lambda: Scaled(3))
    frozen = supernet.freeze({"hidden": 2}).net
    assert type(frozen) is Scaled and torch.equal(frozen.scale, supernet.net.scale)
    assert type(frozen.inner[0]) is nn.Linear and frozen.inner[0].out_features == 2


class Both(Scaled):
    """With choices inside and in its arguments."""


class Wrapper(ParametrizedModule):
    """A person's own module that is given another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class Tokens(ParametrizedModule):
    """A person's own module with a choice in its arguments, which reads any input."""

    def __init__(self, number, size=3):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(number, size))

    def forward(self, x):
        return x + self.tokens.mean(0)


def test_a_persons_own_module_may_have_choices_in_its_arguments():
    def make():
        return Tokens(nni.choice("number", [1, 2, 4]))

    assert_equals_frozen(make, randn(5, 3))
    supernet, distribution = supernet_of(make)
    distribution.double().use_probabilities()
    x = randn(5, 3)
    expected = sum(supernet.net.freeze({"number": n})(x) for n in (1, 2, 4)) / 3
    assert_close(supernet(x), expected, "mixture")


# -- what else people do with a supernet --------------------------------------------------------------


def test_a_supernet_can_be_copied_pickled_and_loaded():
    supernet, distribution = supernet_of(conv_net)
    distribution.double().sample(1.0)
    expected = supernet.eval()(IMAGE)
    clone = copy.deepcopy(supernet)
    assert torch.equal(clone(IMAGE), expected)
    other, other_distribution = supernet_of(conv_net)
    other.load_state_dict(supernet.state_dict())
    other_distribution.joint_sample.set(
        {label: distribution.joint_sample.draw(label).detach() for label in distribution.logits}
    )
    assert torch.equal(other.eval()(IMAGE), expected)
    module = MODULES["lstm"][0]
    recurrent, recurrent_distribution = supernet_of(module)
    with torch.no_grad():
        recurrent_distribution.sample(1.0)
    restored = pickle.loads(pickle.dumps(recurrent.net))
    x = randn(2, 5, 3)
    assert torch.equal(restored(x)[0], recurrent.net(x)[0])
    assert isinstance(restored[1], nn.LSTM) and isinstance(restored[1], MixedArguments)


def test_the_supernet_may_be_cast_after_the_mutation():
    supernet = Space(conv_net)
    distribution = relax(supernet)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        distribution.sample(1.0)
        output = supernet.to(dtype)(IMAGE.to(dtype))
        assert output.dtype == dtype
        output.sum().backward()
        assert all(p.dtype == dtype and p.grad.dtype == dtype for p in supernet.parameters())
        supernet.zero_grad()


def test_under_autocast_parameters_stay_as_they_are_and_outputs_follow():
    supernet = Space(conv_net)
    distribution = relax(supernet)
    for sample in (
        lambda: distribution.sample(1.0),
        lambda: distribution.use_architecture(distribution.mode()),
    ):
        sample()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = supernet(IMAGE.float())
        assert output.dtype == torch.bfloat16 and torch.isfinite(output).all()
        assert all(parameter.dtype == torch.float32 for parameter in supernet.parameters())


def test_a_supernet_whose_first_pass_was_in_inference_mode_can_be_trained():
    # Two combinations make a width of 4, so that positions and sizes are both kept for later passes.
    supernet, distribution = supernet_of(
        lambda: MutableLinear(6, nni.choice("width", [2, 4]) * nni.choice("factor", [1, 2]), bias=False)
    )
    with torch.inference_mode():
        supernet(randn(2, 6))
    distribution.sample(1.0)
    supernet(randn(2, 6)).square().sum().backward()
    assert all((logits.grad != 0).all() for logits in distribution.logits.values())


def test_a_supernet_of_a_space_in_float64_is_in_float64():
    space = Space(conv_net).double()
    relax(space)
    assert all(parameter.dtype == torch.float64 for parameter in space.parameters())


def test_what_is_inactive_is_not_touched():
    supernet, distribution = supernet_of(conv_net)
    distribution.use_architecture({"width": 2, "kernel": 3})
    with torch.no_grad():
        supernet.net[0].weight[2:] = torch.nan
        supernet.net[0].weight[..., 0] = torch.nan
        supernet.net[1].running_mean[2:] = torch.nan
    before = supernet.net[1].running_var[2:].clone()
    assert torch.isfinite(supernet.train()(IMAGE)).all()
    assert torch.equal(supernet.net[1].running_var[2:], before)


def test_freezing_draws_no_random_numbers():
    supernet, _ = supernet_of(conv_net)
    state = torch.get_rng_state()
    supernet.freeze({"width": 2, "kernel": 3})
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_fit_every_variant_are_kept_when_the_space_is_relaxed():
    space = Space(
        lambda: nn.Sequential(MutableConv2d(4, 4, 3, groups=nni.choice("g", [1, 2])), MutableReLU())
    )
    weight = space.net[0].weight
    weight.requires_grad_(False)
    relax(space)
    assert space.net[0].weight is weight
    assert not space.freeze({"g": 2}).net[0].weight.requires_grad


def test_a_mixed_module_is_a_module_of_its_kind_and_shows_its_choices():
    supernet, _ = supernet_of(conv_net)
    assert isinstance(supernet.net[0], nn.Conv2d) and isinstance(supernet.net[1], nn.BatchNorm2d)
    assert "Categorical([2, 4, 6], label='width')" in repr(supernet.net[1])
    assert list(supernet.simplify()) == ["width", "kernel"]


def test_a_momentum_that_is_set_after_the_mutation_counts():
    supernet, distribution = supernet_of(conv_net)
    norm, seen = supernet.net[1], []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().mean((0, 2, 3))))
    norm.momentum = None  # statistics are now means over all batches
    distribution.sample(1.0)
    for _ in range(2):
        seen.clear()
        norm.reset_running_stats()
        supernet.train()(IMAGE), supernet(2 * IMAGE)
        mean = torch.stack(seen).mean(0)
        assert torch.allclose(norm.running_mean[: len(mean)], mean)
        distribution.use_architecture(distribution.mode())


def test_parameter_sizes_are_those_of_the_frozen_modules():
    makes = [MODULES[name][0] for name in MODULES if "layers" not in name]
    for make in makes:
        supernet, _ = supernet_of(make)
        for sample in all_samples(supernet, limit=6):
            frozen = supernet.freeze(sample)
            for name, module in supernet.named_modules():
                sizes = parameter_sizes(module)
                if sizes:
                    assert set(dict(module.named_parameters())) == set(sizes)
                    total = 0
                    for labels, table in sizes.values():
                        place = [supernet.simplify()[label].values.index(sample[label]) for label in labels]
                        total += table[tuple(place)]
                    assert total == sum(p.numel() for p in frozen.get_submodule(name).parameters())


# -- what cannot be mixed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MutableMaxPool2d((nni.choice("k", [1, 3]), 1)),
            "module 'net.0': 'kernel_size' hides choice 'k' in a tuple",
        ),
        (
            lambda: MutableDropout(nni.choice("rate", [0.1, 2.0])),
            r"module 'net.0': Dropout cannot be built with p=2.0 \(ValueError: dropout probability has to be",
        ),
        (
            lambda: MutableLinear(3, 4, dtype=nni.choice("dtype", [torch.float32, torch.float64])),
            "module 'net.0': argument 'dtype' cannot be a choice",
        ),
        (
            lambda: Wrapper(Scaled(3)),
            "module 'net.0': argument 'inner' is a Scaled with choices, which NNI freezes to their defaults",
        ),
        (
            lambda: Both(nni.choice("size", [3, 4])),
            "module 'net.0': Both has choices in its arguments and choice 'hidden' inside; keep the one",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        relax(Space(lambda: nn.Sequential(make(), MutableDropout(nni.choice("r", [0.1, 0.2])))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (
            lambda: MutableConv2d(3, width(), 1, stride=nni.choice("s", [1, 2])),
            (2, 3, 4, 4),
            r"module 'net': choice 'width', 's' makes outputs of different shapes \(.*stride=1 gives .*stride=2 gives",
        ),
        (
            lambda: MutableLinear(width(), 2),
            (2, 5),
            r"module 'net': its input has 5 features \(dimension -1 of \(2, 5\)\), but with choice 'width' it reads",
        ),
        (
            lambda: Tokens(2, width()),
            (2, 6),
            r"module 'net': a mixture of Tokens is not supported: with size=2 \(choice 'width'\) it does not run",
        ),
    ],
)
def test_a_mixture_that_cannot_be_computed_is_refused_in_one_line(make, shape, message):
    supernet, distribution = supernet_of(make)
    distribution.sample(1.0)
    with pytest.raises(UsageError, match=message) as caught:
        supernet(randn(*shape))
    assert "\n" not in str(caught.value)

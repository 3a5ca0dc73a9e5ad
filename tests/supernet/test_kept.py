"""What was done to a module after it was built stays done when its space is relaxed, and in what it is frozen to."""

import copy

import nni
import pytest
import torch
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableConv2d,
    MutableEmbedding,
    MutableLinear,
    ParametrizedModule,
    Repeat,
)
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from nni_gumbel import UsageError, relax

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Space(ModelSpace):
    """A layer, and a choice of activations behind it."""

    def __init__(self, make):
        super().__init__()
        self.layer = make()
        self.choice = LayerChoice([nn.ReLU(), nn.Tanh()], label="activation")

    def forward(self, x):
        return self.choice(self.layer(x))


def widths():
    return nni.choice("width", [2, 4, 64])


def wide():
    return MutableLinear(4, widths())


# -- parametrizations ----------------------------------------------------------------------------------

PARAMETRIZATIONS = {
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("of", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_a_parametrization_of_a_mutable_layer_without_a_choice_stays(of):
    space = Space(lambda: of(MutableLinear(4, 4)))
    expected = space.layer(X)
    distribution = relax(space.eval())
    distribution.sample(1.0)
    space(X).sum().backward()
    assert all(p.grad is not None for p in space.layer.parameters() if p.requires_grad)
    network = space.freeze({"activation": 0})
    assert is_parametrized(network.layer, "weight") and isinstance(network.layer, nn.Linear)
    assert torch.allclose(network.layer(X), expected, atol=1e-5)
    copied = copy.deepcopy(network)
    assert type(remove_parametrizations(copied.layer, "weight")) is nn.Linear
    assert is_parametrized(network.layer)


@pytest.mark.parametrize("of", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_a_parametrization_of_a_layer_of_a_chosen_size_is_refused_in_one_line(of):
    with pytest.raises(
        UsageError, match="module 'layer': its 'weight' .* parametrization.* choice 'width'"
    ) as caught:
        relax(Space(lambda: of(wide())))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", [spectral_norm, weight_norm], ids=["spectral norm", "weight norm"])
def test_a_norm_that_is_a_hook_is_refused_because_no_network_with_it_can_be_copied(of):
    layer = of(nn.Linear(4, 4))
    layer(X)
    with pytest.raises(RuntimeError):
        copy.deepcopy(layer)
    with pytest.raises(
        UsageError, match="module 'layer': .* of torch.nn.utils .* torch.nn.utils.parametrizations"
    ):
        relax(Space(lambda: of(nn.Linear(4, 4))))


# -- initialisation ------------------------------------------------------------------------------------


def initialised(init, make=wide):
    space = Space(make)
    init(space.layer)
    weight = space.layer.weight.detach().clone()
    relax(space)
    return weight, space.layer.weight.detach()


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_a_constant_initialisation_is_that_of_all_sizes(value):
    _, weight = initialised(lambda layer: nn.init.constant_(layer.weight, value))
    assert weight.shape == (64, 4)
    assert torch.equal(weight, torch.full((64, 4), value))


@pytest.mark.parametrize(
    "init",
    [
        lambda layer: nn.init.normal_(layer.weight, std=20.0),
        lambda layer: layer.weight.data.normal_(std=20.0),
        lambda layer: setattr(layer, "weight", nn.Parameter(20 * torch.randn(2, 4))),
    ],
    ids=["in place", "by its data", "by another parameter"],
)
def test_a_random_initialisation_has_the_spread_that_it_was_given_in_all_sizes(init):
    own, weight = initialised(init)
    assert torch.equal(weight[:2], own)
    # 256 entries drawn from 8: their spread is that of the 8.
    assert float(weight.std()) == pytest.approx(float(own.std()), rel=0.2)


def test_weights_that_were_loaded_stay_as_the_part_that_their_size_uses():
    own, weight = initialised(lambda layer: layer.load_state_dict(nn.Linear(4, 2).state_dict()))
    assert torch.equal(weight[:2], own)


def test_a_layer_that_nobody_touched_is_initialised_for_its_largest_size():
    weights = [
        initialised(lambda layer: None, lambda: MutableLinear(nni.choice("width", [1, 1024]), 1))[1]
        for _ in range(20)
    ]
    assert all(float(weight.abs().max()) <= 1 / 32 for weight in weights)  # as torch has it for 1,024 inputs


def test_the_kernel_that_was_initialised_is_the_centre_of_the_larger_one():
    def make():
        size = nni.choice("kernel", [1, 3])
        return MutableConv2d(4, 4, size, padding=size // 2)

    _, weight = initialised(lambda layer: nn.init.dirac_(layer.weight), make)
    assert torch.equal(weight[..., 1, 1], torch.eye(4))


# -- ties ----------------------------------------------------------------------------------------------


class Tied(ModelSpace):
    def __init__(self, make):
        super().__init__()
        self.words, self.out = make()
        self.out.weight = self.words.weight
        self.choice = LayerChoice([nn.Identity(), nn.Tanh()], label="activation")

    def forward(self, x):
        return self.out(self.choice(self.words(x)))


@pytest.mark.parametrize("embedding", [nn.Embedding, MutableEmbedding])
@pytest.mark.parametrize("linear", [nn.Linear, MutableLinear])
def test_tied_weights_stay_tied(embedding, linear):
    space = Tied(lambda: (embedding(7, 4), linear(4, 7, bias=False)))
    relax(space)
    assert space.out.weight is space.words.weight
    network = space.freeze({"activation": 1})
    assert network.out.weight is network.words.weight


@pytest.mark.parametrize("embedding", [nn.Embedding, MutableEmbedding])
def test_a_tie_with_a_layer_of_a_chosen_size_is_refused_in_one_line(embedding):
    def make():
        width = nni.choice("width", [4, 8])
        return embedding(7, 4 if embedding is nn.Embedding else width), MutableLinear(width, 7, bias=False)

    with pytest.raises(
        UsageError, match="module 'out': its 'weight' is 'words.weight', too, .* 'width'"
    ) as caught:
        relax(Tied(make))
    assert "\n" not in str(caught.value)


class Inside(ParametrizedModule):
    """A person's own module of a chosen size, tied inside."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.into, self.out = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.out(self.second(self.first(self.into(x))))


def test_what_a_module_of_a_chosen_size_ties_inside_stays_tied():
    space = Space(lambda: Inside(nni.choice("width", [2, 3])))
    distribution = relax(space)
    distribution.use_architecture({"width": 2, "activation": 1})
    network = space.freeze({"width": 2, "activation": 1})
    assert network.layer.second.weight is network.layer.first.weight
    assert torch.allclose(network(X), space(X), atol=1e-6)


# -- hooks, buffers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [wide, lambda: MutableLinear(4, 4)], ids=["a chosen size", "no choice"])
def test_hooks_and_what_else_was_added_to_a_layer_stay_in_the_supernet_and_in_its_networks(make):
    seen = []
    space = Space(make)
    space.layer.register_buffer("scale", torch.tensor([3.0]))
    space.layer.gate = nn.Linear(1, 1)
    space.layer.register_forward_hook(
        lambda module, args, output: seen.append(module.scale) or output * module.scale
    )
    distribution = relax(space.train())
    distribution.sample(1.0)
    space(X).sum().backward()
    network = space.freeze({"width": 2, "activation": 1})
    network(X)
    assert [float(scale) for scale in seen] == [3.0, 3.0]
    assert "layer.scale" in network.state_dict() and "layer.gate.weight" in network.state_dict()
    network.layer.register_forward_hook(lambda *_: seen.append(None))
    space(X)
    assert len(seen) == 3, "a hook on a network is none on its supernet"


def test_hooks_on_choices_stay_in_the_supernet():
    class Hooked(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice([nn.Linear(4, 4), nn.Identity()], label="layer")
            self.body = Repeat(lambda i: nn.Linear(4, 4), nni.choice("depth", [1, 2]))
            self.source = InputChoice(2, label="source")

        def forward(self, x):
            return self.source([x, self.body(self.layer(x))])

    space, seen = Hooked(), []
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: seen.append(name))
        for name, module in space.named_children()
    ]
    relax(space)
    space(X)
    assert seen == ["layer", "body", "source"]
    for handle in handles:
        handle.remove()
    space(X)
    assert len(seen) == 3

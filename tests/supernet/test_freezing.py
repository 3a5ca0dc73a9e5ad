"""One network for one sample, however it is made: with the supernet's weights, or anew by the space's constructor."""

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, plans
from hypothesis import HealthCheck, given, settings
from nni.nas.hub.pytorch import DARTS, NASNet
from nni.nas.nn.pytorch import (
    Cell,
    LayerChoice,
    ModelSpace,
    MutableConv2d,
    ParametrizedModule,
    Repeat,
)
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import cost_of
from nni_gumbel.results.space import network_of
from nni_gumbel.supernet.structure import used_part
from nni_gumbel.testing import random_samples


def assert_one_network(make, inputs, samples=4):
    """The export of the supernet and the network built anew: same size, same tensors, same outputs, the price paid."""
    supernet = make().double().eval()
    distribution = relax(supernet).double()
    cost = expected_parameters(supernet)
    for sample in random_samples(make(), samples):
        used = used_part(supernet, sample)
        exported, anew = supernet.freeze(used), network_of(make(), used).double().eval()
        price = cost_of(distribution, cost, used)
        assert count_parameters(exported) == count_parameters(anew) == price, used
        anew.load_state_dict(exported.state_dict(), strict=True)
        distribution.use_architecture(sample)
        with torch.no_grad():
            expected = exported(*inputs)
            assert torch.equal(anew(*inputs), expected)
            assert torch.allclose(supernet(*inputs), expected, atol=1e-9)


class Tied(ModelSpace):
    """An embedding inside a candidate with a choice of its own, and an output layer with the same weight."""

    def __init__(self):
        super().__init__()
        words = nn.Embedding(11, 6)

        def encoder(*layers):
            mixed = LayerChoice([nn.Linear(6, 6), nn.Tanh()], label="mixed")
            return nn.Sequential(
                words, Repeat(lambda _: nn.Sequential(mixed, *layers), (1, 2), label="depth")
            )

        self.encoder = LayerChoice([encoder(), encoder(nn.ReLU())], label="encoder")
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = words.weight

    def forward(self, x):
        return self.out(self.encoder(x))


class RegisteredTwice(ModelSpace):
    """The candidates of a choice are layers of the network besides."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())])
        self.chosen = LayerChoice(
            [*self.layers, LayerChoice([nn.Linear(3, 3), self.layers[0]], label="inner")], label="outer"
        )

    def forward(self, x):
        return self.chosen(self.layers[0](self.layers[1](x)))


class TiedInside(ModelSpace):
    """One layer in a module of a person's own class and in the space."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(3, 3)

        class Own(ParametrizedModule):
            def __init__(self, factor):
                super().__init__()
                self.factor, self.layer = factor, LayerChoice([shared, nn.Tanh()], label="own")

            def forward(self, x):
                return self.factor * self.layer(x)

        self.own, self.shared = Own(2), shared

    def forward(self, x):
        return self.shared(self.own(x))


@pytest.mark.parametrize("space", [Tied, RegisteredTwice, TiedInside])
def test_what_is_tied_in_a_space_is_one_tensor_in_its_networks_and_counts_once(space):
    inputs = torch.randint(0, 11, (4, 5)) if space is Tied else torch.randn(4, 3, dtype=torch.float64)
    assert_one_network(space, (inputs,), samples=8)


class Maps(DARTS):
    """A space of the hub with a stem and a head of a person's own."""

    def __init__(self):
        super().__init__(width=4, num_cells=3, dataset="cifar")
        self.stem[0] = nn.Conv2d(1, self.stem[0].out_channels, 3, padding=1, bias=False)
        self.classifier = nn.Linear(self.classifier.in_features, 4)


class Nested(ModelSpace):
    """A space of the hub inside one of a person's own, beside a cell that is none of the hub's."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.cells = NASNet(width=4, num_cells=3, dataset="cifar")
        own = Cell([nn.Tanh(), nn.Linear(10, 10)], 1, 1, 1, label="own")
        self.head = LayerChoice([own, nn.Sequential(own, nn.Linear(10, 10))], label="head")

    def forward(self, x):
        return self.head(self.cells(self.stem(x)))


@pytest.mark.slow
@pytest.mark.parametrize("space", [Maps, Nested])
def test_spaces_of_the_hub_may_be_derived_from_and_stand_inside_others(space, monkeypatch):
    monkeypatch.setattr(DARTS, "DARTS_OPS", ["skip_connect", "sep_conv_3x3"])
    monkeypatch.setattr(NASNet, "NASNET_OPS", ["skip_connect", "conv_1x1"])
    assert_one_network(space, (torch.randn(2, 1, 8, 8, dtype=torch.float64),), samples=2)


@given(plan=plans)
@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_a_network_built_anew_is_the_one_that_the_supernet_exports(plan):
    assert_one_network(lambda: GeneratedSpace(plan), (torch.randn(4, 3, dtype=torch.float64),), samples=3)


class Initialised(ModelSpace):
    """What the constructor does to its modules after they are built."""

    def __init__(self):
        super().__init__()
        self.conv = MutableConv2d(1, nni.choice("width", [2, 3]), 1)
        self.layer = LayerChoice([nn.Linear(2, 2), nn.Identity()], label="layer")
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.constant_(module.weight, 7.0)


def test_a_network_built_anew_is_initialised_as_the_constructor_says():
    network = network_of(Initialised(), {"width": 3, "layer": 0})
    assert (
        (network.conv.weight == 7).all()
        and network.conv.weight.shape[0] == 3
        and (network.layer.weight == 7).all()
    )


def test_a_constructor_that_cannot_run_at_a_sample_is_told_in_one_line():
    class Indexing(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice([nn.Identity(), nn.Tanh()], label="layer")
            self.first = self.layer[0]

    with pytest.raises(UsageError, match="Indexing.* cannot be built at .*layer.*: TypeError") as told:
        network_of(Indexing(), {"layer": 1})
    assert "\n" not in str(told.value)

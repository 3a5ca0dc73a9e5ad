"""Networks that differ from one in a single choice, and the trained weights that fit them."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear
from torch import nn

from nni_gumbel.results.neighbours import neighbours_of, take_weights
from nni_gumbel.results.space import network_of


class Space(ModelSpace):
    def __init__(self):
        super().__init__()
        self.first = MutableLinear(4, nni.choice("width", [2, 3]))
        self.act = LayerChoice({"relu": nn.ReLU(), "prelu": nn.PReLU()}, label="act")
        self.one = InputChoice(3, n_chosen=1, label="one")
        self.two = InputChoice(3, n_chosen=2, label="two")
        self.any = InputChoice(2, n_chosen=None, label="any")

    def forward(self, x):
        x = self.act(self.first(x))
        return self.any([self.one([x, x + 1, x * 2]), self.two([x, x - 1, x * 3])])


NETWORK = {"width": 3, "act": "relu", "one": [0], "two": [0, 2], "any": [1]}


def test_neighbours_differ_in_one_choice_each():
    found = list(neighbours_of(Space(), NETWORK))
    assert found == [
        ("width", 2), ("act", "prelu"), ("one", [1]), ("one", [2]), ("two", [1, 2]), ("two", [0, 1]),
        ("any", [0, 1]),
    ]  # fmt: skip
    for label, value in found:  # each of them is a network
        network_of(Space(), {**NETWORK, label: value})(torch.zeros(1, 4))


def test_a_label_that_the_network_does_not_use_has_no_neighbours():
    assert "act" not in dict(neighbours_of(Space(), {"width": 3}))


@pytest.mark.parametrize(
    ("change", "fits"), [({"one": [2]}, True), ({"act": "prelu"}, False), ({"width": 2}, False)]
)
def test_a_neighbour_takes_the_trained_weights_where_they_fit(change, fits):
    trained, other = (network_of(Space(), NETWORK | each) for each in ({}, change))
    assert take_weights(other, trained.state_dict()) == fits
    if "width" not in change:
        assert torch.equal(other.first.weight, trained.first.weight)

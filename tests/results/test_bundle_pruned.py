"""A bundle of a pruned network: what is written, and that it is given back."""

import json

import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, ModelSpace
from torch import fx, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.results.bundle import load, write_bundle
from nni_gumbel.results.example import Example
from nni_gumbel.results.pruning import prune
from nni_gumbel.results.space import SpaceReference


class GatedSpace(ModelSpace):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.inputs = InputChoice(2, n_chosen=None, reduction="sum", label="inputs")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inputs([self.first(x), self.norm(self.second(x))]))


class OtherGates(GatedSpace):
    """The same layers, another forward: the second one reaches the output in any case."""

    def forward(self, x):
        second = self.norm(self.second(x))
        return self.head(self.inputs([self.first(x) + 0.1 * second, second]))


REFERENCE = SpaceReference(__name__, "GatedSpace", {})
ONE_GATE, BOTH = {"inputs": [0]}, {"inputs": [0, 1]}
FACTS = {"parameters": 34, "pruned_parameters": 26}


def trained(architecture):
    network = REFERENCE.build().freeze(architecture)
    network.train()(torch.randn(16, 3))
    return network


def written(directory, architecture, with_pruning=True):
    network, example = trained(architecture), torch.randn(5, 3)
    pruned = prune(network, example) if with_pruning else None
    write_bundle(directory, network, architecture, REFERENCE, Example((example,)), FACTS, pruned)
    return network, json.loads((directory / "bundle.json").read_text())


def test_a_pruned_network_is_given_back_pruned(tmp_path):
    network, _ = written(tmp_path / "bundle", ONE_GATE)
    loaded, x = load(tmp_path / "bundle"), torch.randn(7, 3)
    assert isinstance(loaded, fx.GraphModule) and not loaded.training
    assert set(loaded.state_dict()) == {"first.weight", "first.bias", "head.weight", "head.bias"}
    torch.testing.assert_close(loaded(x), network.eval()(x), rtol=0, atol=0)


def test_a_bundle_says_what_was_pruned(tmp_path):
    _, facts = written(tmp_path / "bundle", ONE_GATE)
    assert facts["pruned"] == {"removed_layers": ["second", "norm"]}
    assert (facts["parameters"], facts["pruned_parameters"]) == (34, 26)


def test_a_network_of_which_nothing_can_go_is_given_back_as_frozen(tmp_path):
    network, facts = written(tmp_path / "bundle", BOTH)
    loaded, x = load(tmp_path / "bundle"), torch.randn(7, 3)
    assert "pruned" not in facts and isinstance(loaded, GatedSpace)
    torch.testing.assert_close(loaded(x), network.eval()(x), rtol=0, atol=0)


def test_a_bundle_from_before_pruning_loads(tmp_path):
    network, facts = written(tmp_path / "bundle", ONE_GATE, with_pruning=False)
    loaded, x = load(tmp_path / "bundle"), torch.randn(7, 3)
    assert "pruned" not in facts and loaded.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(loaded(x), network.eval()(x), rtol=0, atol=0)


def test_a_space_that_would_be_pruned_otherwise_is_one_line_that_names_a_layer(tmp_path):
    written(tmp_path / "bundle", ONE_GATE)
    with pytest.raises(UsageError, match=r"Missing key\(s\) in state_dict.*second") as caught:
        load(tmp_path / "bundle", OtherGates)
    assert "\n" not in str(caught.value)

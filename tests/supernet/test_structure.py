"""Which labels a frozen network uses, and networks that keep the supernet's weights."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableLinear,
    Repeat,
    model_context,
)
from torch import nn

from nni_gumbel.supernet.mutation import relax
from nni_gumbel.supernet.structure import freeze_with_weights, used_part
from nni_gumbel.testing import random_samples


def linear(node=None, op=None, source=None):
    return nn.Linear(2, 2)


class Everything(ModelSpace):
    """Every primitive, some of them behind others."""

    def __init__(self):
        super().__init__()
        self.repeat = Repeat(
            lambda i: LayerChoice([nn.Identity(), nn.Tanh()], label=f"block{i}"),
            nni.choice("deep", [0, 1]) * nni.choice("times", [1, 2]),
        )
        self.cell = LayerChoice(
            {
                "factories": Cell([linear, linear], 2, label="made"),
                "copies": Cell([nn.Identity(), nn.Tanh()], 2, label="given"),
                "loose": Cell([nn.Identity(), nn.Tanh()], 2, merge_op="loose_end", label="loose"),
            },
            label="cell",
        )
        self.wide = LayerChoice(
            [nn.Identity(), MutableLinear(2, nni.choice("width", [3, 4]))], label="is_wide"
        )
        self.inputs = InputChoice(3, n_chosen=2, label="inputs")


def test_the_used_part_is_what_nni_needs_to_freeze_the_network_and_no_less():
    space = Everything()
    for sample in random_samples(space, 12):
        used = used_part(space, sample)
        assert str(space.freeze(used)) == str(space.freeze(sample))
        for label in used:
            with pytest.raises(Exception, match=label):
                space.freeze({key: value for key, value in used.items() if key != label})


@pytest.mark.parametrize(
    ("changes", "absent", "present"),
    [
        ({"deep": 0}, ["block0", "block1"], ["deep", "times"]),
        ({"deep": 1, "times": 1}, ["block1"], ["block0"]),
        ({"is_wide": 0}, ["width"], []),
        ({"is_wide": 1}, [], ["width"]),
        ({"cell": "copies"}, ["made/op_1_0", "loose/input_2_0"], ["given/op_2_0", "given/input_2_0"]),
        ({"cell": "factories"}, ["given/op_1_0"], ["made/op_1_0", "made/input_2_0"]),
    ],
)
def test_a_label_behind_a_depth_or_in_another_candidate_is_not_used(changes, absent, present):
    space = Everything()
    sample = {**next(random_samples(space, 1)), **changes}
    used = used_part(space, sample)
    assert not set(absent) & set(used) and set(present) <= set(used)


def test_the_used_part_of_a_supernet_is_that_of_its_space():
    space, supernet = Everything(), Everything()
    relax(supernet)
    for sample in random_samples(space, 30):
        assert used_part(supernet, sample) == used_part(space, sample)


class Rebuilt(ModelSpace):
    """A space that builds its networks anew, like those of NNI's hub."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(2, 2), nn.Linear(2, 2)], label="layer")
        self.norm = nn.BatchNorm1d(2)
        self.tied = self.norm

    def forward(self, x):
        return self.tied(self.norm(self.layer(x)))

    def freeze(self, sample):
        with model_context(sample):
            return Rebuilt()


def test_a_network_that_is_built_anew_gets_the_weights_of_the_supernet():
    space = Rebuilt().double().eval()
    relax(space)
    x = torch.randn(4, 2, dtype=torch.float64)
    network = freeze_with_weights(space, {"layer": 1})
    assert isinstance(network.layer, nn.Linear) and not network.training
    assert network.norm is network.tied
    assert torch.equal(network(x), space.norm(space.norm(space.layer[1](x))))


def test_a_network_that_is_built_anew_shares_no_weights_with_the_supernet():
    space = Rebuilt()
    relax(space)
    network = freeze_with_weights(space, {"layer": 0})
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not own & {parameter.data_ptr() for parameter in space.parameters()}


def test_the_supernet_of_such_a_space_freezes_with_its_weights():
    space = Rebuilt()
    relax(space)
    network = space.freeze({"layer": 1})
    assert torch.equal(network.layer.weight, space.layer[1].weight)


def test_another_network_than_the_choices_say_is_an_error():
    class Other(Rebuilt):
        def freeze(self, sample):
            return nn.Sequential(nn.Linear(2, 2))

    space = Other()
    relax(space)
    with pytest.raises(RuntimeError, match="Missing key"):
        space.freeze({"layer": 0})

"""The spaces of NNI's hub, shrunk: parameters and FLOPs are those of the networks that NNI builds."""

import copy

import nni.nas.strategy  # noqa: F401  before any of nni.nas.oneshot
import pytest
import torch
from hub_spaces import mobilenet
from nni.nas.hub.pytorch import (
    DARTS,
    ENAS,
    PNAS,
    AmoebaNet,
    NasBench201,
    NASNet,
    ShuffleNetSpace,
)
from nni.nas.hub.pytorch.nasnet import NDS
from priced_networks import assert_at_samples
from torch import nn

from nni_gumbel import relax
from nni_gumbel.complexity import table
from nni_gumbel.complexity.flops import count_flops, expected_flops
from nni_gumbel.complexity.loose_ends import readers_of_loose_ends
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.errors import UsageError
from nni_gumbel.testing import random_samples


def cells(merge_op, **arguments):
    settings = {"num_nodes_per_cell": 2, "width": 4, "num_cells": 3, "dataset": "cifar"} | arguments
    return NDS(["skip_connect", "dil_conv_3x3"], merge_op, **settings)


class SmallShuffleNet(ShuffleNetSpace):
    """Its constructor sets both; what it sets is not kept."""

    stage_repeats = property(lambda self: [1, 2, 1], lambda self, value: None)
    stage_out_channels = property(lambda self: [-1, 8, 20, 28, 36, 16], lambda self, value: None)


slow = pytest.mark.slow
SPACES = {
    "loose ends": (lambda: cells("loose_end"), 8),
    "MobileNetV3": (mobilenet, 16),
    "ShuffleNet": (lambda: SmallShuffleNet(4, affine=True), 16),
    "loose ends, depth": (lambda: cells("loose_end", num_cells=(6, 7, 8)), 8),
    "all nodes, depth": (lambda: cells("all", num_cells=(6, 7)), 8),
    "NAS-Bench-201": (lambda: NasBench201(2, 1), 8),
    "loose ends, depth, width": (lambda: cells("loose_end", num_cells=(6, 7), width=(2, 4)), 8),
    "loose ends of three": (lambda: cells("loose_end", num_cells=(6, 7), num_nodes_per_cell=3), 8),
    "loose ends, large images": (lambda: cells("loose_end", dataset="imagenet"), 32),
    "ShuffleNet, widths": (lambda: SmallShuffleNet(4, channel_search=True), 16),
    **{
        space.__name__: (lambda space=space: space(width=4, num_cells=3, drop_path_prob=0.3), 8)
        for space in (NASNet, ENAS, AmoebaNet, PNAS, DARTS)
    },
}
QUICK = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if i >= QUICK else ()) for i, name in enumerate(SPACES)]
)
def test_parameters_and_flops_are_those_of_the_frozen_networks(name):
    make, size = SPACES[name]
    space, x = make(), torch.zeros(2, 3, size, size)
    supernet = copy.deepcopy(space)
    distribution = relax(supernet)
    flops = expected_flops(supernet, distribution, (x,), {})
    parameters = expected_parameters(supernet)
    samples = list(random_samples(space, 3))

    def counted(network):
        return count_parameters(network), count_flops(network, x)

    class Both:
        at = staticmethod(lambda outcomes: (parameters.at(outcomes), flops.at(outcomes)))

    assert_at_samples(Both, distribution, space, samples, counted)


def test_only_layers_behind_loose_ends_have_them_as_their_source():
    supernet = cells("loose_end", num_cells=(6, 7, 8))
    relax(supernet)
    names = {module: name for name, module in supernet.named_modules()}
    sources = {
        names[m]: [(t.labels, c and names[c]) for t, c in s]
        for m, s in readers_of_loose_ends(supernet).items()
    }
    # Two cells or three in the first stage: the one before the last is a normal cell in any case.
    assert sources["stages.0.blocks.0.preprocessor.pre1.1"] == [((), None)]
    assert [labels for labels, _ in sources["stages.1.blocks.0.preprocessor.pre0.1"]] == [()]
    # In the second stage it is the reduction cell, or with a depth of three a normal one.
    assert [labels for labels, _ in sources["stages.2.blocks.0.preprocessor.pre0.1"]] == [("depth",)] * 2
    assert len(sources["classifier"]) == 1
    assert not readers_of_loose_ends(cells("loose_end")) and not readers_of_loose_ends(nn.Linear(2, 2))


def test_too_many_ways_to_leave_ends_loose_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(table, "MOST_COMBINATIONS", 15)
    supernet = cells("loose_end", num_nodes_per_cell=4)
    relax(supernet)
    # The first node is taken or not by the two inputs of each of three later nodes.
    with pytest.raises(UsageError, match="normal/input_3_0.*combinations") as caught:
        expected_parameters(supernet)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("hub_space", [NASNet, AmoebaNet])
def test_cells_of_five_nodes_with_loose_ends_of_several_widths_and_depths_have_few_terms(hub_space):
    # 129,600 ways to connect a cell, 3 widths, 4 depths.
    space = hub_space(num_cells=(8, 12, 16, 20))
    supernet = copy.deepcopy(space)
    distribution = relax(supernet)
    parameters = expected_parameters(supernet)
    assert max(one.values.size for one in parameters.tables) <= 2**8 * 3 * 4
    assert_at_samples(parameters, distribution, space, list(random_samples(space, 2)), count_parameters)

"""The spaces of NNI's hub, shrunk: a step moves every logit, and a sample is the frozen network.

What is made smaller are widths, depths and numbers of candidates; every kind of layer and of choice stays.
"""

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
    ProxylessNAS,
    ShuffleNetSpace,
    proxylessnas,
)
from nni.nas.hub.pytorch.autoformer import AutoformerSpace
from nni.nas.hub.pytorch.modules import AutoActivation
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import ModelSpace, Repeat
from torch import nn

from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import cost_of
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.testing import assert_supernet_equals_frozen, random_samples

pytestmark = pytest.mark.slow


def images(size=8, number=2):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(7))


def assert_every_logit_moves(space, x):
    """One structure step: a relaxed sample, a loss, its gradient."""
    distribution = relax(space)
    distribution.sample(1.0)
    space(x).square().sum().backward()
    for label, logits in distribution.logits.items():
        assert len(logits) == 1 or (logits.grad != 0).all(), f"{label}: {logits.grad}"


# -- NAS-Bench-201 ---------------------------------------------------------------------------------


def test_nasbench201_is_the_frozen_network():
    assert_supernet_equals_frozen(NasBench201(2, 1), images(), 1)


def test_a_step_on_nasbench201_moves_every_logit():
    assert_every_logit_moves(NasBench201(2, 1), images())


# -- cells: NASNet, ENAS, AmoebaNet, PNAS, DARTS -----------------------------------------------------

FAMILY = {
    NASNet: "NASNET_OPS",
    ENAS: "ENAS_OPS",
    AmoebaNet: "AMOEBA_OPS",
    PNAS: "PNAS_OPS",
    DARTS: "DARTS_OPS",
}


@pytest.fixture(params=FAMILY, ids=lambda space: space.__name__)
def family(request, monkeypatch):
    """A space of the family with two of its operations, a skip and another one for each."""
    operations = getattr(request.param, FAMILY[request.param])
    monkeypatch.setattr(request.param, FAMILY[request.param], ["skip_connect", operations[-1]])
    return request.param


def test_a_space_of_cells_is_the_frozen_network(family):
    space = family(width=4, num_cells=3, drop_path_prob=0.3)
    assert_supernet_equals_frozen(space, images(), 1)


def test_a_step_on_a_space_of_cells_moves_every_logit(family):
    assert_every_logit_moves(family(width=4, num_cells=3), images())


@pytest.mark.parametrize("space", FAMILY)
def test_a_space_of_cells_with_all_its_operations_is_the_frozen_network(space):
    assert_supernet_equals_frozen(space(width=4, num_cells=3), images(), 2)


def cells(merge_op, **arguments):
    settings = {"num_nodes_per_cell": 2, "width": 4, "num_cells": 3, "dataset": "cifar"} | arguments
    return NDS(["skip_connect", "dil_conv_3x3"], merge_op, **settings)


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
def test_cells_of_chosen_depth_are_the_frozen_network(merge_op):
    assert_supernet_equals_frozen(cells(merge_op, num_cells=(6, 7)), images(), 2)


def test_cells_for_large_images_are_the_frozen_network():
    assert_supernet_equals_frozen(cells("loose_end", dataset="imagenet"), images(32), 1)


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
def test_cells_of_chosen_width_are_the_frozen_network(merge_op):
    # Not so near a sample: where nodes of different widths are concatenated, what follows takes one for another.
    space = cells(merge_op, width=(2, 4))
    assert_supernet_equals_frozen(space, images(), 2, continuous=False)


def test_a_step_on_cells_of_chosen_depth_and_width_moves_every_logit():
    assert_every_logit_moves(cells("loose_end", num_cells=(6, 7), width=(2, 4)), images())


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
@pytest.mark.parametrize("width", [4, (2, 4)])
def test_a_stage_may_have_a_single_cell_and_its_network_is_what_the_supernet_computes(
    merge_op, width, caplog
):
    space = cells(merge_op, num_cells=(3, 6), width=width).double().eval()
    distribution, x = relax(space), images().double()
    assert "choice 'depth': stage 'stages.0' may have a single cell" in caplog.text
    distribution.use_probabilities()
    space(x).sum().backward()
    assert all((logits.grad != 0).any() for logits in distribution.logits.values())
    for sample in random_samples(space, 4):
        distribution.use_architecture(sample)
        network = space.freeze(sample)
        assert torch.allclose(network(x), space(x), atol=1e-9)
        price = cost_of(distribution, expected_parameters(space), sample)
        assert price == count_parameters(network)


def test_a_stage_without_cells_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match="choice 'depth': stage 'stages.0' may have no cell at all"
    ) as caught:
        relax(cells("all", num_cells=(2, 6)))
    assert "\n" not in str(caught.value)


def test_autoformer_is_the_frozen_network_class_token_and_positions_of_a_chosen_width_included():
    space = AutoformerSpace(
        (32, 64), (1.0, 2.0), (1, 2), (1, 2), img_size=32, num_labels=4, drop_path_rate=0.0
    )
    assert_supernet_equals_frozen(space, images(32), 2, continuous=False)


def test_the_exported_network_is_nnis_own_and_shares_no_weights_with_the_supernet():
    space = cells("loose_end").double().eval()
    sample = next(random_samples(space, 1))
    relax(space)
    network = space.freeze(sample)
    assert type(network) is NDS and not network.training
    assert next(network.parameters()).dtype == torch.float64
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not own & {parameter.data_ptr() for parameter in space.parameters()}


def test_the_check_finds_loose_ends_that_are_not_closed(monkeypatch):
    monkeypatch.setattr(MixedCell, "loose_weights", lambda self: [torch.ones(())] * self.num_nodes)
    with pytest.raises(AssertionError, match="output in train"):
        assert_supernet_equals_frozen(cells("loose_end", num_nodes_per_cell=3), images(), 3)


# -- MobileNetV3, ProxylessNAS, ShuffleNet -------------------------------------------------------------


def test_mobilenetv3_is_the_frozen_network():
    assert_supernet_equals_frozen(mobilenet(), images(16), 2)


def test_a_step_on_mobilenetv3_moves_every_logit():
    # Large enough that a late block sees more than a few features, where hardswish is not flat for all of them.
    assert_every_logit_moves(mobilenet(), images(32))


@pytest.fixture
def small_proxyless(monkeypatch):
    """Up to two blocks a stage, of four kinds."""
    builder = proxylessnas.inverted_residual_choice_builder
    monkeypatch.setattr(
        proxylessnas,
        "inverted_residual_choice_builder",
        lambda expand_ratios, kernel_sizes, *rest: builder(expand_ratios[:2], kernel_sizes[1:], *rest),
    )
    monkeypatch.setattr(proxylessnas, "Repeat", lambda blocks, _, label: Repeat(blocks, (1, 2), label=label))
    return ProxylessNAS(4, base_widths=(8,) * 9, dropout_rate=0.2)


def test_proxylessnas_is_the_frozen_network(small_proxyless):
    assert_supernet_equals_frozen(small_proxyless, images(16), 2)


def test_a_step_on_proxylessnas_moves_every_logit(small_proxyless):
    assert_every_logit_moves(small_proxyless, images(16))


class SmallShuffleNet(ShuffleNetSpace):
    """Its constructor sets both; what it sets is not kept."""

    stage_repeats = property(lambda self: [1, 2, 1], lambda self, value: None)
    stage_out_channels = property(lambda self: [-1, 8, 20, 28, 36, 16], lambda self, value: None)


@pytest.mark.parametrize("both", [False, True])
def test_shufflenet_is_the_frozen_network(both):
    space = SmallShuffleNet(4, channel_search=both, affine=both)
    assert_supernet_equals_frozen(space, images(16), 2)


@pytest.mark.parametrize("channel_search", [False, True])
def test_a_step_on_shufflenet_moves_every_logit(channel_search):
    assert_every_logit_moves(SmallShuffleNet(4, channel_search), images(16))


# -- AutoActivation ------------------------------------------------------------------------------------


class Activation(ModelSpace):
    def __init__(self):
        super().__init__()
        # The root of a negative number is no number, and 0 times that is none either.
        finite = [name for name in AutoActivation.available_unary_choices() if name != "UnarySqrt"]
        self.layers = nn.Sequential(nn.Linear(3, 3), AutoActivation(2, finite, label="activation"))

    def forward(self, x):
        return self.layers(x)


def points():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(7))


def test_the_finite_candidates_of_autoactivation_are_the_frozen_network():
    # Not so near a sample: a division by almost 0 makes much of a weight of 1e-9.
    assert_supernet_equals_frozen(Activation(), points(), 8, continuous=False)


def test_a_step_on_autoactivation_moves_every_logit():
    assert_every_logit_moves(Activation(), points())

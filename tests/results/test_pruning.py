"""Pruning removes what cannot reach the output, and nothing that can."""

import copy
import logging

import pytest
import torch
from generated_spaces import GeneratedSpace, example_batch, plans, samples_of
from hypothesis import given, settings
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import fx, nn
from torch.nn.functional import dropout, relu

from nni_gumbel.results.pruning import prune, removed_layers


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def outputs_and_gradients(network, x, training):
    network = copy.deepcopy(network).train(training)
    x = x.clone().requires_grad_()
    output = network(x)
    output.square().sum().backward()
    return output, x.grad, {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_same(network, pruned, x):
    """Bit for bit: outputs, and gradients of the input and of what is left, in both modes."""
    for training in (False, True):
        output, of_input, of_weights = outputs_and_gradients(network, x, training)
        again, of_input_again, of_weights_again = outputs_and_gradients(pruned, x, training)
        torch.testing.assert_close(again, output, rtol=0, atol=0)
        torch.testing.assert_close(of_input_again, of_input, rtol=0, atol=0)
        for name, gradient in of_weights_again.items():
            torch.testing.assert_close(gradient, of_weights[name], rtol=0, atol=0)


def batch(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Branches(nn.Module):
    """Four branches and a choice of inputs among them."""

    def __init__(self, chosen):
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(4)])
        self.inputs = InputChoice(4, n_chosen=None, reduction=chosen, label="inputs")

    def forward(self, x):
        return self.inputs([branch(x) for branch in self.branches])


class Gated(ModelSpace):
    def __init__(self, reduction="sum"):
        super().__init__()
        self.outer = LayerChoice({"branches": Branches(reduction), "linear": nn.Linear(4, 4)}, label="outer")
        self.deep = nn.Linear(4, 4)
        self.last = InputChoice(2, n_chosen=None, reduction="sum", label="last")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.outer(x)
        return self.head(self.last([y, self.deep(y)]))


BRANCH, LAST, HEAD = 4 * 4 + 4 + 2 * 4, 4 * 4 + 4, 4 * 2 + 2


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("opened", [[0], [2], [1, 3], [0, 1, 2]])
@pytest.mark.parametrize("last", [[0], [1], [0, 1]])
def test_the_layers_behind_closed_gates_go(reduction, opened, last):
    network = Gated(reduction).freeze({"outer": "branches", "inputs": opened, "last": last}).double()
    x = batch(6, 4)
    pruned = prune(network, x)
    deep = LAST if 1 in last else 0
    assert count(network) == 4 * BRANCH + LAST + HEAD
    assert count(pruned) == len(opened) * BRANCH + deep + HEAD
    assert_same(network, pruned, x)


def test_what_went_is_named():
    network = Gated().freeze({"outer": "branches", "inputs": [0, 2, 3], "last": [0]})
    gone = ["outer.branches.1.0", "outer.branches.1.1", "deep"]
    assert removed_layers(network, prune(network, torch.randn(3, 4))) == gone


def test_weights_from_before_fit_after():
    network = Gated().freeze({"outer": "branches", "inputs": [1], "last": [0]})
    pruned = prune(network, torch.randn(3, 4))
    weights = pruned.state_dict()
    assert weights.keys() < network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in weights.items())


def test_a_network_of_which_everything_is_used_is_given_back():
    network = Gated().freeze({"outer": "linear", "last": [0, 1]})
    assert prune(network, torch.randn(3, 4)) is network


@pytest.mark.parametrize("training", [True, False])
def test_pruning_leaves_the_network_and_the_random_state_alone(training):
    network = Gated().freeze({"outer": "branches", "inputs": [1], "last": [0]}).train(training)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    pruned = prune(network, torch.randn(3, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert {module.training for module in (*network.modules(), *pruned.modules())} == {training}
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(plans)
def test_a_pruned_network_computes_the_same_is_no_larger_and_has_nothing_more_to_prune(plan):
    space, x = GeneratedSpace(plan), example_batch()
    for sample in samples_of(space, 2):
        network = space.freeze(sample).double()
        pruned = prune(network, x)
        assert count(pruned) <= count(network)
        assert prune(pruned, x) is pruned
        torch.testing.assert_close(pruned.eval()(x), network.eval()(x), rtol=0, atol=0)


# -- `none` candidates ---------------------------------------------------------------------------------


def nasbench(**edges):
    """A network of NAS-Bench-201 with two channels and one cell a stack; edges that are not given are skips."""
    space = NasBench201(2, 1)
    sample = dict.fromkeys(space.simplify(), "skip_connect")
    return space.freeze(sample | {f"cell/{edge[1:]}": name for edge, name in edges.items()}).double()


def convolutions(kernel):
    """Parameters of one edge's convolution and batch norm in the cells of 2, 4 and 8 channels."""
    return sum(kernel**2 * c * c + 2 * c for c in (2, 4, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edges", "gone"),
    [
        # 1 is an end: it leads to 3 and to 2 through nothing.
        ({"_0_1": "conv_3x3", "_1_2": "none", "_1_3": "none"}, convolutions(3)),
        ({"_0_1": "conv_3x3", "_1_2": "none"}, 0),
        # 2 is an end, and so is 1 behind it.
        (
            {"_0_1": "conv_1x1", "_1_2": "conv_3x3", "_1_3": "none", "_2_3": "none"},
            convolutions(1) + convolutions(3),
        ),
        # 1 is zero: of the layers behind it, the batch norms add their bias.
        (
            {"_0_1": "none", "_1_2": "conv_3x3", "_1_3": "skip_connect"},
            sum(9 * c * c for c in (2, 4, 8)),
        ),
    ],
)  # fmt: skip
def test_what_only_a_none_candidate_sees_goes(edges, gone):
    network, x = nasbench(**edges), batch(2, 3, 8, 8)
    pruned = prune(network, x)
    assert count(network) - count(pruned) == gone
    assert_same(network, pruned, x)


def test_a_pruned_network_takes_images_of_another_size():
    network = nasbench(_0_1="conv_3x3", _1_2="none", _1_3="none")
    pruned, x = prune(network, batch(2, 3, 8, 8)), batch(3, 3, 12, 20)
    torch.testing.assert_close(pruned.eval()(x), network.eval()(x), rtol=0, atol=0)


class Nothing(nn.Module):
    """A ``none`` candidate of a person's own."""

    def forward(self, x):
        return x * 0


class Around(nn.Module):
    """``x + after(zero(before(x)))``."""

    def __init__(self, zero, after):
        super().__init__()
        self.before, self.zero, self.after = nn.Linear(4, 4), zero, after

    def forward(self, x):
        return x + self.after(self.zero(self.before(x)))


@pytest.mark.parametrize(
    ("after", "gone"),
    [
        (nn.Identity(), 20),
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.GELU(), nn.Dropout()), 20 + 16),
        (nn.Linear(4, 4), 20),  # its bias is no zero
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)), 20 + 16),
        (nn.Sigmoid(), 20),
    ],
)
def test_a_zero_goes_through_what_keeps_zeros(after, gone):
    network, x = Around(Nothing(), after).double(), batch(6, 4)
    pruned = prune(network, x)
    assert count(network) - count(pruned) == gone
    assert_same(network, pruned, x)


class Scaled(nn.Module):
    def forward(self, x):
        return relu(x - 1e2)  # zero on most inputs


class Negative(nn.Module):
    def forward(self, x):
        return x.clamp(max=0) if len(x) > 1 else x


@pytest.mark.parametrize(
    "module", [nn.ReLU(), Scaled(), Negative(), nn.Dropout(1.0), nn.Threshold(1e6, 0.0), nn.Hardtanh(0, 1)]
)
def test_what_is_zero_on_some_inputs_alone_is_no_zero(module):
    network = nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(1.0 if isinstance(module, Negative) else -1.0)
    assert prune(network, torch.randn(5, 4)) is network


# -- what needs care -----------------------------------------------------------------------------------


class Careful(nn.Module):
    """A layer used twice, once in vain; a norm that writes into its input; weights tied to a layer that goes."""

    def __init__(self):
        super().__init__()
        self.twice, self.gone = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gone.weight = self.twice.weight
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = self.twice(x) * self.scale
        self.twice(self.gone(y))
        return y


def test_a_layer_used_twice_and_tied_weights_stay():
    network, x = Careful().double(), batch(5, 4)
    pruned = prune(network, x)
    assert removed_layers(network, pruned) == ["gone"]
    assert set(pruned.state_dict()) == {"twice.weight", "twice.bias", "scale"}
    assert_same(network, pruned, x)


class NormInVain(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gone = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        self.norm(self.gone(x))
        return self.norm(x)


def test_a_call_that_is_seen_in_running_statistics_alone_stays(caplog):
    network = NormInVain()
    assert prune(network, torch.randn(5, 4)) is network
    assert "not pruned" in caplog.text and "differ in training" in caplog.text


class WritesIntoItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gone, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.first(x)
        self.gone(self.relu(y))
        return y * 2


def test_a_network_that_writes_into_what_is_used_is_left_as_it_is(caplog):
    network = WritesIntoItsInput()
    assert prune(network, torch.randn(5, 4)) is network
    assert "not pruned" in caplog.text and "differ" in caplog.text


class OwnMode(nn.Module):
    """A part that does something else in training, as NNI's ``DropPath``."""

    def forward(self, x):
        return dropout(x, 0.5, self.training)


def test_a_part_that_asks_for_its_mode_still_does():
    class Space(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.used, self.gone = OwnMode(), nn.Linear(50, 50), nn.Linear(50, 50)

        def forward(self, x):
            self.gone(x)
            return self.part(self.used(x))

    pruned, x = prune(Space(), torch.randn(3, 50)), torch.randn(3, 50)
    assert not hasattr(pruned, "gone")
    assert (pruned.train()(x) == 0).any() and not (pruned.eval()(x) == 0).any()


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.gone = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x) if x.sum() > 0 else -self.used(x)


class IsAnotherInTraining(LooksAtValues):
    def forward(self, x):
        return self.used(x) * (2 if self.training else 1)


@pytest.mark.parametrize(
    ("network", "reason"), [(LooksAtValues(), "control flow"), (IsAnotherInTraining(), "in training")]
)
def test_a_network_that_cannot_be_followed_is_left_as_it_is_and_a_line_says_so(network, reason, caplog):
    with caplog.at_level(logging.WARNING):
        assert prune(network, torch.randn(3, 4)) is network
    (line,) = caplog.messages
    assert "not pruned" in line and type(network).__name__ in line and reason in line


class IsAnotherWhenFollowed(LooksAtValues):
    def forward(self, x):
        return self.used(x) * (2 if isinstance(x, fx.Proxy) else 1)


def test_a_network_whose_outputs_would_change_is_left_as_it_is_and_a_line_says_so(caplog):
    network = IsAnotherWhenFollowed()
    with caplog.at_level(logging.WARNING):
        assert prune(network, torch.randn(3, 4)) is network
    assert "not pruned" in caplog.text and "differ" in caplog.text

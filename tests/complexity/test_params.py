"""Costs are exact: against enumeration of all networks, against finite differences, against by-hand counts."""

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, plans, samples_of
from hypothesis import HealthCheck, assume, given, settings
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import ExpectedSum, Table, cost_of
from nni_gumbel.supernet.distribution import Distribution


def random_distribution(space):
    distribution = Distribution(space).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for logits in distribution.logits.values():
            logits.copy_(torch.randn(len(logits), generator=generator, dtype=torch.float64))
    return distribution


@given(plan=plans)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_expected_parameters_equal_the_enumeration_of_all_networks(plan):
    space, supernet = GeneratedSpace(plan), GeneratedSpace(plan)
    samples = samples_of(space, limit=24)
    assume(len(samples) < 24)
    distribution = random_distribution(space)
    relax(supernet)
    counts = [count_parameters(space.freeze(sample)) for sample in samples]
    expected = expected_parameters(supernet)
    with torch.no_grad():
        weights = [distribution.log_prob(sample).exp().item() for sample in samples]
        enumerated = sum(weight * count for weight, count in zip(weights, counts))
        assert float(expected(distribution.probs())) == pytest.approx(enumerated, rel=1e-9)


@given(plan=plans)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_the_gradient_of_expected_parameters_equals_finite_differences(plan):
    space = GeneratedSpace(plan)
    distribution = random_distribution(space)
    relax(space)
    expected = expected_parameters(space)
    labels, logits = zip(*distribution.logits.items())

    def cost(*values):
        return expected({label: distribution.laws[label].probs(v) for label, v in zip(labels, values)})

    assume(cost(*logits).requires_grad)
    assert torch.autograd.gradcheck(cost, logits)


def test_tied_weights_count_once():
    class Tied(ModelSpace):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(3, 3)
            self.first = LayerChoice({"shared": shared, "none": nn.Identity()}, label="first")
            self.second = LayerChoice({"shared": shared, "none": nn.Identity()}, label="second")

    space = Tied()
    probabilities = {"first": torch.tensor([0.5, 0.5]), "second": torch.tensor([0.2, 0.8])}
    # The layer is there unless both choices leave it out: 1 - 0.5 * 0.8.
    assert float(expected_parameters(space)(probabilities)) == pytest.approx(12 * 0.6)


def test_expected_parameters_are_exact_under_autocast():
    class Nested(ModelSpace):
        def __init__(self):
            super().__init__()
            inner = LayerChoice([nn.Linear(200, 200), nn.Identity()], label="inner")
            self.layer = LayerChoice(
                [nn.Sequential(nn.Linear(200, 200), inner), nn.Identity()], label="outer"
            )

    probabilities = {"outer": torch.tensor([0.75, 0.25]), "inner": torch.tensor([0.5, 0.5])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = expected_parameters(Nested())(probabilities)
    assert float(expected) == 40_200 * 0.75 + 40_200 * 0.375


def test_flops_follow_the_formulas_of_nni():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),  # 4 * 5 * 5 outputs, each 2 * 9 products and a bias
        nn.BatchNorm2d(4),  # 4 an element, with affine
        nn.GELU(),  # 1 an element
        nn.Identity(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(100, 10),
    )
    by_hand = 100 * 19 + 4 * 100 + 100 + 100 * 9 + 10 * 101
    assert count_flops(network, torch.zeros(3, 2, 5, 5)) == by_hand


def test_a_module_that_is_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    assert count_flops(Twice(), torch.zeros(1, 4)) == 2 * 20
    assert count_parameters(Twice()) == 20


def test_counting_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    network[1].eval()
    mean = network[0].running_mean.clone()
    count_flops(network, torch.randn(4, 3))
    assert torch.equal(network[0].running_mean, mean)
    assert network.training and network[0].training and not network[1].training
    assert not network[0]._forward_hooks


def test_the_cost_of_a_sample_is_read_at_its_set_of_inputs_in_whatever_order_it_names_them():
    class Inputs(ModelSpace):
        def __init__(self):
            super().__init__()
            self.some = InputChoice(4, n_chosen=None, label="some")

    space = Inputs()
    distribution = Distribution(space)
    cost = ExpectedSum([Table.of(("some",), list(range(15)))])
    for index, members in enumerate(distribution.laws["some"].sets()):
        assert cost_of(distribution, cost, {"some": list(reversed(members)), "other": 1}) == index


class NestedWidth(ModelSpace):
    """A width that only one of two candidates has: 6 or 10 parameters; the other candidate has 12."""

    def __init__(self):
        super().__init__()
        wide = MutableLinear(4, nni.choice("width", [1, 2]), bias=False)
        inner = LayerChoice([nn.Linear(1, 2), wide], label="inner")
        self.outer = LayerChoice({"wide": inner, "plain": nn.Linear(3, 3)}, label="outer")


def test_a_sample_may_leave_out_the_labels_that_its_network_does_not_use_and_no_other():
    space = NestedWidth()
    distribution, cost = relax(space), expected_parameters(space)
    assert cost_of(distribution, cost, {"outer": "plain"}) == 12
    assert cost_of(distribution, cost, {"outer": "wide", "inner": 0}) == 4
    for sample, label in (
        ({"outer": "wide", "inner": 1}, "width"),
        ({"outer": "wide"}, "inner"),
        ({"inner": 0, "width": 2}, "outer"),
    ):
        with pytest.raises(UsageError, match=f"choice '{label}': .* sample does not name it"):
            cost_of(distribution, cost, sample)

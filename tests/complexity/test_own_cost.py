"""A cost of a person's own: priced once a network, with an expectation whose gradient is right."""

import itertools

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity.own_cost import OwnCost


class Chain(ModelSpace):
    """``layers`` choices of 3, the first with a choice inside its last candidate."""

    def __init__(self, layers):
        super().__init__()
        inner = LayerChoice({"a": nn.Linear(2, 2), "b": nn.Identity()}, label="inner")
        first = LayerChoice({"line": nn.Linear(2, 2), "none": nn.Identity(), "deep": inner}, label="0")
        rest = [
            LayerChoice(
                {"line": nn.Linear(2, 2), "free": nn.Linear(2, 2, bias=False), "none": nn.Identity()},
                label=str(i),
            )
            for i in range(1, layers)
        ]
        self.layers = nn.Sequential(first, *rest)

    def forward(self, x):
        return self.layers(x)


def relaxed(layers):
    space = Chain(layers)
    distribution = relax(space).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for logits in distribution.logits.values():
            logits.copy_(torch.randn(len(logits), generator=generator, dtype=torch.float64))
    return space, distribution


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_of_a_small_space_the_expectation_and_its_gradient_are_exact():
    space, distribution = relaxed(2)
    cost = OwnCost(parameters, space, distribution)
    samples = [dict(zip(distribution.variables, values)) for values in
               itertools.product(*(v.values for v in distribution.variables.values()))]  # fmt: skip
    enumerated = sum(distribution.log_prob(s).exp() * parameters(space.freeze(s)) for s in samples)
    expected = cost(distribution)
    assert expected.item() == pytest.approx(enumerated.item())
    logits = list(distribution.logits.values())
    for found, exact in zip(torch.autograd.grad(expected, logits), torch.autograd.grad(enumerated, logits)):
        assert torch.allclose(found, exact)


def test_of_a_large_space_the_mean_of_the_estimates_is_the_expectation_and_of_their_gradients_its_gradient():
    space, distribution = relaxed(6)
    logits = distribution.logits
    line = [p[0] for label, p in distribution.probs().items() if label.isdigit()]
    exact = 6 * torch.stack(line).sum()
    cost = OwnCost(lambda sample: 6 * sum(value == "line" for value in sample.values()), space, distribution)
    values, gradients = [], []
    for _ in range(100):
        estimate = cost(distribution)
        values.append(estimate.detach())
        gradients.append(torch.autograd.grad(estimate, logits["3"])[0])
    values, gradients = torch.stack(values), torch.stack(gradients)
    (gradient,) = torch.autograd.grad(exact, logits["3"])
    assert float(values.mean()) == pytest.approx(exact.item(), abs=4 * float(values.std() / 10))
    assert ((gradients.mean(0) - gradient).abs() < 4 * gradients.std(0) / 10).all()
    assert gradients.abs().sum() > 0


def test_a_network_is_priced_once_whatever_its_unused_labels_say():
    calls = []
    space, distribution = relaxed(2)
    OwnCost(lambda sample: calls.append(sample) or len(sample), space, distribution)
    assert len(calls) == 4 * 3
    assert all(("inner" in sample) == (sample["0"] == "deep") for sample in calls)


@pytest.mark.parametrize("layers", [2, 6])
def test_pricing_leaves_the_random_numbers_of_a_search_alone(layers):
    space, distribution = relaxed(layers)
    before = torch.get_rng_state()
    OwnCost(lambda network: float(torch.rand(())) * 0 + parameters(network), space, distribution)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: 1.0, "has x; give it one parameter, named sample or network"),
        (lambda sample, network: 1.0, "has sample, network; give it one parameter"),
        (len, "give it one parameter"),
        (lambda sample: float("nan"), "gives nan for"),
        (lambda sample: "much", "gives 'much' for"),
        (lambda network: network.missing, "fails for"),
    ],
)
def test_what_is_no_cost_is_told_in_one_line(function, words):
    space, distribution = relaxed(2)
    with pytest.raises(UsageError, match=words) as caught:
        OwnCost(function, space, distribution)
    assert str(caught.value).startswith("cost: ") and "\n" not in str(caught.value)

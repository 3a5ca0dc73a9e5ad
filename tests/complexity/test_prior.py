"""The divergence from a prior is exact for every law, and what a prior says is what a person wrote."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity.params import expected_parameters
from nni_gumbel.complexity.prior import Prior, prior_by_cost, prior_by_label
from nni_gumbel.complexity.table import ExpectedSum, Table


class AllLaws(ModelSpace):
    """A choice of one, a choice of two of three inputs, and one of any number of two; 2 x 3 x 3 outcomes."""

    def __init__(self):
        super().__init__()
        self.one = LayerChoice({"dear": nn.Linear(4, 4), "free": nn.Identity()}, label="one")
        self.two = InputChoice(3, n_chosen=2, label="two")
        self.any = InputChoice(2, n_chosen=None, label="any")

    def forward(self, x):
        x = self.two([x, self.one(x), 2 * x])
        return self.any([x, 3 * x])


def with_logits(seed):
    distribution = relax(AllLaws())
    generator = torch.Generator().manual_seed(seed)
    for logits in distribution.logits.values():
        logits.data = 2 * torch.randn(len(logits), generator=generator)
    return distribution


def probabilities(distribution):
    """By label and outcome (its indices), from the definition: exp(sum of logits), normalised."""
    found = {}
    for label, law in distribution.laws.items():
        logits = distribution.logits[label].detach().double()
        weights = {members: math.exp(sum(logits[i] for i in members)) for members in law.sets()}
        found[label] = {members: w / sum(weights.values()) for members, w in weights.items()}
    return found


def divergence(q, p):
    """The mean relative divergence of the module's docstring, by enumeration."""
    each = [
        sum(q[label][s] * math.log(q[label][s] / p[label][s]) for s in q[label]) / math.log(len(q[label]))
        for label in q
    ]
    return sum(each) / len(each)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_from_a_uniform_prior_it_is_one_minus_the_entropy(seed):
    distribution = with_logits(seed)
    uniform = {label: dict.fromkeys(q, 1 / len(q)) for label, q in probabilities(distribution).items()}
    found = float(Prior({}).divergence(distribution))
    assert found == pytest.approx(divergence(probabilities(distribution), uniform), abs=1e-6)
    assert found == pytest.approx(1 - float(distribution.entropy()), abs=1e-6)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_from_a_prior_by_label_it_equals_the_enumeration(seed):
    distribution = with_logits(seed)
    given_ = {
        "one": {"dear": 3.0, "free": 1.0},
        "two": {"0": 0.2, "1": 0.3, "2": 0.5},
        "any": {"0": 0.9, "1": 0.4},
    }
    two = {(0, 1): 0.2 * 0.3, (0, 2): 0.2 * 0.5, (1, 2): 0.3 * 0.5}
    any_ = {(0,): 0.9 * 0.6, (1,): 0.1 * 0.4, (0, 1): 0.9 * 0.4}
    p = {
        "one": {(0,): 0.75, (1,): 0.25},
        "two": {s: w / sum(two.values()) for s, w in two.items()},
        "any": {s: w / sum(any_.values()) for s, w in any_.items()},
    }
    found = prior_by_label(distribution, given_).divergence(distribution)
    assert float(found) == pytest.approx(divergence(probabilities(distribution), p), abs=1e-5)


def test_a_label_that_is_not_named_is_uniform():
    distribution = with_logits(0)
    some = prior_by_label(distribution, {"one": {"dear": 0.5, "free": 0.5}})
    assert float(some.divergence(distribution)) == pytest.approx(
        float(Prior({}).divergence(distribution)), abs=1e-6
    )


def test_a_candidate_that_is_given_nothing_is_all_but_impossible_and_the_divergence_is_finite():
    distribution = with_logits(0)
    found = float(prior_by_label(distribution, {"one": {"dear": 1.0}}).divergence(distribution))
    p = {label: dict.fromkeys(q, 1 / len(q)) for label, q in probabilities(distribution).items()}
    p["one"] = {(0,): 1 / (1 + 1e-6), (1,): 1e-6 / (1 + 1e-6)}
    assert found == pytest.approx(divergence(probabilities(distribution), p), abs=1e-5)


def test_by_cost_it_is_the_exponential_of_the_cost_where_the_cost_couples_no_labels():
    """Over all networks: KL(q || p) with p(z) proportional to exp(-n cost(z) / largest)."""
    distribution = relax(AllLaws())
    for logits in distribution.logits.values():
        logits.data = torch.randn(len(logits), generator=torch.Generator().manual_seed(1))
    of_one, of_any = np.array([20.0, 0.0]), np.array([1.0, 5.0, 6.0])
    cost = ExpectedSum([Table.of(("one",), of_one), Table.of(("any",), of_any)])
    q = probabilities(distribution)
    networks = list(itertools.product(*(q[label] for label in q)))
    weight = {}
    for network in networks:
        outcome = dict(zip(q, network))
        dear = {(0,): 20.0, (1,): 0.0}[outcome["one"]] + {(0,): 1.0, (1,): 5.0, (0, 1): 6.0}[outcome["any"]]
        weight[network] = math.exp(-3 * dear / 26.0)
    assert cost.tables[1].labels == ("any",) and list(distribution.laws["any"].sets())[2] == (0, 1)
    p = {
        label: {s: sum(w for z, w in weight.items() if dict(zip(q, z))[label] == s) for s in q[label]}
        for label in q
    }
    p = {label: {s: w / sum(each.values()) for s, w in each.items()} for label, each in p.items()}
    found = float(prior_by_cost(distribution, cost, largest=26.0).divergence(distribution))
    assert found == pytest.approx(divergence(q, p), abs=1e-5)


def test_by_a_cost_that_couples_labels_each_has_that_of_the_mean_over_the_others():
    distribution = with_logits(3)
    # 8 with both, 0 with either alone: averaged over the other label, 4 x (1 of 2) and 8 / 3.
    cost = ExpectedSum([Table.of(("one", "two"), np.array([[8.0, 0, 0], [0, 0, 0]]))])
    q = probabilities(distribution)
    one = [math.exp(-3 * (8 / 3) / 8), 1.0]
    two = [math.exp(-3 * 4 / 8), 1.0, 1.0]
    p = {
        "one": dict(zip(q["one"], (w / sum(one) for w in one))),
        "two": dict(zip(q["two"], (w / sum(two) for w in two))),
        "any": dict.fromkeys(q["any"], 1 / 3),
    }
    found = float(prior_by_cost(distribution, cost, largest=8.0).divergence(distribution))
    assert found == pytest.approx(divergence(q, p), abs=1e-5)


def test_by_the_cost_of_many_sets_of_inputs_it_is_built_at_once():
    class Many(ModelSpace):
        def __init__(self):
            super().__init__()
            self.any = InputChoice(12, n_chosen=None, label="any")

    distribution = relax(Many())
    cost = ExpectedSum([Table.of(("any",), np.arange(2.0**12 - 1))])
    start = time.process_time()
    prior = prior_by_cost(distribution, cost, largest=2.0**12)
    for _ in range(20):
        prior.divergence(distribution).backward()
    assert time.process_time() - start < 2


def test_a_cost_that_all_networks_share_prefers_none():
    distribution = with_logits(1)
    prior = prior_by_cost(distribution, ExpectedSum([Table.of((), 5)]), largest=5.0)
    assert float(prior.divergence(distribution)) == float(Prior({}).divergence(distribution))


@pytest.mark.slow
def test_its_gradient_leads_to_the_prior():
    distribution = relax(AllLaws())
    prior = prior_by_label(distribution, {"one": {"dear": 0.2, "free": 0.8}, "any": {"0": 0.3, "1": 0.6}})
    optimiser = torch.optim.Adam(distribution.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        prior.divergence(distribution).backward()
        optimiser.step()
    assert float(prior.divergence(distribution)) < 1e-4
    assert float(distribution.probs()["one"][0]) == pytest.approx(0.2, abs=0.02)


def test_the_prior_by_cost_prefers_what_is_cheap():
    distribution = relax(AllLaws())
    prior = prior_by_cost(distribution, expected_parameters(AllLaws()), largest=20.0)
    divergences = []
    for logit in (-1.0, 1.0):
        distribution.logits["one"].data[0] = logit  # of the candidate with parameters
        divergences.append(float(prior.divergence(distribution)))
    assert divergences[0] < divergences[1]


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"tow": {"0": 1.0}}, "prior: the space has no choice 'tow'; give one of one, two, any"),
        ({"one": {"deer": 1.0}}, "prior: choice 'one' has no candidate 'deer'; give one of dear, free"),
        ({"one": {"dear": -1.0}}, "prior: the probabilities of 'one' are {'dear': -1.0}; give numbers"),
        ({"one": {"dear": 0.0}}, "prior: the probabilities of 'one' are {'dear': 0.0}; give numbers"),
        ({"any": {"0": 2.0}}, "prior: 'any' takes any number of inputs, one with 2; give at most 1"),
    ],
)
def test_what_does_not_fit_the_space_is_told_in_one_line(given_, words):
    with pytest.raises(UsageError) as caught:
        prior_by_label(relax(AllLaws()), given_)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)

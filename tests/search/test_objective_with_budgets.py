"""What a search with budgets asks of the logits, and which network it then returns; without a search around it."""

import itertools

import numpy as np
import pytest
import torch
from budgeted_spaces import Sized, Torn
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_gumbel import relax
from nni_gumbel.complexity.budget import Limit
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import ExpectedSum, Table
from nni_gumbel.search.budgets import best_spending
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.settings import SearchSettings


def brute_force(distribution, limits, least):
    """The most probable network within the limits that uses at least so much of the one."""
    best = None
    labels = list(distribution.variables)
    each = [[[0], [1]] if label == "inputs" else distribution.variables[label].values for label in labels]
    for values in itertools.product(*each):
        sample = dict(zip(labels, values))
        cost = count_parameters(Sized().freeze(sample))
        if all(cost <= limit.maximum for limit in limits) and cost >= least:
            log_prob = float(distribution.log_prob(sample).detach())
            best = max(best or (log_prob, sample), (log_prob, sample), key=lambda one: one[0])
    return best[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_of_networks_that_spend_a_budget_the_most_probable_one_is_chosen(seed):
    space = Sized()
    distribution = relax(space)
    generator = torch.Generator().manual_seed(seed)
    for logits in distribution.logits.values():
        logits.data = 3 * torch.randn(len(logits), generator=generator)
    limits = [Limit("max_params", expected_parameters(space), 100.0)]
    assert best_spending(space, distribution, limits) == brute_force(distribution, limits, 85)


def test_where_none_spends_a_budget_no_single_choice_could_be_larger():
    space = Sized()
    distribution = relax(space)
    for label in "012":
        distribution.logits[label].data[0] = 5.0  # nothing at all is the most probable
    # The networks have 5, 21, 37 … parameters: of 20 and of 36 none has 85 %.
    for budget, parameters in ((20, 5), (60, 53), (44, 37)):
        limits = [Limit("max_params", expected_parameters(space), float(budget))]
        chosen = best_spending(space, distribution, limits)
        assert count_parameters(Sized().freeze(chosen)) == parameters


def test_where_the_fullest_budget_cannot_be_spent_more_the_next_one_is():
    """Two choices, each of one cost alone: the first is at its limit, and that must not keep the second small."""
    space = TwoIdentities()
    distribution = relax(space)
    for label in "ab":
        distribution.logits[label].data[0] = 5.0
    costs = {
        "max_params": ExpectedSum([Table.of(["a"], np.array([10.0, 70.0]))]),
        "max_flops": ExpectedSum([Table.of(["b"], np.array([10.0, 80.0]))]),
    }
    limits = [Limit(field, cost, 100.0) for field, cost in costs.items()]
    assert best_spending(space, distribution, limits) == {"a": 1, "b": 1}


def test_a_budget_that_every_network_meets_is_told_to_limit_nothing(caplog):
    objective_of(max_params=245)
    assert "max_params: every network of the space is within 245, so it limits nothing" in caplog.text
    caplog.clear()
    objective_of(max_params=244)
    assert not caplog.records


class UnequalNested(ModelSpace):
    """``big`` has 4,160 parameters, ``small`` 4,063 or 1,096: no network has the sum of the largest of each."""

    def __init__(self):
        super().__init__()

        def through(n):
            return nn.Sequential(nn.Linear(64, n, bias=False), nn.Linear(n, 64, bias=False))

        sizes = {
            "wide": nn.Sequential(through(31), nn.Linear(94, 1)),
            "narrow": nn.Sequential(through(8), nn.Linear(71, 1)),
        }
        inner = LayerChoice(sizes, label="inner")
        self.outer = LayerChoice({"big": nn.Linear(64, 64), "small": inner}, label="outer")

    def forward(self, x):
        return self.outer(x)


def test_a_budget_that_every_network_meets_leaves_the_most_probable_network_the_best(caplog):
    for budget in ({}, {"max_params": 4_160}, {"max_params": 5_000}):
        space, distribution, objective = objective_of(UnequalNested, **budget)
        distribution.logits["outer"].data = torch.tensor([-10.0, 0.0])
        assert objective.best()["outer"] == "small"
        assert "slack" not in objective._violations(0.9)
    assert "max_params: every network of the space is within 5000" in caplog.text
    space, _, objective = objective_of(UnequalNested, max_params=4_159)
    assert "slack" in objective._violations(0.9)


def test_a_cost_is_weighed_relative_to_the_largest_network():
    space = UnequalNested()
    distribution = relax(space)
    costs = SearchCosts(space, distribution, SearchSettings())
    distribution.logits["outer"].data = torch.tensor([100.0, 0.0])
    assert costs.relative().item() == pytest.approx(1)


class TwoIdentities(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(LayerChoice([nn.Identity(), nn.Identity()], label=label) for label in "ab")
        )

    def forward(self, x):
        return self.layers(x)


def objective_of(kind=Sized, example=None, **settings):
    space = kind()
    distribution = relax(space)
    settings = SearchSettings(**{"preset": "gradual", **settings})
    costs = SearchCosts(space, distribution, settings)
    if example is not None:
        costs.complete(example, {})
    objective = StructureObjective(distribution, costs, settings, None)
    objective.prepare(lambda: None)
    return space, distribution, objective


def test_the_last_quarter_commits_to_the_network_found_where_the_most_probable_one_is_too_large():
    """Every layer prefers its largest candidate, firmly; 85 of 245 parameters are allowed."""
    space, distribution, objective = objective_of(max_params=85)
    for label in "012":
        distribution.logits[label].data = torch.tensor([0.0, 1.0, 2.0, 5.0])
    found = objective.best()
    assert count_parameters(Sized().freeze(found)) <= 85

    def at(progress):
        return objective(torch.zeros(()), progress)

    before = float(distribution.log_prob(found))
    optimiser = torch.optim.Adam(distribution.parameters(), lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        at(0.75 + 0.25 * step / 149).backward()
        optimiser.step()
    committed = objective.best()
    assert float(distribution.log_prob(committed)) > -0.1 > before
    assert distribution.mode() == committed and count_parameters(Sized().freeze(committed)) <= 85


def test_in_the_last_quarter_no_more_of_a_budget_is_asked_for_than_the_network_found_uses():
    """Of Torn's two networks the one below the budget uses a fifth of it: to ask for 95 % would ask for a mixture."""
    space, distribution, objective = objective_of(Torn, max_params=500)
    used = count_parameters(Torn().freeze(objective.best())) / 500
    slack = [float(objective._violations(progress)["slack"]) for progress in (0.7, 0.9)]
    assert used < 0.85 and slack[0] - slack[1] == pytest.approx(0.95 - used)


def test_a_resumed_objective_goes_on_with_the_network_that_it_had_chosen():
    _, distribution, first = objective_of(max_params=85)
    first(torch.zeros(()), 0.9)
    distribution.logits["0"].data[3] = 5.0  # another network would be chosen now
    _, others, second = objective_of(max_params=85)
    others.load_state_dict(distribution.state_dict())
    second.load_state_dict(first.state_dict())
    _, changed, third = objective_of(max_params=85)
    changed.load_state_dict(distribution.state_dict())
    values = [float(one(torch.zeros(()), 0.901)) for one in (first, second, third)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.74])
def test_before_its_last_quarter_a_budget_adds_its_multipliers_alone(progress):
    _, distribution, limited = objective_of(max_params=200, cost_weight=0.3)
    _, _, free = objective_of(cost_weight=0.3)
    loss = torch.tensor(1.0)
    assert float(limited(loss, progress)) == pytest.approx(float(free(loss, progress)))
    assert float(limited(loss, 0.9)) > float(free(loss, 0.9)) + 0.1


@pytest.mark.parametrize(("parameters", "flops"), [(90, 50), (50, 90)])
def test_several_budgets_hold_together_though_every_layer_prefers_its_largest_candidate(parameters, flops):
    space, distribution, objective = objective_of(
        example=(torch.zeros(2, 4),), max_params=parameters, max_flops=flops
    )
    for label in "012":
        distribution.logits[label].data = torch.tensor([0.0, 1.0, 2.0, 5.0])
    network = Sized().freeze(objective.best())
    assert count_parameters(network) <= parameters
    assert count_flops(network, torch.zeros(2, 4)) <= flops
    # Both numbers are the same for these layers: the smaller budget is the one that is spent.
    assert count_parameters(network) >= 0.85 * 50

"""Budgets in a search: what it returns is within them, uses them, and comes from a distribution that is there, too."""

import itertools
import logging

import pytest
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from small_searches import Minimal, evaluator, loader, search
from torch import nn

from nni_gumbel import GumbelSearch, UsageError, relax
from nni_gumbel.complexity.budget import Limit
from nni_gumbel.complexity.cost import count_parameters, expected_parameters
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.selection import best_spending
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.ranking import most_probable

# Whole searches; what they are made of has fast tests of its own.
pytestmark = pytest.mark.slow


def candidates():
    return {
        "none": nn.Identity(),
        "small": nn.Linear(4, 4, bias=False),
        "medium": nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)),
        "large": nn.Sequential(nn.Linear(4, 10, bias=False), nn.Linear(10, 4, bias=False)),
    }


class Sized(ModelSpace):
    """Three layers of 0, 16, 40 or 80 parameters, and 5 that are always there."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(LayerChoice(candidates(), label=str(i)) for i in range(3)))
        self.inputs = InputChoice(2, n_chosen=1, label="inputs")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inputs([self.layers(x), x]))


def ends_with(space=Sized, epochs=12, **settings):
    return search(evaluator(max_epochs=epochs), space, **settings)


def parameters_of(module, space=Sized):
    return count_parameters(space().freeze(module.export()))


def is_used(parameters, budget, sample, space=Sized):
    """At least 85 %, or no single other candidate is larger and fits."""
    others = [
        count_parameters(space().freeze({**sample, label: value}))
        for label in sample
        if label != "inputs"
        for value in candidates()
    ]
    return parameters >= 0.85 * budget or not any(parameters < other <= budget for other in others)


@pytest.mark.parametrize("budget", [10, 60, 150])
def test_the_network_found_is_within_its_budget_and_uses_it(budget):
    module = ends_with(max_params=budget)
    parameters = parameters_of(module)
    assert parameters <= budget and is_used(parameters, budget, module.export())


def test_the_expected_cost_goes_to_the_budget_from_either_side():
    start = float(expected_parameters(Sized())(relax(Sized()).probs()))
    for budget in (50, 190):  # below and above what is expected of a network chosen at random
        expected = ends_with(max_params=budget).structure_summary()["expected_params"]
        assert abs(expected - budget) < 0.4 * abs(start - budget)


class Torn(ModelSpace):
    """A layer of 96 or 1,000 parameters, and nothing between."""

    def __init__(self):
        super().__init__()
        sizes = {"small": 12, "large": 125}
        layers = {
            name: nn.Sequential(nn.Linear(4, n, bias=False), nn.Linear(n, 4, bias=False))
            for name, n in sizes.items()
        }
        self.layer = LayerChoice(layers, label="layer")
        self.other = LayerChoice([nn.Identity(), nn.Tanh()], label="other")

    def forward(self, x):
        return self.other(self.layer(x)).sum(1, keepdim=True)


@pytest.mark.parametrize("budget", [300, 800])
def test_a_search_decides_though_no_network_is_near_its_budget(budget):
    module = ends_with(Torn, epochs=50, max_params=budget)
    assert module.export()["layer"] == "small"
    assert module.structure_summary()["chosen_probability"] > 0.95


def test_a_budget_with_a_cost_weight_is_a_bound_alone_and_less_is_better():
    priced = ends_with(max_params=190, cost_weight=20.0)
    assert parameters_of(priced) < 0.5 * 190
    assert set(priced.objective.multipliers.weights) == {"max_params"}


def test_multiply_adds_are_limited_by_what_the_first_batch_says():
    module = ends_with(max_flops=60)
    flops = count_flops(Sized().freeze(module.export()), torch.zeros(2, 4))
    assert 0.85 * 60 <= flops <= 60 and "expected_flops" in module.structure_summary()


@pytest.mark.parametrize(("parameters", "flops"), [(90, 50), (50, 90)])
def test_several_budgets_hold_together_though_every_layer_prefers_its_largest_candidate(parameters, flops):
    space, distribution, objective = objective_of(
        example=(torch.zeros(2, 4),), max_params=parameters, max_flops=flops
    )
    for label in "012":
        distribution.logits[label].data = torch.tensor([0.0, 1.0, 2.0, 5.0])
    network = Sized().freeze(objective.best(space))
    assert count_parameters(network) <= parameters
    assert count_flops(network, torch.zeros(2, 4)) <= flops
    # Both numbers are the same for these layers: the smaller budget is the one that is spent.
    assert count_parameters(network) >= 0.85 * 50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_params": 4}, "max_params: 4 is below the smallest network of the space, which has 5"),
        ({"max_flops": 3}, "max_flops: 3 is below the smallest network of the space, which has 5"),
    ],
)
def test_a_budget_that_no_network_meets_is_refused_before_the_first_step(settings, words):
    steps = []

    class Counted(Minimal):
        def on_train_batch_end(self, *args):
            steps.append(args)

    with pytest.raises(UsageError, match=words):
        search(evaluator(Counted()), Sized, **settings)
    assert not steps


def test_the_multipliers_are_told_with_the_structure():
    summary = ends_with(max_params=40, epochs=2).structure_summary()
    assert summary["budget_weight/max_params"] > 0
    assert summary["budget_weight/unused"] == 0


@pytest.mark.filterwarnings("ignore")
def test_nnis_experiment_lists_the_network_found_and_then_others_within_the_budget(tmp_path):
    experiment = NasExperiment(Sized(), evaluator(max_epochs=4), GumbelSearch(max_params=60, gap_every=0))
    experiment.config.experiment_working_directory = str(tmp_path)
    assert experiment.run(port=8097) is not False
    # Of the 128 networks 22 are within.
    samples = experiment.export_top_models(top_k=22, formatter="dict")
    experiment.stop()
    assert samples[0] == experiment.strategy._mutated_model_space.evaluator.module.export()
    assert len({str(sample) for sample in samples}) == 22
    assert all(count_parameters(Sized().freeze(sample)) <= 60 for sample in samples)


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


@pytest.mark.parametrize("seed", range(4))
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


def objective_of(example=None, **settings):
    space = Sized()
    distribution = relax(space)
    settings = SearchSettings(**settings)
    costs = SearchCosts(space, distribution, settings)
    if example is not None:
        costs.complete(example, {})
    objective = StructureObjective(distribution, costs, settings, None)
    objective.prepare(space, lambda: None)
    return space, distribution, objective


def test_the_last_quarter_commits_to_the_network_found_where_the_most_probable_one_is_too_large():
    """Every layer prefers its largest candidate, firmly; 85 of 245 parameters are allowed."""
    space, distribution, objective = objective_of(max_params=85)
    for label in "012":
        distribution.logits[label].data = torch.tensor([0.0, 1.0, 2.0, 5.0])
    found = objective.best(space)
    assert count_parameters(Sized().freeze(found)) <= 85

    def at(progress):
        value, _ = objective(torch.zeros(()), progress)
        return value

    before = float(distribution.log_prob(found))
    optimiser = torch.optim.Adam(distribution.parameters(), lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        at(0.75 + 0.25 * step / 149).backward()
        optimiser.step()
    committed = objective.best(space)
    assert float(distribution.log_prob(committed)) > -0.1 > before
    assert distribution.mode() == committed and count_parameters(Sized().freeze(committed)) <= 85


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.74])
def test_before_its_last_quarter_a_budget_adds_its_multipliers_alone(progress):
    _, distribution, limited = objective_of(max_params=200, cost_weight=0.3)
    _, _, free = objective_of(cost_weight=0.3)
    loss = torch.tensor(1.0)
    assert float(limited(loss, progress)[0]) == pytest.approx(float(free(loss, progress)[0]))
    assert float(limited(loss, 0.9)[0]) > float(free(loss, 0.9)[0]) + 0.1


def test_a_search_that_ends_undecided_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        ends_with(epochs=1, arc_learning_rate=1e-4)
        assert "the search ends undecided: what it chose has a mean probability of 0." in caplog.text
        caplog.clear()
        ends_with(epochs=12, arc_learning_rate=1.0)
        assert "undecided" not in caplog.text


def test_with_a_divergence_that_explores_a_search_ends_decided_all_the_same():
    module = ends_with(kl_weight=5.0, arc_learning_rate=0.3, epochs=20)
    assert module.structure_summary()["chosen_probability"] > 0.95
    assert module.objective.entropy_weight(1.0) == pytest.approx(SearchSettings().entropy_weight_end + 5.0)


def test_the_divergence_steers_to_what_the_prior_prefers():
    prior = {label: {"small": 0.97, "none": 0.01, "medium": 0.01, "large": 0.01} for label in "012"}
    module = ends_with(kl_weight=20.0, prior=prior, cost_weight=0.0, arc_learning_rate=0.2)
    assert [module.export().get(label) for label in "012"] == ["small"] * 3


def test_a_prior_by_cost_leaves_fewer_parameters():
    uniform, cheap = (
        ends_with(kl_weight=30.0, prior=prior, cost_weight=0.0).structure_summary()["expected_params"]
        for prior in ("uniform", "cost")
    )
    assert cheap < uniform


def test_a_prior_that_does_not_fit_the_space_is_refused_before_the_search():
    with pytest.raises(UsageError, match="prior: the space has no choice 'layer'"):
        search(evaluator(), Sized, prior={"layer": {"none": 1.0}})


def test_with_validation_data_of_its_own_a_search_spends_its_budget_and_keeps_it():
    given = evaluator(val=loader(seed=3, count=16), max_epochs=4)
    module = search(given, Sized, max_params=30)
    parameters = parameters_of(module)
    assert parameters <= 30 and is_used(parameters, 30, module.export())


def test_a_budget_that_every_network_meets_changes_nothing():
    free, limited = (
        ends_with(epochs=4, cost_weight=0.0, **budget) for budget in ({}, {"max_params": 10_000})
    )
    for one, other in zip(free.distribution.logits.values(), limited.distribution.logits.values()):
        assert torch.equal(one, other)
    assert free.export() == limited.export()


class Nested(ModelSpace):
    """A candidate that is more probable than the other, but splits into four networks."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.Linear(4, 4) for _ in range(4)], label="inner")
        self.outer = LayerChoice([nn.Linear(4, 4), inner], label="outer")

    def forward(self, x):
        return self.outer(x)


@pytest.mark.parametrize("budget", [{}, {"max_params": 10_000}])
def test_the_network_found_is_the_most_probable_one_with_a_budget_and_without(budget):
    space = Nested()
    distribution = relax(space)
    with torch.no_grad():
        distribution.logits["outer"].copy_(torch.tensor([0.0, 0.2]))
    settings = SearchSettings(**budget)
    objective = StructureObjective(distribution, SearchCosts(space, distribution, settings), settings, None)
    assert objective.best(space) == {"outer": 0} == next(iter(most_probable(space, distribution)))[0]

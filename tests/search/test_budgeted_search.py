"""Budgets in a search: what it returns is within them, uses them, and comes from a distribution that is there, too."""

import logging

import pytest
import torch
from budgeted_spaces import Sized, Torn, candidates
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import Minimal, evaluator, loader, search
from torch import nn

from nni_gumbel import GumbelSearch, UsageError, relax
from nni_gumbel.complexity.budget import ranked_within
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.settings import SearchSettings

# Whole searches; what they are made of has fast tests of its own.
pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("preset", ["none", "gradual"])
@pytest.mark.parametrize("budget", [10, 60, 150])
def test_the_network_found_is_within_its_budget_and_uses_it(budget, preset):
    module = ends_with(max_params=budget, preset=preset)
    parameters = parameters_of(module)
    assert parameters <= budget and is_used(parameters, budget, module.export())


def test_the_expected_cost_goes_to_the_budget_from_either_side():
    start = float(expected_parameters(Sized())(relax(Sized()).probs()))
    for budget in (50, 190):  # below and above what is expected of a network chosen at random
        expected = ends_with(max_params=budget).structure_summary()["expected_params"]
        assert abs(expected - budget) < 0.4 * abs(start - budget)


@pytest.mark.parametrize("budget", [300, 800])
def test_a_search_decides_though_no_network_is_near_its_budget(budget):
    module = ends_with(Torn, epochs=50, max_params=budget)
    assert module.export()["layer"] == "small"
    assert module.structure_summary()["chosen_probability"] > 0.9


def test_a_budget_with_a_cost_weight_is_a_bound_alone_and_less_is_better():
    priced = ends_with(max_params=190, cost_weight=20.0)
    assert parameters_of(priced) < 0.5 * 190
    assert set(priced.objective.multipliers.weights) == {"max_params"}


def test_multiply_adds_are_limited_by_what_the_first_batch_says():
    module = ends_with(max_flops=60)
    flops = count_flops(Sized().freeze(module.export()), torch.zeros(2, 4))
    assert 0.85 * 60 <= flops <= 60 and "expected_flops" in module.structure_summary()


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
    assert summary["budget_weight/slack"] == 0


@pytest.mark.filterwarnings("ignore")
def test_nnis_experiment_lists_the_network_found_and_then_others_within_the_budget(tmp_path):
    experiment = NasExperiment(Sized(), evaluator(max_epochs=4), GumbelSearch(max_params=60))
    experiment.config.experiment_working_directory = str(tmp_path)
    assert experiment.run(port=8097) is not False
    # Of the 128 networks 22 are within.
    samples = experiment.export_top_models(top_k=22, formatter="dict")
    experiment.stop()
    assert samples[0] == experiment.strategy._mutated_model_space.evaluator.module.export()
    assert len({str(sample) for sample in samples}) == 22
    assert all(count_parameters(Sized().freeze(sample)) <= 60 for sample in samples)


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
    assert module.objective.entropy_weight(1.0) == pytest.approx(
        SearchSettings(preset="gradual").entropy_weight_end + 5.0
    )


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
    assert objective.best() == {"outer": 0} == next(ranked_within(space, distribution, []))[0]

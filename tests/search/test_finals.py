"""Finals: networks that are trained alone, and what follows from them and from shared weights."""

import pytest
import torch
from test_population import Several, planted, population_of, staged

from nni_gumbel.search.finals import Finals
from nni_gumbel.supernet.distribution import Distribution


def finals_of(population, allowed=dict):
    return Finals(population._distribution, population, allowed, population._distribution.mode)


def trained(finals, loss, number):
    """Train networks alone, each judged by a function of it."""
    for _ in range(number):
        finals.begin()
        finals.judge([loss(finals.likely)])
        finals.end(lambda mean, network: mean)
    return finals


def leaning(network):
    """What shared weights say: the truth, and a liking for candidate 0 of the first layer."""
    return planted(network) - 2.0 * (network["layer0"] == 0)


def seeded(seed, loss=planted, stages=3):
    torch.manual_seed(seed)
    return staged(population_of(Distribution(Several())), loss, stages, end=1.0)


def test_the_first_network_is_the_best_one_by_shared_weights():
    finals = finals_of(population := seeded(0))
    finals.begin()
    best = min(planted(network) for network in population.judged)
    assert planted(finals.likely) <= best


def test_trainings_alone_overrule_what_shared_weights_lean_to():
    overruled = 0
    for seed in range(5):
        finals = trained(finals_of(seeded(seed, leaning)), planted, 8)
        assert finals.networks[0]["layer0"] == 0
        overruled += finals.ranked()[0]["layer0"] == 2
    assert overruled >= 4


def test_no_network_is_trained_twice_while_there_are_others():
    networks = trained(finals_of(seeded(0)), planted, 10).networks
    assert len({str(network) for network in networks}) == 10


def test_a_network_that_may_not_be_found_is_not_trained_though_it_is_close_to_the_best():
    population = seeded(0)
    population.judged = [network | {"layer1": 0} for network in population.judged]
    finals = finals_of(population, lambda sample: None if sample["layer1"] == 2 else sample)
    assert all(network["layer1"] != 2 for network in trained(finals, planted, 6).networks)


def test_what_differs_in_one_choice_from_the_best_is_among_those_that_may_be_trained():
    population = seeded(0)
    best = {"layer0": 2, "layer1": 2, "layer2": 2, "layer3": 2, "gates": [1]}
    kept = [i for i, one in enumerate(population.judged) if planted(one) > 1]
    for name in ("judged", "objectives", "ages"):
        setattr(population, name, [getattr(population, name)[i] for i in kept])
    assert min(planted(one) for one in population.judged) == 2
    assert any(planted(one) <= 1 for one in trained(finals_of(population), planted, 8).networks), best


def test_the_loss_of_a_network_is_the_mean_over_its_batches_and_what_it_costs_is_added():
    finals, told = finals_of(seeded(0)), []
    finals.begin()
    for loss in (1.0, 2.0, 6.0):
        finals.judge([loss])
    finals.end(lambda mean, network: told.append((mean, network)) or mean)
    assert told == [(3.0, finals.networks[0])]


def test_a_network_whose_training_was_cut_before_it_was_judged_does_not_count():
    finals = finals_of(seeded(0))
    finals.begin()
    finals.end(lambda mean, network: mean)
    assert finals.networks == []


def test_without_any_judgement_the_most_probable_network_is_found():
    population = population_of(distribution := Distribution(Several()))
    finals = finals_of(population)
    finals.begin()
    assert finals.likely == distribution.mode() == finals.decide()


def test_every_choice_is_decided_as_the_network_found_has_it():
    finals = trained(finals_of(population := seeded(0)), planted, 3)
    network = finals.decide()
    assert network == finals.ranked()[0] == population._distribution.mode()
    assert float(population._distribution.log_prob(network).exp()) == pytest.approx(1)


def test_the_network_found_is_the_best_of_those_that_were_trained_alone():
    finals = trained(finals_of(seeded(0, leaning)), planted, 6)
    assert finals.ranked()[0] == min(finals.networks, key=planted)


def test_the_end_of_a_training_says_whether_it_was_the_best_so_far():
    finals, told = finals_of(seeded(0)), []
    for loss in (2.0, 3.0, 1.0):
        finals.begin()
        finals.judge([loss])
        told.append(finals.end(lambda mean, network: mean))
    finals.begin()
    told.append(finals.end(lambda mean, network: mean))  # cut before it was judged
    assert told == [True, False, True, False]


def test_resumed_in_the_middle_of_a_training_they_go_on_as_if_never_interrupted():
    results = []
    for interrupted in (False, True):
        population = seeded(3)
        finals = trained(finals_of(population), planted, 2)
        finals.begin()
        finals.judge([2.0])
        if interrupted:
            saved, finals = finals.state_dict(), finals_of(population)
            finals.load_state_dict(saved)
        finals.judge([1.0])
        finals.end(lambda mean, network: mean)
        trained(finals, planted, 2)
        results.append((finals.networks, finals.objectives))
    assert results[0] == results[1]

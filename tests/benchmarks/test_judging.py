"""The pure parts of the instruments that judge: models of cells, perfect weights, places among random networks."""

import json

import activations
import collapse
import mnist_networks
import numpy as np
import perfect_weights
import proxy
import pytest
import supernet
import table
import torch

from nni_gumbel import UsageError
from nni_gumbel.search.settings import SearchSettings


def test_a_linear_model_finds_what_each_operation_costs():
    random = np.random.default_rng(0)
    costs = random.normal(size=(6, 5))
    cells = random.integers(5, size=(2000, 6))
    losses = costs[np.arange(6), cells].sum(1)
    found = supernet.linear_model(cells, losses)
    centred = costs - costs.mean(1, keepdims=True)
    # The ridge of 1 beside 400 cells for each operation: half a percent.
    assert np.allclose(found - found.mean(1, keepdims=True), centred, atol=0.05)


def test_costs_of_edges_add_up():
    costs = np.random.default_rng(0).normal(size=(6, 5))
    total = supernet.additive(costs)
    cell = (3, 1, 4, 1, 0, 2)
    assert total.shape == table.SHAPE
    assert total[cell] == pytest.approx(sum(costs[edge, operation] for edge, operation in enumerate(cell)))


def test_trainings_choose_together_by_the_mean_of_their_gradients():
    first, second = np.zeros((6, 5)), np.zeros((6, 5))
    first[:, 2], second[:, 2], second[:, 4] = -3, 1, -1
    rows = [
        {"measurements": json.dumps([{"step": 7, "normalised": one.tolist()}])} for one in (first, second)
    ]
    assert supernet.chosen_together(rows, 7) == (2,) * 6


@pytest.mark.parametrize("way", ["gumbel", "gumbel:0", "mixture:1", "fiar"])
def test_a_way_that_does_not_exist_is_refused(way):
    with pytest.raises(UsageError, match="is unknown; give some of mixture"):
        supernet.check(way)


def test_fair_draws_run_every_candidate_of_every_edge_once():
    import space

    from nni_gumbel import relax

    distribution = relax(space.Size(channels=2).space())
    weights = [
        torch.stack([distribution.joint_sample.weights(label) for label in table.LABELS])
        for _ in supernet.draws(distribution, "fair", 0.5)
    ]
    assert torch.equal(sum(weights), torch.ones(6, 5))


def test_the_extension_of_a_table_is_the_table_at_its_cells():
    losses = torch.rand(table.SHAPE)
    cells = [(3, 1, 4, 1, 0, 2), (0, 0, 0, 0, 0, 4)]
    weights = torch.eye(5)[torch.tensor(cells)]
    assert perfect_weights.extended(losses, weights).tolist() == pytest.approx(
        [float(losses[c]) for c in cells]
    )


def test_the_extension_of_a_table_is_its_mean_at_equal_weights():
    losses = torch.rand(table.SHAPE)
    (found,) = perfect_weights.extended(losses, torch.full((1, 6, 5), 0.2)).tolist()
    assert found == pytest.approx(float(losses.mean()), abs=1e-5)


def test_perfect_weights_and_no_noise_lead_to_the_best_cell():
    losses = torch.from_numpy(supernet.additive(np.tile(np.arange(5.0), (6, 1)))).float()
    logits = perfect_weights.descend(
        losses, vars(SearchSettings(cost_weight=0)), torch.zeros(6, 5), 4, 100, noise=0
    )
    assert logits.argmax(-1).tolist() == [[0] * 6] * 4


def test_a_rank_correlation_needs_three_values_that_differ():
    assert proxy.correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert np.isnan(proxy.correlation([1, 2], [1, 2]))
    assert np.isnan(proxy.correlation([1, 1, 1], [1, 2, 3]))


def test_a_network_is_placed_among_those_of_its_size():
    sizes, accuracies = [100, 110, 90, 5000, 6000], [0.90, 0.92, 0.94, 0.99, 0.99]
    assert mnist_networks.place_among(100, 0.93, sizes, accuracies, neighbours=3) == pytest.approx(2 / 3)
    assert mnist_networks.place_among(5500, 0.99, sizes, accuracies, neighbours=2) == 0.5


def test_the_first_random_networks_are_the_same_however_many_there_are():
    from search_spaces.mnist import MnistSpace

    few, many = (mnist_networks.random_networks(MnistSpace, number) for number in (3, 6))
    assert many[:3] == few


def test_what_is_not_searched_is_fixed():
    labels = {kind: set(activations.SmallSpace(kind).simplify()) for kind in activations.KINDS}
    assert labels["operations"] | labels["activations"] == labels["both"]
    assert not labels["operations"] & labels["activations"]
    network = activations.completed(dict.fromkeys(labels["operations"], "identity"))
    assert set(network) == labels["both"]
    assert {network[label] for label in labels["activations"]} == {"relu"}


@pytest.mark.parametrize("name", collapse.QUESTIONS)
def test_a_space_with_a_known_answer_has_right_and_wrong_networks(name):
    question = collapse.QUESTIONS[name]
    space = question.space()
    values = {label: list(variable.values) for label, variable in space.simplify().items()}
    answers = {question.is_right({label: of_one[k] for label, of_one in values.items()}) for k in range(2)}
    assert answers == {True, False}
    assert space(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

"""The end of a search with budgets: which network it settles on, when, and how it is drawn there."""

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_gumbel import relax
from nni_gumbel.search.budgets import Commitment


class Two(ModelSpace):
    def __init__(self):
        super().__init__()
        self.first = LayerChoice([nn.Identity(), nn.Tanh(), nn.ReLU()], label="first")
        self.second = LayerChoice([nn.Identity(), nn.Tanh()], label="second")

    def forward(self, x):
        return self.second(self.first(x))


def commitment_of(distribution, samples, usage=0.5):
    """A commitment that finds one sample after another."""
    following = iter(samples)
    return Commitment(distribution, lambda: next(following), lambda sample: usage)


@pytest.fixture
def distribution():
    return relax(Two())


def sample(first, second):
    return {"first": first, "second": second}


def test_before_the_last_quarter_no_network_is_chosen(distribution):
    commitment = commitment_of(distribution, [])
    assert commitment.used(0.75) == float("inf")


def test_its_strength_rises_from_0_to_1_in_the_last_quarter(distribution):
    commitment = commitment_of(distribution, [])
    assert [commitment.strength(t) for t in (0.0, 0.75, 0.875, 1.0)] == [0, 0, 0.5, 1]


def test_a_uniform_distribution_is_as_far_from_every_network_as_its_entropy(distribution):
    commitment = commitment_of(distribution, [sample(1, 0)])
    assert float(commitment.distance(0.9)) == pytest.approx(float(distribution.entropy()))


def test_a_label_that_the_network_does_not_use_draws_nothing(distribution):
    commitment = commitment_of(distribution, [{"first": 2}])
    commitment.distance(0.9).backward()
    gradients = {label: logits.grad for label, logits in distribution.logits.items()}
    assert gradients["second"] is None or not gradients["second"].any()
    assert gradients["first"][2] < 0 < gradients["first"][0]


def test_a_certain_distribution_is_at_its_network(distribution):
    with torch.no_grad():
        distribution.logits["first"][1] = distribution.logits["second"][0] = 50
    commitment = commitment_of(distribution, [sample(1, 0)])
    assert float(commitment.distance(1.0)) == pytest.approx(0, abs=1e-6)


def test_the_network_is_chosen_again_after_a_hundredth_of_the_search(distribution):
    commitment = commitment_of(distribution, [sample(0, 0), sample(1, 0)])
    with torch.no_grad():
        distribution.logits["first"][1] = 5
    far = float(commitment.distance(0.8))
    assert float(commitment.distance(0.809)) == far > 1
    assert float(commitment.distance(0.811)) < 0.6


def test_a_resumed_search_goes_on_with_the_network_of_its_checkpoint(distribution):
    before = commitment_of(distribution, [sample(2, 1)], usage=0.7)
    distance = float(before.distance(0.9))
    after = commitment_of(distribution, [])
    after.load_state_dict(before.state_dict())
    assert float(after.distance(0.9)) == distance and after.used(0.9) == 0.7


def test_a_search_may_move_to_its_device_after_it_is_resumed(distribution):
    before = commitment_of(distribution, [sample(2, 1)])
    before.distance(0.9)
    after = commitment_of(distribution, [])
    after.load_state_dict(before.state_dict())
    distribution.to("meta")  # as Lightning does: it restores first
    assert after.distance(0.9).device.type == "meta"

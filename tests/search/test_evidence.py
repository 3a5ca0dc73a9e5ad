"""Evidence: gradients at an undecided mixture, compared with what they estimate, and what is rejected."""

import itertools
import math

import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn

from nni_gumbel.search.evidence import Evidence
from nni_gumbel.supernet.distribution import Distribution


class Kinds(ModelSpace):
    """A choice of one, a 2-subset and gates: 5 * 6 * 7 networks."""

    def __init__(self):
        super().__init__()
        self.one = LayerChoice([nn.Identity() for _ in range(5)], label="one")
        self.two = InputChoice(4, n_chosen=2, label="two")
        self.gates = InputChoice(3, n_chosen=None, label="gates")


def networks(distribution):
    """Every network as one outcome, ``(n,)`` of 0 and 1, a label."""
    sets = [[*law.sets()] for law in distribution.laws.values()]
    for members in itertools.product(*sets):
        yield {
            label: torch.tensor([float(k in chosen) for k in range(law.size)], dtype=torch.float64)
            for (label, law), chosen in zip(distribution.laws.items(), members)
        }


def probability(distribution, outcomes):
    return math.prod(
        law.log_prob(distribution.logits[label], outcomes[label]).exp()
        for label, law in distribution.laws.items()
    )


def gathered(distribution, *steps):
    """The evidence of one round of gradients, a mapping label -> gradient a step."""
    evidence = Evidence(distribution)
    for step in steps:
        evidence.add([step.get(label, torch.zeros(law.size)) for label, law in distribution.laws.items()])
    evidence.reject(later=10_000)
    return evidence


def test_it_is_what_the_mean_loss_gains_from_a_candidate_in_the_place_of_what_else_there_may_be():
    distribution = Distribution(Kinds())
    losses = torch.rand(5 * 6 * 7, generator=torch.Generator().manual_seed(0)).tolist()
    expected = sum(loss * probability(distribution, z) for loss, z in zip(losses, networks(distribution)))
    gradients = torch.autograd.grad(expected, [*distribution.logits.values()])
    evidence = Evidence(distribution)
    evidence.add(gradients)
    probabilities = [float(probability(distribution, z)) for z in networks(distribution)]
    evidence.reject(later=10_000)
    for label, law in distribution.laws.items():
        for k in range(law.size):
            means = []
            for is_in in (0.0, 1.0):
                weights = [p * (z[label][k] == is_in) for p, z in zip(probabilities, networks(distribution))]
                means.append(float(sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)))
            # float32 logits
            assert float(evidence.by_label[label][k]) == pytest.approx(means[0] - means[1], abs=1e-5)


def test_a_step_with_a_large_gradient_counts_by_its_direction_as_any_other():
    first, second = torch.zeros(5), torch.zeros(5)
    first[0], second[1] = -1.0, -99.0
    evidence = gathered(Distribution(Kinds()), {"one": first}, {"one": second}).by_label["one"]
    one, other, *others = evidence.tolist()
    assert one == pytest.approx(other) and one > 0 and others == [0, 0, 0]


def test_two_candidates_of_a_choice_of_one_are_left_and_k_plus_one_of_k_and_every_gate():
    distribution = Distribution(Kinds())
    evidence = Evidence(distribution)
    for later in (2, 1, 0):
        evidence.add([torch.randn(law.size) for law in distribution.laws.values()])
        evidence.reject(later)
    assert {label: len(evidence.undecided(label)) for label in distribution.laws} == {
        "one": 2, "two": 3, "gates": 3,
    }  # fmt: skip


def test_as_many_are_rejected_in_every_round():
    distribution, left = Distribution(Kinds()), []
    evidence = Evidence(distribution)
    for later in (2, 1, 0):
        evidence.reject(later)
        left.append(len(evidence.undecided("one")))
    assert left == [4, 3, 2]


def test_the_worst_is_rejected_and_does_not_run_any_more():
    torch.manual_seed(0)
    distribution = Distribution(Kinds())
    evidence = Evidence(distribution)
    gradient = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.0])  # the loss rises with candidate 2
    evidence.add([gradient, torch.zeros(4), torch.zeros(3)])
    evidence.reject(later=2)
    assert evidence.undecided("one") == [0, 1, 3, 4]
    distribution.sample(1.0)
    assert float(distribution.joint_sample.weights("one")[2]) < 1e-9


def test_what_earlier_rounds_have_said_counts_less_and_is_not_forgotten():
    evidence = Evidence(Distribution(Kinds()))
    for good, bad in ((0, 4), (1, 3)):  # the bad ones are rejected, and are not asked again
        gradient = torch.zeros(5)
        gradient[good], gradient[bad] = -1.0, 1.0
        evidence.add([gradient, torch.zeros(4), torch.zeros(3)])
        evidence.reject(later=10_000)
    first, second, *_ = evidence.by_label["one"].tolist()
    assert 0 < first < second


def test_a_round_without_any_gradient_rejects_its_share():
    evidence = Evidence(Distribution(Kinds()))
    evidence.reject(later=0)
    assert len(evidence.undecided("one")) == 2


def test_a_resumed_round_ends_as_one_that_was_not_interrupted():
    results = []
    for interrupted in (False, True):
        distribution = Distribution(Kinds())
        evidence = Evidence(distribution)
        generator = torch.Generator().manual_seed(0)
        for step in range(6):
            evidence.add([torch.randn(law.size, generator=generator) for law in distribution.laws.values()])
            if interrupted and step == 3:
                saved, evidence = evidence.state_dict(), Evidence(distribution)
                evidence.load_state_dict(saved)
        evidence.reject(later=1)
        results.append([*evidence.by_label.values(), *map(torch.Tensor.detach, distribution.logits.values())])
    assert all(map(torch.equal, *results))

"""The supernet whose distribution is one-hot at a sample computes what NNI's frozen network computes.

The reference is a second, never mutated instance of the space, frozen by NNI's own code, with the
supernet's weights.
"""

import copy

import pytest
import torch
from generated_spaces import GeneratedSpace, example_batch, plans, samples_of
from hypothesis import HealthCheck, given, settings

from nni_gumbel.search.strategy import GumbelSearch
from nni_gumbel.supernet.architecture import used_part
from nni_gumbel.supernet.mixture import mixture


def supernet_and_frozen(plan, sample):
    """The supernet at ``sample``, and NNI's frozen network with the same weights, both float64."""
    reference = GeneratedSpace(plan).double()
    strategy = GumbelSearch()
    supernet = strategy.mutate_model(copy.deepcopy(reference))
    strategy.distribution.use_architecture(sample)
    return supernet, reference.freeze(sample)


@given(plan=plans)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_the_supernet_at_a_sample_equals_the_frozen_network_in_train_and_eval_mode(plan):
    x = example_batch()
    for sample in samples_of(GeneratedSpace(plan)):
        supernet, frozen = supernet_and_frozen(plan, sample)
        for mode in (True, False):
            supernet.train(mode), frozen.train(mode)
            expected = frozen(x)
            # Sums are taken in the same order, so the two differ by rounding alone.
            assert torch.allclose(
                supernet(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()) + 1e-12
            )


@given(plan=plans)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_weights_survive_the_freezing_of_a_supernet(plan):
    x = example_batch()
    sample = samples_of(GeneratedSpace(plan), limit=1)[0]
    supernet, frozen = supernet_and_frozen(plan, sample)
    assert torch.equal(supernet.freeze(sample).eval()(x), frozen.eval()(x))


@given(plan=plans)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_the_used_part_of_a_sample_freezes_to_the_same_network_and_cannot_be_smaller(plan):
    space = GeneratedSpace(plan)
    for sample in samples_of(space, limit=6):
        used = used_part(space, sample)
        assert str(space.freeze(used)) == str(space.freeze(sample))
        for label in used:
            with pytest.raises(Exception, match=label.replace(".", r"\.")):
                space.freeze({key: value for key, value in used.items() if key != label})


def test_modules_that_share_a_label_see_the_same_sample():
    plan = [
        ("layers", [("tanh",), ("identity",)], 0, True),
        ("layers", [("norm",), ("linear", True)], 0, True),
    ]
    strategy = GumbelSearch()
    supernet = strategy.mutate_model(GeneratedSpace(plan))
    strategy.distribution.sample(1.0)
    first, second = supernet.layers
    assert first._joint_sample.weights(first.label) is second._joint_sample.weights(second.label)


def test_a_candidate_of_weight_zero_is_not_run():
    plan = [("layers", [("identity",), ("linear", True)], 0, True)]
    strategy = GumbelSearch()
    supernet = strategy.mutate_model(GeneratedSpace(plan))
    with torch.no_grad():
        supernet.layers[0]["candidate1"].weight.fill_(float("nan"))
    strategy.distribution.use_architecture({supernet.layers[0].label: "candidate0"})
    assert torch.isfinite(supernet(example_batch(torch.float32))).all()


def test_a_mixture_of_tuples_is_taken_entry_by_entry():
    outputs = [(torch.ones(2), torch.zeros(1)), (torch.zeros(2), torch.ones(1))]
    mixed = mixture(outputs, [torch.tensor(0.25), torch.tensor(0.75)])
    assert torch.equal(mixed[0], torch.full((2,), 0.25)) and torch.equal(mixed[1], torch.tensor([0.75]))

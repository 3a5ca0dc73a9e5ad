"""Disturbances of a trained network: what each does, what it leaves as it was, and what it is measured for."""

import pytest
import torch
from torch import nn

from nni_gumbel.results.corruptions import CORRUPTIONS
from nni_gumbel.results.perturbation import (
    fgsm,
    measure_stability,
    noisy_inputs,
    noisy_weights,
    pgd,
    without_smallest_weights,
)


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)
    ).eval()


def images(count=16):
    torch.manual_seed(1)
    return torch.rand(count, 3, 12, 12), torch.randint(0, 4, (count,))


def accuracy(network):
    def score(batches):
        with torch.no_grad():
            right = [(network(x).argmax(1) == y).float() for x, y in batches]
        return float(torch.cat(right).mean())

    return score


def as_it_was(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# -- each disturbance ----------------------------------------------------------------------------------------


def test_noise_of_the_inputs_has_the_strength_of_their_deviation_and_ends_with_the_block():
    network, x = nn.Identity(), 3 + 2 * torch.randn(10_000)
    with noisy_inputs(network, 0.5):
        noise = network(x) - x
    # 10,000 draws: the deviation is known to 1 %.
    assert noise.std() == pytest.approx(0.5 * 2, rel=0.05) and abs(float(noise.mean())) < 0.05
    assert torch.equal(network(x), x)


def test_noise_reaches_inputs_by_name_and_leaves_whole_numbers():
    class Table(nn.Module):
        def forward(self, categories, *, numbers):
            return categories, numbers

    categories, numbers = torch.arange(5), torch.randn(5)
    with noisy_inputs(network := Table(), 0.5):
        got = network(categories, numbers=numbers)
    assert torch.equal(got[0], categories) and not torch.equal(got[1], numbers)


def test_noise_of_the_weights_is_relative_and_is_undone():
    network = nn.Linear(200, 100)
    before = as_it_was(network)
    with noisy_weights(network, 0.1):
        relative = (network.weight / before["weight"] - 1).detach()
        assert relative.std() == pytest.approx(0.1, rel=0.05)
    assert same(before, network.state_dict())


def test_weights_are_as_before_also_after_an_error():
    network = classifier()
    before = as_it_was(network)
    with pytest.raises(RuntimeError), noisy_weights(network, 0.1):
        raise RuntimeError
    assert same(before, network.state_dict())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_the_smallest_weights_of_all_layers_are_removed_and_biases_stay(share):
    network = classifier()
    sizes = torch.cat([network[0].weight.abs().flatten(), network[4].weight.abs().flatten()])
    with without_smallest_weights(network, share):
        after = torch.cat([network[0].weight.abs().flatten(), network[4].weight.abs().flatten()])
        assert int((after == 0).sum()) == round(share * len(sizes))
        kept = after > 0
        assert share == 0 or sizes[kept].min() >= sizes[~kept].max()
        assert (network[4].bias != 0).all() and (network[1].weight != 0).all()


@pytest.mark.parametrize("epsilon", [4 / 255, 8 / 255])
def test_fgsm_and_pgd_are_those_of_torchattacks(epsilon):
    torchattacks = pytest.importorskip(
        # Its requirement of an old `requests` excludes it from the extras.
        "torchattacks",
        reason="no torchattacks; install it with: pip install --no-deps torchattacks tqdm",
    )
    network, (x, y) = classifier(), images()
    theirs = torchattacks.FGSM(network, eps=epsilon)(x, y)
    assert torch.allclose(fgsm(network, x, y, epsilon, 0, 1), theirs, atol=1e-6)
    attack = torchattacks.PGD(network, eps=epsilon, alpha=2.5 / 10 * epsilon, steps=10, random_start=False)
    assert torch.allclose(pgd(network, x, y, epsilon, 0, 1), attack(x, y), atol=1e-6)


def test_an_attack_stays_within_its_length_and_the_range_and_raises_the_loss():
    network, (x, y) = classifier(), images()
    loss = nn.functional.cross_entropy
    for attack in (fgsm, pgd):
        found = attack(network, x, y, 0.05, 0, 1)
        assert (found - x).abs().max() <= 0.05 + 1e-6 and found.min() >= 0 and found.max() <= 1
        assert loss(network(found), y) > loss(network(x), y)


@pytest.mark.parametrize("name", [name for name, *_ in CORRUPTIONS])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_corruption_changes_images_more_and_more_and_keeps_them_between_0_and_1(name, channels):
    ((strengths, corrupt),) = [(s, c) for each, _, s, c in CORRUPTIONS if each == name]
    torch.manual_seed(0)
    # Smooth images, darker than they could be: each corruption leaves its trace.
    x = nn.functional.interpolate(torch.rand(4, channels, 7, 7) * 0.6, size=28, mode="bilinear")
    changes = [float((corrupt(x, strength) - x).abs().mean()) for strength in strengths]
    assert all(corrupt(x, strength).shape == x.shape for strength in strengths)
    assert corrupt(x, strengths[-1]).min() >= 0 and corrupt(x, strengths[-1]).max() <= 1
    assert changes[0] > 0 and changes == sorted(changes)


# -- all of them ---------------------------------------------------------------------------------------------


def test_all_curves_of_a_classification_begin_undisturbed_and_leave_the_network_as_it_was():
    network, batch = classifier(), images()
    before, state = as_it_was(network), torch.get_rng_state()
    found = measure_stability(network, [batch], accuracy(network), metric="acc", minimize=False, full=True)
    assert [curve.name for curve in found.curves] == [
        "input noise", "weight noise", "weights removed", "FGSM", "PGD", *(name for name, *_ in CORRUPTIONS),
    ]  # fmt: skip
    assert {curve.values[0] for curve in found.curves} == {accuracy(network)([batch])}
    assert found.chance == 1 / 4 and found.examples == 16 and 0 <= found.calibration_error <= 1
    assert same(before, network.state_dict()) and torch.equal(state, torch.get_rng_state())
    assert not found.left_out


def test_cheap_has_four_curves_and_equal_networks_have_equal_ones():
    found = []
    for _ in range(2):
        network = classifier()
        found.append(measure_stability(network, [images()], accuracy(network), metric="acc", minimize=False))
    assert [len(each.curves) for each in found] == [4, 4]
    assert found[0].curves == found[1].curves


def test_attacks_are_as_strong_relative_to_the_range_of_normalised_inputs():
    network, (x, y) = classifier(), images()

    class Normalised(nn.Module):
        def forward(self, inputs):
            return network(inputs / 4 + 0.5)

    plain = measure_stability(network, [(x, y)], accuracy(network), metric="acc", minimize=False)
    scaled = measure_stability(
        wrapped := Normalised(), [((x - 0.5) * 4, y)], accuracy(wrapped), metric="acc", minimize=False
    )
    assert plain.curves[3].values == scaled.curves[3].values


@pytest.mark.parametrize("labels", [torch.randn(8), torch.randn(8, 1)])
def test_another_task_has_the_curves_that_make_sense_for_it_and_says_which_are_left_out(labels):
    network, x = nn.Linear(5, 1), torch.randn(8, 5)

    def score(batches):
        with torch.no_grad():
            return float(sum((network(x) - y.view(-1, 1)).square().mean() for x, y in batches))

    found = measure_stability(network, [(x, labels)], score, metric="mse", minimize=True, full=True)
    assert [curve.name for curve in found.curves] == ["input noise", "weight noise", "weights removed"]
    assert "no classification" in found.left_out and found.calibration_error is None
    assert 0 <= found.index <= 1


def test_a_network_of_several_inputs_is_not_attacked_and_says_so():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a, b):
            return self.layer(a + b)

    network = Two()

    def score(batches):
        with torch.no_grad():
            return float((network(*batches[0][0]).argmax(1) == batches[0][1]).float().mean())

    batch = ((torch.randn(9, 4), torch.randn(9, 4)), torch.arange(9) % 3)
    found = measure_stability(network, [batch], score, metric="acc", minimize=False)
    assert len(found.curves) == 3 and found.left_out.startswith("attacks")
    assert found.calibration_error is not None

"""The step of the logits: means of gradients, limits, and errors instead of numbers that are not finite."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.search.logits import LogitsUpdate


def logits():
    return {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(3))}


def updating(values, clip_val=0.0):
    """An update whose optimiser, SGD of rate 1, shows the gradient itself."""
    return LogitsUpdate(values, torch.optim.SGD(list(values.values()), lr=1.0), clip_val)


def trainer(scaler=None):
    """What the update asks of a Trainer."""
    return SimpleNamespace(
        world_size=1,
        accumulate_grad_batches=1,
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(root_device="cpu"),
    )


def gradient(a, b):
    return [torch.tensor(a), torch.tensor(b)]


def moved(values):
    return -torch.cat([value.detach() for value in values.values()])


def test_it_moves_along_the_mean_of_what_was_added_since_the_last_step():
    values = logits()
    update, one_process = updating(values), trainer()
    update.add(gradient([1.0, 0.0], [0.0, 0.0, 3.0]))
    update.add(gradient([3.0, 2.0], [0.0, 0.0, 0.0]))
    update.step(one_process, 0)
    assert moved(values).tolist() == [2.0, 1.0, 0.0, 0.0, 1.5]
    update.add(gradient([0.0, 1.0], [0.0, 0.0, 0.0]))
    update.step(one_process, 1)
    assert moved(values).tolist() == [2.0, 2.0, 0.0, 0.0, 1.5]


@pytest.mark.parametrize(("clip_val", "norm"), [(0.0, 5.0), (2.5, 2.5), (10.0, 5.0)])
def test_the_norm_of_the_mean_gradient_of_all_logits_is_limited(clip_val, norm):
    values = logits()
    update = updating(values, clip_val)
    update.add(gradient([3.0, 0.0], [0.0, 4.0, 0.0]))
    update.step(trainer(), 0)
    assert float(moved(values).norm()) == pytest.approx(norm)
    assert moved(values)[3] / moved(values)[0] == pytest.approx(4 / 3)


def test_a_label_that_the_objective_does_not_contain_has_gradient_zero():
    values = logits()
    gradients = updating(values).gradients((values["a"] * 2).sum())
    assert [g.tolist() for g in gradients] == [[2.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_label(wrong):
    values = logits()
    update = updating(values)
    update.add(gradient([1.0, 0.0], [0.0, wrong, 0.0]))
    with pytest.raises(
        UsageError, match="choice 'b': .* in the structure step 7 is not finite; .+"
    ) as caught:
        update.step(trainer(), 7)
    assert "\n" not in str(caught.value) and torch.equal(moved(values), -torch.zeros(5))


# -- fp16 ----------------------------------------------------------------------------------------


def half_precision(values, scale=2.0**16):
    update = updating(values)
    update.follow_scale(trainer(torch.amp.GradScaler("cpu", scale)))
    return update


def test_in_half_precision_losses_are_scaled_and_gradients_are_not():
    values = logits()
    update = half_precision(values)
    seen = []
    objective = (values["a"] * 3).sum()
    objective.register_hook(lambda g: seen.append(float(g)))
    assert update.gradients(objective)[0].tolist() == [3.0, 3.0] and seen == [2.0**16]


def test_in_half_precision_a_step_that_overflowed_is_left_out():
    values = logits()
    update = half_precision(values)
    for first in (float("inf"), 2.0):
        update.add(gradient([first, 0.0], [0.0, 0.0, 0.0]))
        update.step(trainer(), 0)
    assert moved(values).tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]


def test_in_half_precision_a_gradient_that_never_is_finite_is_an_error_in_the_end():
    values = logits()
    update = half_precision(values)
    with pytest.raises(UsageError, match="choice 'a': "):
        for step in range(20):
            update.add(gradient([float("nan"), 0.0], [0.0, 0.0, 0.0]))
            update.step(trainer(), step)

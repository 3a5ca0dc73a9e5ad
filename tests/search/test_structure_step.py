"""The step of the logits: along their gradient, and errors instead of numbers that are not finite."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.search.diagnosis import FiniteChecks
from nni_gumbel.search.logits import LogitsUpdate


def logits():
    return {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(3))}


def updating(values):
    """An update whose optimiser, SGD of rate 1, shows the gradient itself."""
    return LogitsUpdate(values, torch.optim.SGD(list(values.values()), lr=1.0), FiniteChecks())


def trainer(scaler=None):
    """What the update asks of a Trainer."""
    precision = SimpleNamespace(scaler=scaler)
    return SimpleNamespace(world_size=1, accumulate_grad_batches=1, precision_plugin=precision)


def half_precision(scale=2.0**16):
    return trainer(torch.amp.GradScaler("cpu", scale))


def moved(values):
    return -torch.cat([value.detach() for value in values.values()])


def test_it_moves_along_the_gradient_of_each_step():
    values = logits()
    update = updating(values)
    for gradient in ([3.0, 2.0, 0.0, 0.0, 1.5], [0.0, 1.0, 0.0, 0.0, 0.0]):
        update.step(torch.tensor(gradient), 0, trainer())
    assert moved(values).tolist() == [3.0, 3.0, 0.0, 0.0, 1.5]


def test_a_label_that_the_objective_does_not_contain_has_gradient_zero():
    values = logits()
    gradient = updating(values).gradient((values["a"] * 2).sum(), trainer())
    assert gradient.tolist() == [2.0, 2.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_label(wrong):
    values = logits()
    with pytest.raises(
        UsageError, match="choice 'b': .* in the structure step 7 is not finite; .+"
    ) as caught:
        updating(values).step(torch.tensor([1.0, 0.0, 0.0, wrong, 0.0]), 7, trainer())
    assert "\n" not in str(caught.value) and torch.equal(moved(values), -torch.zeros(5))


# -- fp16 ----------------------------------------------------------------------------------------


def test_in_half_precision_losses_are_scaled_and_gradients_are_not():
    values, seen = logits(), []
    objective = (values["a"] * 3).sum()
    objective.register_hook(lambda g: seen.append(float(g)))
    assert updating(values).gradient(objective, half_precision())[:2].tolist() == [3.0, 3.0]
    assert seen == [2.0**16]


def test_in_half_precision_a_step_that_overflowed_is_left_out():
    values = logits()
    update = updating(values)
    for first in (float("inf"), 2.0):
        update.step(torch.tensor([first, 0.0, 0.0, 0.0, 0.0]), 0, half_precision())
    assert moved(values).tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]


def test_in_half_precision_a_gradient_that_never_is_finite_is_an_error_in_the_end():
    update = updating(logits())
    with pytest.raises(UsageError, match="choice 'a': "):
        for step in range(20):
            update.step(torch.full((5,), float("nan")), step, half_precision())

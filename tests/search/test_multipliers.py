"""The weights of budgets: none while there is room, and as much as it takes where there is not."""

import pytest
import torch

from nni_gumbel.search.budgets import Multipliers


def optimum(pull, budget=1.0, steps=400):
    """Minimise ``-pull x`` subject to ``x <= budget`` by noise-free steps whose size is that of Adam."""
    x = torch.zeros(1, requires_grad=True)
    multipliers = Multipliers(("g",))
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(steps):
        g = x.sum() / budget - 1
        optimiser.zero_grad()
        (-pull * x.sum() + multipliers.term({"g": g})).backward()
        optimiser.step()
        multipliers.follow({"g": float(x.detach()) / budget - 1}, 1 / steps)
    return float(x.detach()), multipliers


@pytest.mark.parametrize("pull", [0.01, 0.3, 3.0, 30.0])
def test_the_constraint_is_met_at_every_scale_of_the_loss_without_a_weight_to_tune(pull):
    x, multipliers = optimum(pull)
    assert 0.9 < x < 1.1
    assert multipliers.weights["g"] == pytest.approx(pull, rel=0.5)  # that of the solution, by its definition


def test_a_constraint_that_does_not_bind_costs_nothing():
    x, multipliers = optimum(-0.1)
    assert x < 0 and multipliers.weights["g"] == 0
    assert float(multipliers.term({"g": torch.tensor(-2.0)})) == 0


def test_the_gradient_is_the_pressure_that_the_formula_says():
    multipliers = Multipliers(("g",))
    multipliers.follow({"g": 0.5}, 0.1)
    weight = multipliers.weights["g"]
    assert weight == pytest.approx(0.5)
    for value in (-2.0, -0.2, 0.0, 0.7):
        g = torch.tensor(value, requires_grad=True)
        (gradient,) = torch.autograd.grad(multipliers.term({"g": g}), g)
        assert float(gradient) == pytest.approx(max(0.0, weight + value))


def test_a_multiplier_falls_again_and_never_below_zero():
    multipliers = Multipliers(("g",))
    multipliers.follow({"g": 1.0}, 0.01)
    multipliers.follow({"g": -0.5}, 0.01)
    assert multipliers.weights["g"] == pytest.approx(0.05)
    multipliers.follow({"g": -1.0}, 0.02)
    assert multipliers.weights["g"] == 0


def test_a_violation_that_does_not_fall_makes_the_term_stiffer_and_one_that_falls_does_not():
    stuck, falling = Multipliers(("g",)), Multipliers(("g",))
    for step in range(1, 101):
        stuck.follow({"g": 0.5}, 0.01)
        falling.follow({"g": 0.5 / step}, 0.01)
    assert stuck.stiffness["g"] >= 2**15 and falling.stiffness["g"] == 1


def test_constraints_are_independent_of_each_other():
    multipliers = Multipliers(("a", "b"))
    multipliers.follow({"a": 0.5, "b": -0.5}, 0.1)
    assert multipliers.weights == {"a": 0.5, "b": 0.0}


def test_its_state_goes_on_where_it_was():
    first, second = Multipliers(("a", "b")), Multipliers(("a", "b"))
    for step in range(30):
        first.follow({"a": 0.3, "b": -0.1 + 0.02 * step}, 0.02)
    second.load_state_dict(first.state_dict())
    for multipliers in (first, second):
        multipliers.follow({"a": 0.4, "b": 0.6}, 0.03)
    assert first.state_dict() == second.state_dict()

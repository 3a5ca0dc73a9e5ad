"""Estimators against full enumeration: what their table says of value, bias and variance is so."""

import re

import numpy as np
import pytest
import torch
from enumeration import LAWS, LOGITS, SUBSETS, all_outcomes, candidates_in, counts, probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chisquare, logistic

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation import estimators
from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.estimators import ESTIMATORS, estimate
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.subset import KSubset

PAIRS = [(law, name) for law in LAWS for name in ESTIMATORS]
HARD = [(law, name) for law, name in PAIRS if name != "soft"]
FOUR = LOGITS[:4]


def exact_gradient(law, logits, loss):
    """Gradient of the expected loss of a hard draw, by enumeration."""
    theta = logits.clone().requires_grad_()
    losses = torch.stack([loss(law.hard(outcome)) for outcome in all_outcomes(law)])
    return torch.autograd.grad(probabilities(law, theta) @ losses, theta)[0]


def gradients(law, logits, loss, estimator, temperature, count):
    """``(count, n)``, independent estimates."""
    theta = logits.expand(count, -1).clone().requires_grad_()
    draws = estimate(law, theta, temperature, estimator, torch.Generator().manual_seed(0))
    return torch.autograd.grad(loss(draws).sum(), theta)[0]


@pytest.mark.parametrize("law, estimator", HARD, ids=str)
def test_hard_values_follow_the_law_and_are_exactly_0_and_1(law, estimator):
    logits = LOGITS[: law.size].expand(100_000, -1).clone().requires_grad_()
    draws = estimate(law, logits, 0.5, estimator, torch.Generator().manual_seed(2)).detach()
    outcomes = candidates_in(law, draws)
    assert torch.equal(draws, law.hard(outcomes))
    expected = probabilities(law, LOGITS[: law.size]) * len(draws)
    assert law.outcomes == 1 or chisquare(counts(law, outcomes), expected).pvalue > 1e-3


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_straight_through_gumbel_has_the_gradient_of_the_soft_draw_at_the_outcome(law):
    theta = LOGITS[: law.size].clone().requires_grad_()
    slope = torch.randn_like(law.exact(theta))
    draw = estimate(law, theta, 0.7, "straight-through-gumbel", torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    soft = law.soft(theta, law.draw(theta, generator), 0.7, generator)
    assert torch.equal(*(torch.autograd.grad(each, theta, slope)[0] for each in (draw, soft)))


def over_logistic_noise(function):
    return quad(lambda noise: function(noise) * logistic.pdf(noise), -40, 40, points=[0.0], limit=200)[0]


@pytest.mark.parametrize("estimator", ["soft", "straight-through-gumbel"])
def test_of_two_candidates_the_mean_is_that_of_the_integral_over_the_noise(estimator):
    # y = sigmoid((gap + noise) / t), d y / d gap = y (1 - y) / t, and the loss is y^2 + 3 y.
    gap, temperature = 0.8, 0.5
    relaxed = lambda noise: 1 / (1 + np.exp(-(gap + noise) / temperature))  # noqa: E731
    at = (lambda y: y) if estimator == "soft" else (lambda y: float(y > 0.5))
    expected = over_logistic_noise(
        lambda noise: (2 * at(relaxed(noise)) + 3) * relaxed(noise) * (1 - relaxed(noise)) / temperature
    )
    loss = lambda draw: draw[..., 0] ** 2 + 3 * draw[..., 0]  # noqa: E731
    logits = torch.tensor([gap, 0.0], dtype=torch.float64)
    estimates = gradients(Categorical(2), logits, loss, estimator, temperature, 5_000)[:, 0]
    assert abs(estimates.mean() - expected) < 4 * estimates.std() / len(estimates) ** 0.5


def test_soft_is_unbiased_for_the_expected_loss_of_the_relaxed_sample():
    gap, temperature, step = 0.8, 0.5, 1e-3
    loss = lambda y: y**2 + 3 * y  # noqa: E731

    def expected_loss(gap):
        return over_logistic_noise(lambda noise: loss(1 / (1 + np.exp(-(gap + noise) / temperature))))

    slope = (expected_loss(gap + step) - expected_loss(gap - step)) / (2 * step)
    logits = torch.tensor([gap, 0.0], dtype=torch.float64)
    estimates = gradients(
        Categorical(2), logits, lambda draw: loss(draw[..., 0]), "soft", temperature, 100_000
    )[:, 0]
    assert abs(estimates.mean() - slope) < 4 * estimates.std() / len(estimates) ** 0.5


@pytest.mark.parametrize("law, estimator", PAIRS, ids=str)
@given(data=st.data(), log_temperature=st.floats(-3, 3))
@settings(deadline=None, max_examples=12)
def test_values_and_gradients_are_finite(law, estimator, data, log_temperature):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    # The ends of the range as often as its inside.
    entry = st.sampled_from([-50.0, 0.0, 50.0]) | st.floats(-50, 50)
    logits = torch.tensor(
        data.draw(st.lists(entry, min_size=law.size, max_size=law.size)), dtype=dtype, requires_grad=True
    )
    draw = estimate(law, logits, 10**log_temperature, estimator)
    draw.float().square().sum().backward()
    assert torch.isfinite(draw).all() and torch.isfinite(logits.grad).all()
    assert (draw >= 0).all() and (draw <= 1).all()
    assert draw.dtype == logits.grad.dtype == dtype


@pytest.mark.parametrize("law", SUBSETS, ids=str)
@given(data=st.data(), log_temperature=st.floats(-3, 3))
@settings(deadline=None, max_examples=12)
def test_improbable_outcomes_relax_to_finite_values_and_gradients(law, data, log_temperature):
    outcomes = all_outcomes(law)
    entry = st.sampled_from([-50.0, 50.0])
    logits = torch.tensor(data.draw(st.lists(entry, min_size=law.size, max_size=law.size)))
    logits.requires_grad_()
    draw = law.soft(logits, outcomes, 10**log_temperature)
    draw.square().sum().backward()
    assert torch.isfinite(draw).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("law, estimator", PAIRS, ids=str)
def test_without_gradients_the_draw_is_the_same(law, estimator):
    logits = LOGITS[: law.size].clone().requires_grad_()
    recorded = estimate(law, logits, 0.7, estimator, torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = estimate(law, logits, 0.7, estimator, torch.Generator().manual_seed(3))
    assert recorded.requires_grad and not plain.requires_grad
    assert torch.equal(recorded, plain)


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(UsageError, match="estimator: 'rebar' is unknown; give one of soft, straight-through"):
        estimate(Categorical(4), FOUR, 1.0, "rebar")


@pytest.mark.parametrize("law, estimator", PAIRS, ids=str)
def test_a_temperature_that_is_not_positive_is_refused_by_every_estimator(law, estimator):
    with pytest.raises(UsageError, match="temperature: 0 is not positive"):
        estimate(law, LOGITS[: law.size], 0, estimator)


def figures_of_the_table():
    """(law, estimator, temperature, bias, spread), twice a row."""
    laws = {"1 of n": Categorical(4), "k of n": KSubset(4, 2), "any": OpenSubset(4)}
    row = re.compile(
        r"^([a-z-]+) +(1 of n|k of n|any) .* (\d\.\d\d) (\d\.\d\d)  (\d\.\d\d) (\d\.\d\d)  ", re.M
    )
    for name, choice, *figures in row.findall(estimators.__doc__):
        bias, spread, late_bias, late_spread = map(float, figures)
        yield laws[choice], name, 1.0, bias, spread
        yield laws[choice], name, 0.2, late_bias, late_spread


@pytest.mark.parametrize("law, estimator, temperature, bias, spread", [*figures_of_the_table()], ids=str)
def test_the_figures_of_the_table_are_measured(law, estimator, temperature, bias, spread):
    right = torch.tensor([0.3, 0.8, 0.95, 0.5], dtype=torch.float64)

    def loss(draw):
        weights = candidates_in(law, draw)
        return -(weights @ right / weights.sum(-1)).log()

    exact = exact_gradient(law, FOUR, loss)
    estimates = gradients(law, FOUR, loss, estimator, temperature, 40_000)
    error = (spread / len(estimates) ** 0.5) * 4 + 0.005
    assert ((estimates.mean(0) - exact).norm() / exact.norm()).item() == pytest.approx(bias, abs=error)
    assert (estimates.var(0).sum().sqrt() / exact.norm()).item() == pytest.approx(spread, rel=0.05)


def test_the_table_has_a_row_for_every_estimator_and_law():
    rows = {(type(law), name) for law, name, *_ in figures_of_the_table()}
    assert rows == {(type(law), name) for law, name in PAIRS}

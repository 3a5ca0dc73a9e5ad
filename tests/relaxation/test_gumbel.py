"""Relaxed samples follow the logits, have the right limits, and never are NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nni_gumbel.relaxation.gumbel import relaxed_categorical

LOGITS = torch.tensor([1.0, 0.0, -1.0, 0.5])


def draws(temperature: float, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return relaxed_categorical(LOGITS.expand(count, -1), temperature, generator)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_the_largest_entry_follows_the_softmax_of_the_logits(temperature):
    count = 100_000
    observed = torch.bincount(draws(temperature, count).argmax(-1), minlength=len(LOGITS))
    expected = torch.softmax(LOGITS.double(), -1) * count
    # One draw in a thousand would fail by chance; the seed is fixed.
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


def test_a_sample_tends_to_one_hot_as_the_temperature_tends_to_zero():
    assert draws(1e-3, 1000).max(-1).values.median() > 1 - 1e-6


def test_a_sample_tends_to_uniform_as_the_temperature_grows():
    assert torch.allclose(draws(1e3, 100), torch.full((100, 4), 0.25), atol=0.01)


@given(
    logits=st.lists(st.floats(-50, 50), min_size=1, max_size=6),
    log_temperature=st.floats(-3, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(deadline=None, max_examples=200)
def test_samples_lie_on_the_simplex_and_gradients_are_finite(logits, log_temperature, dtype):
    theta = torch.tensor(logits, dtype=dtype, requires_grad=True)
    sample = relaxed_categorical(theta, 10**log_temperature)
    sample[0].backward()
    assert torch.isfinite(sample).all() and torch.isfinite(theta.grad).all()
    assert (sample >= 0).all()
    # bfloat16 keeps 8 bits: each entry is off by up to 2^-9 of itself.
    assert abs(float(sample.detach().float().sum()) - 1) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        relaxed_categorical(LOGITS, temperature)

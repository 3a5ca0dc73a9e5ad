"""Draws in which only some candidates take part."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.gumbel import relaxed_categorical
from nni_gumbel.relaxation.partial import draw_pair, tempered, weights_of_pair


def test_a_tempered_law_is_near_uniform_at_first_and_the_law_itself_in_the_end():
    logits = torch.tensor([2.0, 0.0, -2.0])
    assert torch.softmax(tempered(logits, 100.0), 0).std() < 0.01
    assert torch.equal(tempered(logits, 1.0), logits) and torch.equal(tempered(logits, 0.01), logits)
    with pytest.raises(UsageError, match="temperature: 0"):
        tempered(logits, 0)


@given(st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_a_pair_is_the_relaxed_sample_renormalised_on_two_candidates(n, temperature, seed):
    logits = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)).double()
    same = [torch.Generator().manual_seed(seed) for _ in range(2)]
    pair, noise = draw_pair(logits, temperature, same[0])
    weights = weights_of_pair(logits, temperature, pair, noise)
    assert torch.equal(pair.sum(-1), torch.full((3,), float(min(n, 2))).double())
    assert (weights[pair == 0] == 0).all() and torch.allclose(weights.sum(-1), torch.ones(3).double())
    relaxed = relaxed_categorical(logits, temperature, same[1]) * pair
    if (relaxed > 1e-200).sum() == pair.sum():
        assert torch.allclose(weights, relaxed / relaxed.sum(-1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_a_pair_is_drawn_without_replacement_from_the_tempered_law(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    p = torch.softmax(tempered(logits, temperature), 0)
    among_two = torch.tensor(
        [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    )
    pairs, _ = draw_pair(logits.expand(20_000, 4), temperature)
    assert torch.allclose(pairs.mean(0).float(), among_two, atol=0.02)


def test_candidates_outside_of_a_pair_have_no_gradient():
    logits = torch.zeros(5, requires_grad=True)
    pair, noise = draw_pair(logits, 0.7)
    weights = weights_of_pair(logits, 0.7, pair, noise)
    (weights * torch.arange(5.0)).sum().backward()
    assert (logits.grad[pair == 0] == 0).all() and (logits.grad[pair == 1] != 0).all()

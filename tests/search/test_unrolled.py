"""The unrolled step against a problem that is solved by hand."""

import nni
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import ModelSpace, MutableDropout
from small_searches import Minimal, evaluator, search
from torch import nn

from nni_gumbel.search.dropout import dropout_off
from nni_gumbel.search.unrolled import unrolled_gradient

# L_train = |w - A alpha|^2 / 2,  L_val = |w - B alpha|^2 / 2. One step of gradient descent leads to
# w' = w - xi (w - A alpha), so dL_val(w', alpha) / dalpha = (xi A - B)^T (w' - B alpha).
A = torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.3, -1.0]], dtype=torch.float64)
B = torch.tensor([[0.2, 1.0], [1.5, -0.5], [-1.0, 0.4]], dtype=torch.float64)


def gradient(w, alpha, rates, loss_scale=1.0):
    def logits_gradients(loss):
        return list(torch.autograd.grad(loss, [alpha], retain_graph=True))

    def loss(matrix):
        return lambda: sum(((p - m @ alpha) ** 2).sum() / 2 for p, m in zip(w, matrix))

    train, validation = loss(A.split([2, 1])), loss(B.split([2, 1]))
    weights = list(zip(w, rates))
    (result,) = unrolled_gradient(train, validation, weights, nn.Identity(), logits_gradients, loss_scale)
    return result


def by_hand(w, alpha, xi):
    ahead = w - xi.unsqueeze(1) * (w - A @ alpha.unsqueeze(1))
    return ((xi.unsqueeze(1) * A - B).T @ (ahead - B @ alpha.unsqueeze(1))).squeeze(1)


@given(
    w=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    alpha=st.lists(st.floats(-2, 2), min_size=2, max_size=2),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    loss_scale=st.sampled_from([1.0, 2.0**16]),
)
@settings(deadline=None, max_examples=50)
def test_it_is_the_exact_gradient_where_losses_are_quadratic(w, alpha, rates, loss_scale):
    w = torch.tensor(w, dtype=torch.float64)
    alpha = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    groups = [nn.Parameter(part) for part in w.split([2, 1])]
    xi = torch.tensor([rates[0], rates[0], rates[1]], dtype=torch.float64)
    result = gradient(groups, alpha, rates, loss_scale)
    # A central difference is exact for quadratic functions; what remains is rounding, over 2 eps |u| = 0.02.
    assert torch.allclose(result, by_hand(w.unsqueeze(1), alpha.detach(), xi), atol=1e-9)


def test_without_a_learning_rate_it_is_the_first_order_gradient():
    w, alpha = torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64, requires_grad=True)
    result = gradient([nn.Parameter(part) for part in w.split([2, 1])], alpha, (0.0, 0.0))
    assert torch.allclose(result, -B.T @ (w - B @ alpha.detach()))


def test_the_weights_are_left_exactly_where_they_were():
    groups = [nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(1))]
    before = [p.detach().clone() for p in groups]
    alpha = torch.ones(2, requires_grad=True)
    losses = [lambda: sum((p**2).sum() for p in groups) * alpha.sum()] * 2
    unrolled_gradient(
        *losses, [(p, 0.1) for p in groups], nn.Identity(),
        lambda loss: list(torch.autograd.grad(loss, [alpha], retain_graph=True)),
    )  # fmt: skip
    assert all(torch.equal(p, b) for p, b in zip(groups, before)) and all(p.grad is None for p in groups)


def test_all_passes_draw_the_same_random_numbers():
    w, alpha = torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64, requires_grad=True)
    weight, noises = nn.Parameter(w.clone()), []

    def loss(matrix):
        noises.append(torch.randn(3, dtype=torch.float64))
        return ((weight - matrix @ alpha) * (1 + noises[-1])).square().sum() / 2

    (result,) = unrolled_gradient(
        lambda: loss(A), lambda: loss(B), [(weight, 0.1)], nn.Identity(),
        lambda value: list(torch.autograd.grad(value, [alpha], retain_graph=True)),
    )  # fmt: skip
    assert all(torch.equal(noise, noises[0]) for noise in noises)
    scale = (1 + noises[0]).square()
    ahead = w - 0.1 * scale * (w - A @ alpha.detach())
    expected = (0.1 * scale.unsqueeze(1) * A - B).T @ (scale * (ahead - B @ alpha.detach()))
    assert torch.allclose(result, expected, atol=1e-9)
    # The next step draws others.
    assert not torch.equal(torch.randn(3, dtype=torch.float64), noises[0])


def test_running_statistics_are_left_as_they_were():
    norm, alpha = nn.BatchNorm1d(3), torch.ones(2, requires_grad=True)
    before = {name: value.clone() for name, value in norm.state_dict().items()}

    def loss():
        return norm(torch.randn(4, 3)).square().sum() * alpha.sum()

    unrolled_gradient(
        loss, loss, [(p, 0.1) for p in norm.parameters()], norm,
        lambda value: list(torch.autograd.grad(value, [alpha], retain_graph=True)),
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_an_error_inside_leaves_the_weights_where_they_were():
    w, alpha, calls = nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True), []

    def loss():
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("third pass")
        return (w * alpha).square().sum()

    with pytest.raises(ValueError, match="third pass"):
        unrolled_gradient(
            loss, loss, [(w, 0.1)], nn.Identity(),
            lambda value: list(torch.autograd.grad(value, [alpha], retain_graph=True)),
        )  # fmt: skip
    assert torch.equal(w.detach(), torch.ones(1))


def test_a_gradient_of_the_weights_that_overflows_makes_that_of_the_logits_nan_and_leaves_the_weights():
    w, alpha = nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)
    losses = [lambda: (w * alpha).square().sum()] * 2
    (result,) = unrolled_gradient(
        *losses, [(w, 0.1)], nn.Identity(),
        lambda value: list(torch.autograd.grad(value, [alpha], retain_graph=True)), loss_scale=float("inf"),
    )  # fmt: skip
    assert torch.isnan(result).all() and torch.equal(w.detach(), torch.ones(1))


class Dropped(ModelSpace):
    """A mixed dropout, a plain one, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), MutableDropout(nni.choice("rate", [0.2, 0.8])), nn.Dropout(0.5),
            nn.Linear(4, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Watched(Minimal):
    """Writes down which layers are in training mode in each pass."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def training_step(self, batch, batch_idx):
        self.modes.append("".join("-T"[layer.training] for layer in self.model.layers))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("level", "of_a_step"),
    [
        ("unrolled", ["TTTTT", "TT--T", "TTTTT", "TTTTT", "TTTTT"]),  # train, val, above, below, weight step
        ("bilevel", ["TTTTT", "TTTTT"]),
    ],
)
def test_the_unrolled_weights_are_judged_with_dropout_off_and_all_else_in_training_mode(level, of_a_step):
    module = Watched()
    search(evaluator(module, max_epochs=1), Dropped, level=level, max_params=100)
    assert module.modes[-4 * len(of_a_step) :] == of_a_step * 4


def test_an_error_while_dropout_is_off_leaves_it_on():
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.1).eval(), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="within"), dropout_off(network):
        assert [layer.training for layer in network] == [False, False, True]
        raise ValueError("within")
    assert [layer.training for layer in network] == [True, False, True]

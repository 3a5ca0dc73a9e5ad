"""What a search does in its steps: estimators, presets, warm-up, and what is reported."""

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import Records, evaluator, loader, search
from torch import nn

from nni_gumbel.relaxation.estimators import ESTIMATORS
from nni_gumbel.search.settings import ESTIMATORS as WORDS
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.distribution import Distribution


class Factor(nn.Module):
    """Multiplies by a weight: the smallest thing that can be trained."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return x.sum(1, keepdim=True) * self.weight


class Factors(ModelSpace):
    """Output = sum_k z_k w_k times the input, so every gradient is known in closed form."""

    def __init__(self, values=(0.5, 2.0)):
        super().__init__()
        self.factor = LayerChoice([Factor(value) for value in values], label="factor")

    def forward(self, x):
        return self.factor(x)


class Gradients(pl.Callback):
    """The logits before and after each batch, from which the gradient that SGD of rate 1 used is read."""

    def __init__(self):
        self.logits = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.logits.append(module.distribution.logits["factor"].detach().clone())


@pytest.fixture
def plain_sgd(monkeypatch):
    """Logits that move along their gradient itself."""
    from nni_gumbel.search.module import GumbelSearchModule

    def configure(self):
        return torch.optim.SGD(list(self.distribution.logits.values()), lr=1.0)

    monkeypatch.setattr(GumbelSearchModule, "_logits_optimizer", configure)


def logits_after(trainer=None, **settings):
    """The logits after one noise-free step with ordered data, nothing but the loss in the objective."""
    gradients = Gradients()
    given = evaluator(
        train=loader(shuffle=False), val=loader(seed=1, shuffle=False), max_epochs=1, limit_train_batches=1,
        callbacks=[gradients], **(trainer or {}),
    )  # fmt: skip
    plain = {"preset": "darts", "cost_weight": 0.0, "gradient_clip_val": 0.0}
    search(given, Factors, **{**plain, **settings})
    (after,) = gradients.logits
    return after


def moment(seed):
    """Mean over the first batch of the squared sum of the inputs: the loss is this times (sum_k z_k w_k - 1)^2."""
    return loader(seed=seed).dataset.tensors[1][:8].square().mean()


def gradient_of(function, alpha):
    alpha = alpha.clone().requires_grad_()
    return torch.autograd.grad(function(torch.softmax(alpha, 0)), alpha)[0]


W = torch.tensor([0.5, 2.0])


@pytest.mark.parametrize("trainer", [{}, {"accumulate_grad_batches": 3}])
def test_the_structure_step_follows_the_validation_loss(plain_sgd, trainer):
    expected = -gradient_of(lambda z: moment(seed=1) * (z @ W - 1) ** 2, torch.zeros(2))
    assert torch.allclose(logits_after(trainer), expected, atol=1e-6)


def test_with_noise_it_has_the_derivative_of_the_sample(plain_sgd, monkeypatch):
    drawn, sample = [], Distribution.sample

    def recorded(self, *args):
        sample(self, *args)
        if torch.is_grad_enabled():
            drawn.append(self.joint_sample.weights("factor").detach())

    monkeypatch.setattr(Distribution, "sample", recorded)
    no_entropy_term = {"entropy_weight_start": 0.0, "entropy_weight_end": 0.0}
    after = logits_after(preset="gradual", temperature_start=1.0, temperature_end=0.5, **no_entropy_term)
    (z,) = drawn
    # z = softmax((theta + noise) / tau), so dz/dtheta = (diag(z) - z z^T) / tau.
    expected = (torch.diag(z) - torch.outer(z, z)) / 0.5 @ (moment(seed=1) * 2 * (z @ W - 1) * W)
    assert torch.allclose(after, -expected, atol=1e-5)


# -- warm-up ----------------------------------------------------------------------------------


class Draws(pl.Callback):
    """How the candidates of every weight step were weighted."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(module.distribution.joint_sample.weights("factor").clone())


def test_during_the_warm_up_candidates_are_equally_likely_and_the_logits_rest():
    draws = Draws()
    given = evaluator(train=loader(count=320), max_epochs=2, callbacks=[draws])
    given.trainer.callbacks.append(SetLogits(torch.tensor([5.0, -5.0])))
    search(given, Factors, estimator="straight-through-gumbel", warmup_epochs=1, arc_learning_rate=1e-6)
    first, second = torch.stack(draws.weights).split(40)
    # 40 fair coins: 20 +- 3; of 40 draws at logits +-5 none is expected to take the other candidate.
    assert abs(float(first[:, 0].sum()) - 20) < 12 and float(second[:, 0].sum()) >= 39


class SetLogits(pl.Callback):
    """Decided logits before the search, which a warm-up must not follow."""

    def __init__(self, value):
        self.value = value

    def on_train_start(self, trainer, module):
        module.distribution.logits["factor"].data.copy_(self.value)

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            assert torch.equal(module.distribution.logits["factor"].detach(), self.value)


# -- estimators and presets ---------------------------------------------------------------------


def test_every_estimator_can_be_chosen_by_its_word():
    assert {*ESTIMATORS, "probabilities"} == set(WORDS)


@pytest.mark.parametrize("preset", ["darts", "snas", "gdas"])
def test_a_preset_makes_the_known_method(preset, monkeypatch):
    drawn = []
    for name in ("sample", "use_probabilities"):
        method = getattr(Distribution, name)

        def spy(self, *args, method=method, name=name):
            if torch.is_grad_enabled():
                drawn.append((name, *args))
            return method(self, *args)

        monkeypatch.setattr(Distribution, name, spy)
    draws = Draws()
    search(evaluator(max_epochs=1, callbacks=[draws]), Factors, preset=preset)
    first, last, weights = drawn[0], drawn[-1], torch.stack(draws.weights)
    is_path = bool((weights.max(-1).values == 1).all())
    if preset == "darts":
        assert first == ("use_probabilities",) and not is_path
    if preset == "snas":
        assert first[:3] == ("sample", 1.0, "soft") and last[1] == 0.33 and not is_path
    if preset == "gdas":
        assert first[:3] == ("sample", 10.0, "straight-through-gumbel") and last[1] == 0.1 and is_path


def test_what_is_reported_is_a_function_of_the_logits_alone():
    module = search(evaluator(max_epochs=1), Factors)
    first = module.structure_summary(), module.export(), module.export_probs()
    for _ in range(3):
        module.distribution.sample(1.0)
        assert (module.structure_summary(), module.export(), module.export_probs()) == first


@pytest.mark.parametrize(("every", "count"), [(1, 4), (3, 2), (0, 0)])
def test_probabilities_are_logged_as_often_as_the_settings_say(every, count):
    records = Records()
    search(evaluator(max_epochs=1, logger=records), Factors, log_prob_every_n_step=every)
    assert len(records.seen) == count
    assert all(set(metrics) == {"prob/factor/0", "prob/factor/1"} for metrics in records.seen)


def test_the_defaults_are_those_of_the_main_job():
    changed = dict(SearchSettings())
    assert changed["estimator"] == "soft" and changed["preset"] == "none"

"""The weights are updated as Lightning's automatic optimisation updates them, with all of the Trainer's options."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import QUIET, Minimal, OneCandidate, evaluator, loader, search
from torch import nn

from nni_gumbel.errors import UsageError


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def step_wise(parameters):
    optimizer = sgd(parameters)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def every_second_step(parameters):
    optimizer = adam(parameters)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 2},
    }


class Sam(torch.optim.SGD):
    """Sharpness-aware minimisation (arXiv 2010.01412): the gradient where the loss near the weights is worst."""

    def step(self, closure):
        self.zero_grad()  # of nobody's concern: the closure computes the gradient
        closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        ascents = [p.grad * (0.5 / (norm + 1e-12)) for p in weights]
        with torch.no_grad():
            for p, ascent in zip(weights, ascents):
                p.add_(ascent)
        loss = closure()
        with torch.no_grad():
            for p, ascent in zip(weights, ascents):
                p.sub_(ascent)
        super().step()
        return loss


def sam(parameters):
    return Sam(parameters, lr=0.05)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


def epoch_wise(parameters):
    optimizer = adam(parameters)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.3)]


def trained_plainly(optimizer, trainer):
    """The same network under Lightning alone, on the same batches in the same order."""
    pl.seed_everything(0, verbose=False)
    module = Minimal(optimizer)
    module.set_model(OneCandidate().freeze({"only": 0}))
    pl.Trainer(**{**QUIET, "max_epochs": 3, **trainer}).fit(module, ordered())
    return list(module.parameters())


def searched(optimizer, trainer, **settings):
    given = evaluator(Minimal(optimizer), train=ordered(), **{"max_epochs": 3, **trainer})
    return search(given, OneCandidate, gradient_clip_val=0.0, **settings)


def ordered():
    """Five batches, the last of them smaller."""
    return loader(count=36, shuffle=False)


@pytest.mark.parametrize(
    ("optimizer", "trainer"),
    [
        (sgd, {}),
        (sgd, {"accumulate_grad_batches": 2}),
        (adam, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}),
        (sgd, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
        (adam, {"gradient_clip_algorithm": "value"}),
        (step_wise, {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}),
        (every_second_step, {}),
        (epoch_wise, {"limit_train_batches": 3, "accumulate_grad_batches": 2}),
        (step_wise, {"accumulate_grad_batches": 2, "max_steps": 4}),
        (sam, {}),
        (sam, {"gradient_clip_val": 0.05}),
        (lbfgs, {}),
    ],
)
def test_a_space_with_one_candidate_is_trained_as_lightning_trains_it(optimizer, trainer):
    module = searched(optimizer, trainer)
    for ours, plain in zip(module.training_module.parameters(), trained_plainly(optimizer, trainer)):
        assert torch.allclose(ours, plain, rtol=0, atol=1e-6)


def test_it_is_so_in_a_course_too():
    trainer = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    module = searched(adam, trainer, preset="none")
    for ours, plain in zip(module.training_module.parameters(), trained_plainly(adam, trainer)):
        assert torch.allclose(ours, plain, rtol=0, atol=1e-6)


def test_steps_are_counted_as_lightning_counts_them():
    module = searched(sgd, {"accumulate_grad_batches": 2, "max_epochs": 2})
    assert module.trainer.global_step == 6 and module.trainer.estimated_stepping_batches == 6


def test_the_trainer_has_its_own_options_after_a_search():
    given = evaluator(
        accumulate_grad_batches=2, gradient_clip_val=0.5, gradient_clip_algorithm="value", max_epochs=1
    )
    search(given)
    assert (given.trainer.accumulate_grad_batches, given.trainer.gradient_clip_val) == (2, 0.5)


@pytest.mark.parametrize("trainer", [{}, {"gradient_clip_val": 1e-3}])
def test_the_trainers_limit_on_gradients_wins_over_that_of_the_search(trainer):
    norms = []

    class Norms(Minimal):
        def configure_gradient_clipping(self, optimizer, *args, **kwargs):
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            flat = torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])
            norms.append(float(flat.norm()))

    search(evaluator(Norms(), max_epochs=1, **trainer), OneCandidate, gradient_clip_val=0.1)
    assert norms == pytest.approx([trainer.get("gradient_clip_val", 0.1)] * 4, rel=1e-3)


def test_an_optimiser_that_needs_several_passes_is_refused_where_batches_belong_together():
    with pytest.raises(UsageError, match="accumulate_grad_batches: 2 batches belong together, and Sam asks"):
        searched(sam, {"accumulate_grad_batches": 2})


def test_an_optimizer_step_of_ones_own_gets_a_closure_as_from_lightning():
    class Own(Minimal):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    before, module = OneCandidate(), Own()
    search(evaluator(module, max_epochs=1), OneCandidate)
    assert not torch.equal(before.head.weight, module.model.head.weight)


@pytest.mark.parametrize(
    ("schedule", "callbacks", "words"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, [], "lr_scheduler: ReduceLROnPlateau cannot follow"),
        (None, [pl.callbacks.StochasticWeightAveraging(0.1)], "callbacks: StochasticWeightAveraging would"),
    ],
)
def test_what_cannot_follow_a_search_is_refused_in_one_line(schedule, callbacks, words):
    class Own(Minimal):
        def configure_optimizers(self):
            optimizer = sgd(self.parameters())
            if schedule is None:
                return optimizer
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule(optimizer), "monitor": "val_loss"},
            }

    with pytest.raises(UsageError, match=words):
        search(evaluator(Own(), callbacks=callbacks))


def test_a_module_that_updates_its_weights_by_itself_is_refused():
    manual = Minimal()
    manual.automatic_optimization = False
    with pytest.raises(UsageError, match="automatic_optimization: "):
        search(evaluator(manual))


class ThreeCandidates(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 1) for _ in range(3)], label="layer")

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("estimator", "trained"), [("soft", 3), ("probabilities", 3), ("straight-through-gumbel", 1)]
)
def test_the_weight_step_trains_the_candidates_that_its_sample_contains(estimator, trained):
    space = ThreeCandidates()
    before = copy.deepcopy(space.state_dict())
    one_step = evaluator(max_epochs=1, limit_train_batches=1)
    after = search(one_step, space, estimator=estimator).model.state_dict()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == trained

"""The discretisation gap: what it is, when it is measured, and that measuring it changes nothing."""

import copy
import random
import threading

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import Minimal, Nested, evaluator, loader, numbers, regression, search
from torch import nn

from nni_gumbel.search.gap import discretisation_gap


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.sum(1, keepdim=True) * self.factor


class Known(ModelSpace):
    """The targets are the sum of the inputs: 1 is right, 3 is wrong, and the mixture in between."""

    def __init__(self):
        super().__init__()
        self.scale = LayerChoice([Scale(1.0), Scale(3.0)], label="scale")
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.scale(x) + 0 * self.none


class Gaps(pl.Callback):
    """The epochs at whose end a gap was logged."""

    def __init__(self):
        self.epochs, self.last = [], {}

    def on_train_epoch_end(self, trainer, module):
        logged = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("gap/")}
        if logged and logged != self.last:
            self.epochs.append(trainer.current_epoch)
        self.last = logged


class InTheMiddle(pl.Callback):
    """Calls a function at the end of the first epoch, with the Trainer and the search."""

    def __init__(self, function):
        self.function, self.results = function, []

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            self.results.append(self.function(module))


def measured(function=discretisation_gap, space=Nested, make=evaluator, **kwargs):
    """What a function gives at the end of an epoch of a search."""
    callback = InTheMiddle(function)
    search(make(**{"max_epochs": 1, "callbacks": [callback], **kwargs}), space)
    return callback.results[0]


def test_it_is_the_metric_of_the_mixture_minus_that_of_the_most_probable_network():
    def gap_at_known_logits(module):
        with torch.no_grad():
            module.distribution.logits["scale"].copy_(torch.tensor([0.0, -1.0]))
        return discretisation_gap(module)

    # Of two batches the second is smaller: examples count, not batches.
    gap = measured(gap_at_known_logits, Known, val=loader(count=11, seed=1))
    y = loader(count=11, seed=1).dataset.tensors[1]
    wrong = torch.softmax(torch.tensor([0.0, -1.0]), 0)[1]
    # The mixture computes (1 + 2 P(wrong)) y; the mode is right.
    assert gap == {"gap/val_loss": pytest.approx(float((2 * wrong * y).square().mean()), rel=1e-5)}


def state_of(module):
    metrics = {
        n: copy.deepcopy(m.metric_state) for n, m in module.named_modules() if hasattr(m, "metric_state")
    }
    return {
        "numbers": numbers(module),
        "modes": [part.training for part in module.modules()],
        "gradients": [p.grad is None for p in module.parameters()],
        "metrics": {f"{n}.{k}": v for n, state in metrics.items() for k, v in state.items()},
        "random": [torch.get_rng_state(), torch.tensor(random.getstate()[1]), np.random.get_state()[1]],
        "log": module.training_module.log,
        "stage": module.trainer.state.stage,
    }


def equal(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, (torch.Tensor, np.ndarray)):
        return bool((torch.as_tensor(first) == torch.as_tensor(second)).all())
    return first == second


@pytest.mark.parametrize("make", [evaluator, regression])
def test_measuring_it_leaves_everything_as_it_was(make):
    def before_and_after(module):
        before = state_of(module)
        return discretisation_gap(module), before, state_of(module)

    gap, before, after = measured(before_and_after, make=make)
    assert gap and equal(before, after)


def test_a_search_in_which_it_is_measured_ends_like_one_in_which_it_is_not():
    short = {"max_epochs": 2, "limit_train_batches": 2}
    first, second = (numbers(search(evaluator(**short), gap_every=every)) for every in (0, 1))
    assert equal(first, second)


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


class Shifted(ModelSpace):
    """The candidates differ in their mean alone, which a normalisation by its own statistics takes away."""

    def __init__(self):
        super().__init__()
        self.shift = LayerChoice([Shift(0.0), Shift(100.0)], label="shift")
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.norm(self.shift(x)))


def test_the_statistics_of_the_mode_are_its_own():
    def of_the_mode(module):
        gap = discretisation_gap(module)["gap/val_loss"]
        return float(module.trainer.callback_metrics["val_loss"]) - gap, module.model.head

    loss, head = measured(of_the_mode, Shifted, train=loader(batch_size=32))
    (train, _), (x, y) = loader().dataset.tensors, loader(seed=1).dataset.tensors
    normalised = (x - train.mean(0)) / (train.var(0) + 1e-5).sqrt()
    assert loss == pytest.approx(float((head(normalised) - y).square().mean()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("gap_every", "epochs"), [(0, []), (2, [1, 3, 5])])
def test_it_is_measured_when_the_settings_say(gap_every, epochs):
    gaps = Gaps()
    search(evaluator(max_epochs=6, limit_train_batches=1, callbacks=[gaps]), gap_every=gap_every)
    # A callback is called before the module logs: what was logged in an epoch is seen in the next one.
    last = [5] if gap_every != 0 else []
    assert [epoch - 1 for epoch in gaps.epochs] + last == epochs


def test_nnis_own_evaluator_has_a_gap_for_each_of_its_metrics():
    module = search(regression(max_epochs=1), gap_every=1)
    assert {"gap/val_loss", "gap/val_mse"} <= set(module.trainer.callback_metrics)


def test_a_metric_object_and_metrics_of_the_epochs_end_count_too():
    class Ending(Minimal):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanAbsoluteError()

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.error.update(self.model(batch[0]), batch[1])

        def on_validation_epoch_end(self):
            self.log("val_error", self.error)
            self.log("val_twice", 2 * self.error.compute())

    gap = measured(module=Ending())
    assert set(gap) == {"gap/val_loss", "gap/val_error", "gap/val_twice"}
    assert (
        gap["gap/val_twice"] == pytest.approx(2 * gap["gap/val_error"], rel=1e-4)
        and gap["gap/val_error"] != 0
    )


def test_a_validation_step_may_ask_for_the_trainer():
    class Asking(Minimal):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_epoch", float(self.trainer.current_epoch))

    assert measured(module=Asking())["gap/val_epoch"] == 0


def test_several_validation_loaders_are_all_measured():
    class Several(Minimal):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    assert set(measured(module=Several(), val=[loader(seed=1), loader(seed=2)])) == {"gap/val_loss"}


def test_statistics_are_estimated_on_batches_of_several_training_loaders_as_they_are_trained_on():
    class Several(Minimal):
        shapes = set()

        def training_step(self, batch, batch_idx):
            # The structure step has one batch.
            batches = [batch] if isinstance(batch[0], torch.Tensor) else batch
            self.shapes |= {tuple(x.shape) for x, _ in batches}
            return sum(super(Several, self).training_step(part, batch_idx) for part in batches)

    assert measured(module=Several(), train=[loader(), loader(seed=2)])
    assert Several.shapes == {(8, 4)}


def test_without_a_validation_there_is_no_gap():
    assert measured(limit_val_batches=0) == {}


def test_where_a_module_cannot_be_copied_a_warning_says_so_and_the_search_goes_on(caplog):
    class Locked(Minimal):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    assert measured(module=Locked()) == {}
    assert (
        "the discretisation gap is left out: Locked cannot be copied (TypeError: cannot pickle" in caplog.text
    )

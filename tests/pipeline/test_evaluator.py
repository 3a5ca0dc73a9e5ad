"""Evaluators by name: what a person's function is given, and what is refused in one line."""

import sys
from typing import get_args

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from torch import nn

from nni_gumbel.data import build_data
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.evaluator import RECIPES, build_evaluator
from nni_gumbel.pipeline.settings import ExperimentSettings

ARGUMENTS = {
    "epochs": 3, "batch_size": 8, "learning_rate": 0.1, "weight_decay": 0.0, "seed": 1, "optimizer": "adamw",
    "precision": "32-true", "trainer": {},
}  # fmt: skip
MODULE = """
from nni.nas.evaluator.pytorch import Regression
def good(epochs, learning_rate):
    return Regression(learning_rate=learning_rate, max_epochs=epochs, train_dataloaders=[], val_dataloaders=[])
def anything(**arguments):
    return good(arguments["epochs"], arguments["learning_rate"])
def heeds(precision, trainer):
    assert (precision, trainer) == ("bf16-mixed", {"accumulate_grad_batches": 2})
    return good(1, 1.0)
def greedy(epochs, width):
    return good(epochs, 1.0)
def needs_data(data):
    return good(1, 1.0)
def broken():
    1 / 0
def wrong():
    return 7
number = 7
"""


@pytest.fixture
def evaluators(tmp_path, monkeypatch):
    """A person's module in the working directory; the name of it."""
    (tmp_path / "own_evaluators.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_evaluators"
    sys.modules.pop("own_evaluators", None)


@pytest.mark.parametrize("function", ["good", "anything"])
def test_a_function_gets_the_settings_that_it_has_parameters_for(evaluators, function):
    evaluator = build_evaluator(f"{evaluators}:{function}", data=None, **ARGUMENTS)
    assert isinstance(evaluator, Lightning)
    assert evaluator.trainer.max_epochs == 3 and evaluator.module.hparams.learning_rate == 0.1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("greedy", "asks for 'width'; it can be given epochs, batch_size"),
        ("needs_data", "asks for 'data'"),
        ("broken", "fails: ZeroDivisionError: division by zero"),
        ("wrong", "returns int; return a Lightning of nni.nas.evaluator.pytorch"),
        ("number", "is no function"),
        ("missing", "has no 'missing'"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_in_one_line(evaluators, function, words):
    with pytest.raises(UsageError, match=words) as caught:
        build_evaluator(f"{evaluators}:{function}", data=None, **ARGUMENTS)
    assert str(caught.value).startswith("--evaluator: ") and "\n" not in str(caught.value)


OF_THE_TRAINER = {"precision": "bf16-mixed", "trainer": {"accumulate_grad_batches": 2}}


def test_a_function_is_given_the_settings_of_the_trainer_that_it_has_parameters_for(evaluators):
    build_evaluator(f"{evaluators}:heeds", data=None, **{**ARGUMENTS, **OF_THE_TRAINER})
    for name, value in {**OF_THE_TRAINER, "optimizer": "sgd"}.items():
        with pytest.raises(
            UsageError, match=f"{name}: --evaluator {evaluators}:good has no parameter '{name}'"
        ):
            build_evaluator(f"{evaluators}:good", data=None, **{**ARGUMENTS, name: value})


class Scores(nn.Module):
    """Scores of 10 classes, and what a training needs to be seen from outside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Watching(pl.Callback):
    """Learning rates as the steps use them, and the gradients that they use."""

    def __init__(self):
        self.rates, self.optimizers = [], set()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.optimizers.add(type(optimizer))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.decay = optimizer.param_groups[0]["weight_decay"]


def built_in(epochs=1, **given):
    data = build_data("mnist5k", data_dir="data", batch_size=300, seed=0)
    arguments = {**ARGUMENTS, "epochs": epochs, "batch_size": 300, **given}
    return build_evaluator(None, data=data, **arguments)


def test_the_built_in_evaluator_trains_by_adamw_under_a_one_cycle_learning_rate():
    evaluator, watching = built_in(epochs=2, learning_rate=0.1, weight_decay=0.03), Watching()
    evaluator.trainer.callbacks.append(watching)
    evaluator.evaluate(Scores())
    rates = watching.rates
    assert watching.optimizers == {torch.optim.AdamW} and watching.decay == 0.03
    # 10 batches an epoch. It rises from a 25th, for about a quarter of the steps, and falls to next to nothing.
    top = rates.index(max(rates))
    assert len(rates) == 20 and rates[0] == pytest.approx(0.1 / 25) and 4 <= top <= 6
    assert max(rates) == pytest.approx(0.1, rel=0.02) and rates[-1] < 2e-3
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_the_built_in_evaluator_heeds_precision_and_flags_of_the_trainer():
    flags = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "limit_train_batches": 3}
    trainer = built_in(precision="bf16-mixed", trainer=flags).trainer
    assert {name: getattr(trainer, name) for name in flags} == flags and trainer.precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"acumulate_grad_batches": 2},
            "has no flag 'acumulate_grad_batches'; did you mean accumulate_grad_batches",
        ),
        ({"accelerator": "abacus"}, "trainer: Lightning refuses these flags: .*abacus"),
    ],
)
def test_a_flag_that_the_trainer_does_not_take_is_told_in_one_line(flags, line):
    with pytest.raises(UsageError, match=line) as caught:
        built_in(trainer=flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "kind", "rates"),
    [
        ("sgd", torch.optim.SGD, lambda r: r[0] == 0.1 and r == sorted(r, reverse=True) and r[-1] < 0.01),
        ("adam", torch.optim.Adam, lambda r: set(r) == {0.1}),
    ],
)
def test_a_recipe_is_an_optimiser_and_its_learning_rate_over_the_steps(recipe, kind, rates):
    evaluator, watching = built_in(epochs=2, optimizer=recipe), Watching()
    evaluator.trainer.callbacks.append(watching)
    evaluator.evaluate(Scores())
    assert watching.optimizers == {kind} and len(watching.rates) == 20 and rates(watching.rates)


def test_every_recipe_is_a_word_of_the_setting():
    assert get_args(ExperimentSettings.model_fields["optimizer"].annotation) == tuple(RECIPES)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_run_of_few_steps_has_a_learning_rate_for_each(limit):
    evaluator, watching = built_in(), Watching()
    evaluator.trainer.limit_train_batches = limit
    evaluator.trainer.callbacks.append(watching)
    evaluator.evaluate(Scores())
    assert len(watching.rates) == limit and all(0 < rate <= 0.1 for rate in watching.rates)


def test_the_built_in_evaluator_learns_digits_and_judges_by_the_share_of_right_answers():
    pl.seed_everything(0, verbose=False)
    evaluator, network = built_in(epochs=3, learning_rate=0.01), Scores()
    evaluator.evaluate(network)
    right, count = 0, 0
    with torch.no_grad():
        for x, y in evaluator.datamodule.val_dataloader():
            right, count = right + int((network(x).argmax(1) == y).sum()), count + len(y)
    logged = evaluator.trainer.callback_metrics
    # A linear model of 3,000 digits: chance is 0.1.
    assert float(logged["val_acc"]) == pytest.approx(right / count) and right / count > 0.7
    assert float(logged["val_loss"]) < 1


def test_a_network_tells_the_number_of_classes_that_its_data_does_not():
    data = build_data("mnist5k", data_dir="data", batch_size=8, seed=0)
    data.num_classes = None
    network, state = Scores().train(), torch.get_rng_state()
    evaluator = build_evaluator(None, data=data, network=network, **ARGUMENTS)
    assert evaluator.module.metrics["acc"].num_classes == 10
    assert network.training and torch.equal(torch.get_rng_state(), state)


def test_a_network_whose_outputs_are_no_scores_of_classes_is_refused_in_one_line():
    data = build_data("mnist5k", data_dir="data", batch_size=8, seed=0)
    data.num_classes = None
    with pytest.raises(UsageError, match=r"--space: Identity gives \(1, 28, 28\) an example"):
        build_evaluator(None, data=data, network=nn.Identity(), **ARGUMENTS)


def test_the_built_in_evaluator_needs_to_know_the_number_of_classes():
    with pytest.raises(UsageError, match="--data: its number of classes is not known"):
        build_evaluator(None, data=None, **ARGUMENTS)

"""Evaluators by name: what a person's function is given, and what is refused in one line."""

import sys

import pytest
from nni.nas.evaluator.pytorch import Lightning

from nni_gumbel.data import build_data
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.evaluator import build_evaluator

ARGUMENTS = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "weight_decay": 0.0, "seed": 1}
MODULE = """
from nni.nas.evaluator.pytorch import Regression
def good(epochs, learning_rate):
    return Regression(learning_rate=learning_rate, max_epochs=epochs, train_dataloaders=[], val_dataloaders=[])
def anything(**arguments):
    return good(arguments["epochs"], arguments["learning_rate"])
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
        ("wrong", "returns int; return a Lightning evaluator"),
        ("number", "is no function"),
        ("missing", "has no 'missing'"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_in_one_line(evaluators, function, words):
    with pytest.raises(UsageError, match=words) as caught:
        build_evaluator(f"{evaluators}:{function}", data=None, **ARGUMENTS)
    assert str(caught.value).startswith("--evaluator: ") and "\n" not in str(caught.value)


def test_the_built_in_evaluator_classifies_and_anneals_its_learning_rate():
    data = build_data("mnist5k", data_dir="data", batch_size=8, seed=0)
    evaluator = build_evaluator(None, data=data, **ARGUMENTS)
    assert list(evaluator.module.metrics) == ["acc"] and evaluator.trainer.max_epochs == 3


def test_the_built_in_evaluator_needs_to_know_the_number_of_classes():
    with pytest.raises(UsageError, match="--data: its number of classes is not known"):
        build_evaluator(None, data=None, **ARGUMENTS)

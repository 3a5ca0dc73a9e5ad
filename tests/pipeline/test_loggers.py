"""Lightning's loggers by name: what is logged reaches each of them, without a network, too."""

import csv

import pytest
from test_retraining import DATA, bundle  # noqa: F401  (a fixture)
from test_trial import COMMAND, search, train

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline import loggers
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.retraining import train_again

NETWORK = {"width": 1, "activation": "relu"}


def logging_to(*names):
    return TrialCommand(COMMAND.space, data=COMMAND.data, loggers=names)


def columns(folder):
    (file,) = folder.rglob("metrics.csv")
    with open(file, newline="") as table:
        return set(next(csv.reader(table)))


def test_a_training_logs_to_several_loggers(folder, reported):
    output = train(folder, logging_to("csv", "tensorboard"), NETWORK)
    assert {"val_acc", "val_loss", "test_acc"} <= columns(output / "csv")
    assert list((output / "tensorboard" / "lightning").rglob("events.*"))


def test_a_search_logs_its_structure_and_every_probability(folder, reported):
    search({"log_prob_every_n_step": 1}, folder, logging_to("csv"))
    found = columns(folder / "trials")
    assert {"val_acc", "entropy", "temperature", "prob/width/0", "prob/activation/tanh"} <= found


def test_a_training_without_a_manager_logs_each_seed(bundle, tmp_path):  # noqa: F811
    train_again(bundle, "again", data=DATA, seeds=2, train_epochs=1, loggers=["csv"])
    for seed in range(2):
        assert "val_acc" in columns(tmp_path / "again" / f"seed-{seed}" / "csv")


def test_wandb_logs_offline_where_there_is_no_account(bundle, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    train_again(bundle, "again", data=DATA, seeds=2, train_epochs=1, loggers=["wandb"])
    for seed in range(2):
        (run,) = (tmp_path / "again" / f"seed-{seed}" / "wandb").glob("offline-run-*")
        assert list(run.glob("*.wandb"))


def test_mlflow_logs_into_files_where_there_is_no_server(folder, reported, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = train(folder, logging_to("mlflow"), NETWORK)
    assert list((output / "mlruns").rglob("val_acc"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_told_in_one_line_before_a_trial(name, folder, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=rf"--logger: {name} is not installed; pip install 'nni-gumbel\[{name}\]'"
    ):
        loggers.check_loggers(["csv", name])

"""A network that was found is trained again without NNI's manager, and ends as an export does."""

import json
import signal

import numpy as np
import pytest
import torch
from real_experiments import fill_folder

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline import retraining
from nni_gumbel.pipeline.reporting import Progress
from nni_gumbel.pipeline.retraining import train_again
from nni_gumbel.results.bundle import README, load, write_bundle
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference, network_of, sample_of

SAMPLE = {"layer": 1, "activation": "tanh", "skip": [0]}
DATA = "npz:tiny.npz"


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle of new weights in a folder with its space and its data."""
    fill_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # What an export holds is tested with the export.
    monkeypatch.setattr("nni_gumbel.results.portable.PROGRAMS", ())
    monkeypatch.setattr("nni_gumbel.results.portable.write_programs", lambda *_: {})
    torch.manual_seed(7)  # not that of a training
    reference = SpaceReference.parse("tiny_space:Tiny")
    space = reference.build()
    network, example = network_of(space, sample_of(space, SAMPLE)), Example((torch.zeros(2, 1, 8, 8),))
    write_bundle(tmp_path / "bundle", network, SAMPLE, reference, example, {"settings": {"batch_size": 8}})
    return tmp_path / "bundle"


def test_each_seed_is_a_bundle_and_the_best_is_exported_with_the_mean_over_them(bundle, tmp_path):
    done = train_again(bundle, "again", data=DATA, seeds=2, train_epochs=2)
    assert {path.name for path in (tmp_path / "again").glob("[!.]*")} == {
        "seed-0", "seed-1", "export", "training.json", "checkpoints"
    }  # fmt: skip
    assert done.choice.network.validation_mean > 0.8 and done.choice.network.test_mean > 0.8
    text = (tmp_path / "again" / "export" / README).read_text()
    assert "trained again from new weights" in text and "mean ± std over 2 seeds" in text
    facts = json.loads((tmp_path / "again" / "seed-1" / "bundle" / "bundle.json").read_text())
    assert (
        facts["seed"] == 1 and facts["settings"]["train_epochs"] == 2 and facts["settings"]["batch_size"] == 8
    )
    # What was trained again can be trained again.
    train_again("again/export", "once more", data=DATA, train_epochs=1, from_weights=True)


@pytest.mark.parametrize("from_weights", [True, False])
def test_a_training_begins_with_the_weights_of_the_bundle_where_that_is_asked_for(bundle, from_weights):
    rate = {"learning_rate": 1e-9, "train_epochs": 1}
    done = train_again(bundle, "again", data=DATA, from_weights=from_weights, **rate)
    before, after = (load(path).state_dict() for path in (bundle, done.folders[0]))
    alike = all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert alike is from_weights


class Stops(Progress):
    """Gets a signal in the second epoch of the second training."""

    made = 0

    def __init__(self, *args):
        super().__init__(*args)
        Stops.made += 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (Stops.made, trainer.current_epoch, batch_idx) == (2, 1, 1):
            Stops.made += 1
            signal.raise_signal(signal.SIGINT)


def test_one_that_was_interrupted_goes_on_and_ends_with_the_same_numbers(bundle, tmp_path, monkeypatch):
    asked = {"data": DATA, "seeds": 2, "train_epochs": 3}
    whole = train_again(bundle, "whole", **asked)
    monkeypatch.setattr(retraining, "Progress", Stops)
    with pytest.raises(SystemExit):
        train_again(bundle, "cut", **asked)
    first = (tmp_path / "cut" / "seed-0" / "result.json").stat().st_mtime_ns
    assert (tmp_path / "cut" / "checkpoints" / "seed-1" / "interrupted.ckpt").is_file()
    with pytest.raises(UsageError, match="-o: .*cut' is of another training"):
        train_again(bundle, "cut", **{**asked, "train_epochs": 4})
    done = train_again(bundle, "cut", **asked)
    assert (tmp_path / "cut" / "seed-0" / "result.json").stat().st_mtime_ns == first
    assert done.choice.network.runs == whole.choice.network.runs
    for name in ("seed-0/bundle", "seed-1/bundle", "export"):
        one, other = (load(tmp_path / folder / name).state_dict() for folder in ("whole", "cut"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_metric_that_the_evaluator_does_not_log_is_told_before_the_training(bundle, tmp_path):
    path = bundle / "bundle.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "settings": {**facts["settings"], "metric": "auc"}}))
    with pytest.raises(UsageError, match="metric: the evaluator logs no val_auc, it logs val_acc"):
        train_again(bundle, "again", data=DATA)
    assert not (tmp_path / "again").exists()


def test_what_does_not_fit_is_told_before_the_training(bundle, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="-o: .*taken' exists already"):
        train_again(bundle, "taken", data=DATA)
    with pytest.raises(UsageError, match="train_epochs: "):
        train_again(bundle, "again", data=DATA, train_epochs=0)
    parts = dict(np.load("tiny.npz"))
    parts["y_train"] = np.arange(len(parts["y_train"])) % 3
    np.savez("three.npz", **parts)
    with pytest.raises(UsageError, match="the data has 3 classes"):
        train_again(bundle, "again", data="npz:three.npz")
    assert not (tmp_path / "again").exists()

"""A network that was found is trained again without NNI's manager, and ends as an export does."""

import json

import numpy as np
import pytest
import torch
from real_experiments import fill_folder

from nni_gumbel.errors import UsageError
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
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"seed-0", "seed-1", "export"}
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

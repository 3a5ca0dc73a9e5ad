"""Dropout in a search: networks are judged without it, and its rate is chosen by training networks with each."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import ModelSpace, MutableDropout
from small_searches import Minimal, evaluator, loader, search
from torch import nn

from nni_gumbel.search.steps import dropout_off


class Dropped(ModelSpace):
    """A mixed dropout, a plain one, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), MutableDropout(nni.choice("rate", [0.0, 0.2, 0.4, 0.8])),
            nn.Dropout(0.5), nn.Linear(4, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Watched(Minimal):
    """Writes down which layers are in training mode in each pass on validation data and on training data."""

    def __init__(self):
        super().__init__()
        self.modes = {"val": set(), "train": set()}

    def training_step(self, batch, batch_idx):
        data = "val" if batch[0].dtype == torch.float64 else "train"
        self.modes[data].add("".join("-T"[layer.training] for layer in self.model.layers))
        return super().training_step([part.float() for part in batch], batch_idx)


@pytest.mark.parametrize("preset", ["gradual", "none"])
def test_the_structure_is_judged_with_dropout_off_and_all_else_in_training_mode(preset):
    module, val = Watched(), loader(count=320, seed=1)
    val.dataset.tensors = tuple(part.double() for part in val.dataset.tensors)
    module.validation_step = None
    given = evaluator(module, train=loader(count=320), val=val, max_epochs=3, limit_val_batches=0)
    found = search(given, Dropped, preset=preset, cost_weight=0.0)
    assert module.modes == {"val": {"TT--T"}, "train": {"TTTTT"}}
    if preset == "none":
        judged = found._tournament.population.judged
        assert {network["rate"] for network in judged} == {0.0, 0.2, 0.4, 0.8}


def test_an_error_while_dropout_is_off_leaves_it_on():
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.1).eval(), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="within"), dropout_off(network):
        assert [layer.training for layer in network] == [False, False, True]
        raise ValueError("within")
    assert [layer.training for layer in network] == [True, False, True]

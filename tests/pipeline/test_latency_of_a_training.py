"""A latency that cannot be told is left out, with one warning; a finished training is not lost to it."""

import logging
from functools import partialmethod

import nni
import pytest
import torch
from nni.nas.nn.pytorch import ModelSpace, MutableLinear
from torch import nn

from nni_gumbel.complexity import latency as measuring
from nni_gumbel.pipeline import trial
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference

SAMPLE = {"width": 3}


class Space(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = MutableLinear(4, nni.choice("width", [2, 3]))

    def forward(self, x):
        return self.layer(x)


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class TakesTwo(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.fixture
def latencies_of(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS_A_LAYER", 0.0)
    monkeypatch.setattr(SpaceReference, "build", partialmethod(SpaceReference.build, Space))
    reference = SpaceReference(__name__, "Space")
    output = tmp_path / "trial"
    output.mkdir()
    example = Example((torch.zeros(1, 4),))
    return lambda network: trial.latencies([], network, SAMPLE, reference, example, output)


def test_both_latencies_are_told_where_they_can_be_measured(latencies_of, caplog):
    found = latencies_of(nn.Linear(4, 3))
    assert found["latency_ms"] > 0 and found["table_latency_ms"] > 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Fails(RuntimeError("no device\nand a trace")), "RuntimeError: no device"),
        (Fails(KeyError("absent")), "KeyError: 'absent'"),
        (TakesTwo(), "TypeError: "),
    ],
)
def test_a_network_that_cannot_be_measured_has_no_latency_and_the_table_still_tells_its_own(
    network, reason, latencies_of, caplog
):
    with caplog.at_level(logging.WARNING):
        found = latencies_of(network)
    assert found["latency_ms"] is None and found["table_latency_ms"] > 0
    (record,) = caplog.records
    assert f"latency_ms is not known: {reason}" in record.message
    assert "\n" not in record.message


def test_a_table_that_cannot_be_read_leaves_the_measured_latency(latencies_of, tmp_path, caplog):
    (tmp_path / trial.LATENCY_TABLE).write_text("no table")
    with caplog.at_level(logging.WARNING):
        found = latencies_of(nn.Linear(4, 3))
    assert found["latency_ms"] > 0 and found["table_latency_ms"] is None
    (record,) = caplog.records
    assert "table_latency_ms is not known: latency table: " in record.message

"""Latency is read from a table of layers, each measured once; with the table at hand it is exact."""

import json
import os
import zlib

import nni
import nni.nas.strategy
import pytest
import torch
from argument_spaces import Space
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, Repeat
from priced_networks import assert_at_samples
from torch import nn

from nni_gumbel import relax
from nni_gumbel.complexity import latency
from nni_gumbel.complexity.latency import (
    LatencyTable,
    alone_on_a_core,
    expected_latency,
    measure_latency,
    signature_of,
)
from nni_gumbel.errors import UsageError
from nni_gumbel.testing import random_samples


class HandsOn(nn.Module):
    def forward(self, pair):
        return pair[::-1]


class Small(ModelSpace):
    def __init__(self):
        super().__init__()
        width = nni.choice("width", [2, 4])
        self.first = MutableConv2d(2, width, 1)
        self.second = MutableConv2d(2, nni.choice("other", [2, 4]), 1)
        self.hands_on = HandsOn()
        self.blocks = Repeat(lambda _: MutableConv2d(width, width, 3, padding=1), (0, 2), label="depth")
        self.activation = LayerChoice([nn.ReLU(), nn.GELU(), nn.Identity()], label="activation")
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        y, x = self.hands_on((self.first(x), self.second(x)))
        return self.pool(torch.cat([self.activation(self.blocks(x)), y], 1))


EXAMPLE = (torch.zeros(2, 2, 5, 5),)


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS_A_LAYER", 0.001)


@pytest.fixture
def space(quickly):
    space = Small()
    return space, relax(space)


def summed(network, table):
    """What a network's calls of layers take, each looked up by the layer and its real input."""
    total = []

    def add(module, args, kwargs, output):
        if output is not args[0] and not isinstance(module, HandsOn):
            total.append(table.milliseconds[signature_of(module, args, kwargs)])

    for module in network.modules():
        if not module._modules:
            module.register_forward_hook(add, with_kwargs=True)
    with torch.no_grad():
        network.eval()(*EXAMPLE)
    return pytest.approx(sum(total), rel=1e-12)


def test_the_latency_of_a_network_is_the_sum_over_its_calls(space):
    supernet, distribution = space
    _, measured = expected_latency(supernet, distribution, EXAMPLE, {})
    # Other numbers than the measured ones, so that none is like another.
    table = LatencyTable({s: 1 + zlib.crc32(s.encode()) % 1000 for s in measured.milliseconds})
    expected, _ = expected_latency(supernet, distribution, EXAMPLE, {}, table)
    reference = Small()
    samples = list(random_samples(reference, 12))
    assert_at_samples(expected, distribution, reference, samples, lambda net: summed(net, table))


def test_every_layer_and_every_size_of_it_is_measured_once(space):
    _, table = expected_latency(*space, EXAMPLE, {})
    kinds = [signature.partition("(")[0].rpartition(".")[2] for signature in table.milliseconds]
    # 1x1 and 3x3 convolutions of two widths each, two widths under the activations; before the pool
    # 2 + 2, 2 + 4 or 4 + 2, and 4 + 4 channels.
    assert sorted(kinds) == ["AdaptiveAvgPool2d"] * 3 + ["Conv2d"] * 4 + ["GELU"] * 2 + ["ReLU"] * 2
    assert all(0 < milliseconds < 1000 for milliseconds in table.milliseconds.values())


def test_a_saved_table_gives_the_same_latency_and_is_not_measured_again(space, tmp_path, monkeypatch):
    first, table = expected_latency(*space, EXAMPLE, {})
    table.save(tmp_path / "latency.json")
    loaded = LatencyTable.load(tmp_path / "latency.json")
    assert loaded == table
    monkeypatch.setattr(latency, "_median_ms", lambda calls: [1.0 for _ in calls])
    second, again = expected_latency(*space, EXAMPLE, {}, loaded)
    assert again == table
    outcomes = dict.fromkeys(first.labels, 1)
    assert first.at(outcomes) == second.at(outcomes)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "latency.json").read_bytes()


def test_of_a_table_that_lacks_a_layer_the_rest_stays_as_it_is(space):
    _, table = expected_latency(*space, EXAMPLE, {})
    known = {signature: 1000.0 for signature in list(table.milliseconds)[1:]}
    _, completed = expected_latency(*space, EXAMPLE, {}, LatencyTable(known))
    assert completed.milliseconds.keys() == table.milliseconds.keys()
    assert sum(number == 1000.0 for number in completed.milliseconds.values()) == len(known)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"milliseconds": {"a": "fast"}}), None])
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "latency.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match="latency table: '.*latency.json' cannot be read") as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)


def test_a_layer_that_cannot_run_on_its_own_is_refused_by_its_name(quickly):
    class Stubborn(nn.Module):
        def forward(self, x):
            if not x.is_meta:
                raise ValueError("no")
            return x + 1

    space = Space(lambda: nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="a"), Stubborn()))
    with pytest.raises(UsageError, match="latency: .*Stubborn.* cannot be measured on its own") as caught:
        expected_latency(space, relax(space), (torch.zeros(1, 3),), {})
    assert "\n" not in str(caught.value)


def test_measuring_leaves_threads_cores_modes_and_random_numbers_as_they_were(space):
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()).train()
    before = torch.get_num_threads(), torch.get_rng_state()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    torch.set_num_threads(2)
    try:
        with alone_on_a_core():
            assert torch.get_num_threads() == 1
            assert cores is None or len(os.sched_getaffinity(0)) == 1
        expected_latency(*space, EXAMPLE, {})
        assert measure_latency(network, EXAMPLE) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    assert cores is None or os.sched_getaffinity(0) == cores
    assert torch.equal(torch.get_rng_state(), before[1])
    assert network.training and network[1].training and network[0].num_batches_tracked == 0


def test_a_layer_that_does_a_hundred_times_the_work_takes_longer(quickly):
    small, large = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 200, 7, padding=3)
    assert measure_latency(large, EXAMPLE) > measure_latency(small, EXAMPLE)


def test_a_layer_after_loose_ends_is_measured_at_every_width_that_it_reads(quickly):
    space = NDS(
        ["skip_connect", "dil_conv_3x3"],
        "loose_end",
        num_nodes_per_cell=2,
        width=4,
        num_cells=3,
        dataset="cifar",
    )
    _, table = expected_latency(space, relax(space), (torch.zeros(1, 3, 8, 8),), {})
    read = {s.partition("in_features=")[2].partition(",")[0] for s in table.milliseconds if "Linear(" in s}
    # One node of the last cell, of 16 channels, or both.
    assert read == {"16", "32"}

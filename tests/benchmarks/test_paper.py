"""The table of the paper: its rows, and that it runs and goes on where it was."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

PAPER = Path(__file__).parents[2] / "examples" / "paper"
sys.path.append(str(PAPER))

import run  # noqa: E402


def run_quick(folder, *options):
    command = [sys.executable, PAPER / "run.py", "mnist", "--quick", "--folder", folder, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("name", run.DATA)
def test_every_row_has_a_name_of_its_own(name):
    names = [line.name for line in run.lines_of(run.DATA[name])]
    assert len(set(names)) == len(names)


def test_an_unknown_row_is_told_in_one_line(tmp_path):
    ended = run_quick(tmp_path, "--rows", "fuond")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "--rows: 'fuond' begins no row; did you mean found?"


def test_the_oversized_network_takes_images_of_both_sets():
    for channels, size in ((1, 28), (3, 32)):
        network = run.vgg(channels)
        assert network(torch.zeros(2, channels, size, size)).shape == (2, 10)
        assert 10e6 < sum(parameter.numel() for parameter in network.parameters()) < 11e6


def test_magnitude_pruning_leaves_as_many_weights_as_are_asked_for():
    class Tuned:
        def evaluate(self, network):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter += 0.1

    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    size = sum(parameter.numel() for parameter in network.parameters())
    removed = run.prune_and_tune(network, 60, partial(lambda tuned, batch_size: tuned, Tuned()), 32)
    left = sum(int(torch.count_nonzero(parameter)) for parameter in network.parameters())
    assert removed == size - 60 and left == 60


@pytest.mark.slow
def test_the_table_is_made_and_goes_on_where_it_was(tmp_path):
    options = ["--epochs", "1", "--minutes", "0.1", "--rows", "found ≤ 2", "random ≤ 2"]
    first = run_quick(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    assert "| random ≤ 2,000 | 1 × 1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "front.png").stat().st_size > 0
    again = run_quick(tmp_path, *options)
    assert "trainings.csv: " in first.stderr and ".csv: " not in again.stderr

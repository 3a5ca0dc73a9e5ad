"""The examples are complete and run; the experiments in YAML have nothing that the doctor would mend."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nni_gumbel.pipeline.doctor import config_findings, read_config
from nni_gumbel.pipeline.host import FAIL
from search_spaces.cifar10 import Cifar10Space
from search_spaces.mnist import MnistSpace

ROOT = Path(__file__).parent.parent
EXPERIMENTS = [ROOT / "experiment.yml", *sorted((ROOT / "examples").glob("*.yml"))]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_the_doctor_finds_nothing_to_mend_in_an_experiment(path):
    assert [finding for finding in config_findings(read_config(path)) if finding.level == FAIL] == []


@pytest.mark.parametrize(("space", "shape"), [(MnistSpace, (2, 1, 28, 28)), (Cifar10Space, (2, 3, 32, 32))])
def test_a_space_takes_the_images_it_is_written_for(space, shape):
    assert space()(torch.zeros(shape)).shape == (2, 10)


def test_the_mnist_space_holds_as_many_networks_as_it_says():
    count = 1
    for variable in MnistSpace().simplify().values():
        count *= len(variable.values)
    assert count == 10**4 * 9**4 * 2 * 3


def test_the_mnist_space_is_plain_nni_syntax():
    assert "nni_gumbel" not in (ROOT / "search_spaces" / "mnist.py").read_text()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    example = ROOT / "examples" / "python_api.py"
    run = subprocess.run(
        [sys.executable, example, "--epochs", "1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert "the most probable network:" in run.stdout and "layer1_operation" in run.stdout

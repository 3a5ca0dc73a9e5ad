"""The examples are complete and run; the experiments in YAML have nothing that the doctor would mend."""

import csv
import json
import re
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from real_experiments import free_port

from nni_gumbel.pipeline.doctor import config_findings, read_config
from nni_gumbel.pipeline.machine import FAIL
from nni_gumbel.testing import assert_supernet_equals_frozen
from search_spaces.cifar10 import Cifar10Space
from search_spaces.mnist import MnistSpace
from search_spaces.tiny import TinySpace

ROOT = Path(__file__).parent.parent
EXPERIMENTS = [ROOT / "experiment.yml", *sorted((ROOT / "examples").rglob("*.yml"))]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_doctor_finds_nothing_to_mend_in_an_experiment(path):
    assert [finding for finding in config_findings(read_config(path)) if finding.level == FAIL] == []


@pytest.mark.parametrize(
    ("space", "shape"),
    [(MnistSpace, (2, 1, 28, 28)), (Cifar10Space, (2, 3, 32, 32)), (TinySpace, (2, 1, 28, 28))],
)
def test_a_space_takes_the_images_it_is_written_for(space, shape):
    assert space()(torch.zeros(shape)).shape == (2, 10)


def test_the_mnist_space_holds_as_many_networks_as_it_says():
    count = 1
    for variable in MnistSpace().simplify().values():
        count *= len(variable.values)
    assert count == 10**4 * 9**4 * 2 * 3


def test_the_mnist_space_is_plain_nni_syntax():
    assert "nni_gumbel" not in (ROOT / "search_spaces" / "mnist.py").read_text()


def test_the_loop_of_ones_own_finds_a_network(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_loop.py", "--steps", "40"])
    runpy.run_path(str(ROOT / "examples" / "own_loop.py"), run_name="__main__")
    found = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")
    )
    assert set(found) == {"norm", "first_activation", "second_activation", "shortcut"}


def test_the_tutorials_say_what_differs_from_nnis():
    for name in ("hello_nas", "darts"):
        text = (ROOT / "examples" / f"{name}.py").read_text().split('"""')[1]
        assert f"https://nni.readthedocs.io/en/v3.0/tutorials/{name}.html" in text
        assert all(f"* {change}: " in text for change in ("import", "data", "sizes"))


def test_the_space_of_hello_nas_is_the_tutorials():
    space = runpy.run_path(str(ROOT / "examples" / "hello_nas.py"))["HelloSpace"]()
    candidates = {label: list(variable.values) for label, variable in space.simplify().items()}
    assert candidates == {"conv2": [0, 1], "dropout": [0.25, 0.5, 0.75], "feature": [64, 128, 256]}
    assert space(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.slow
def test_the_supernet_of_the_tiny_space_computes_what_its_networks_compute():
    assert_supernet_equals_frozen(TinySpace(width=16, blocks=2), torch.randn(4, 1, 28, 28), samples=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python_api", ("the most probable network:", "layer1_operation")),
        ("hello_nas", ("'conv2': ", "'dropout': ", "'feature': ")),
        ("darts", ("normal/op_2_0", "reduce/input_5_1", "validation accuracy")),
    ],
)
def test_an_example_runs(name, words, tmp_path):
    example = ROOT / "examples" / f"{name}.py"
    run = subprocess.run(
        [sys.executable, example, "--epochs", "1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert all(word in run.stdout for word in words)


@pytest.mark.slow
def test_a_search_from_python_and_the_training_of_what_it_finds_are_trials_of_nnis_manager(nni_environment):
    words = ("examples/python_portal.py", "--epochs", "1", "--port", free_port())
    run = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL,
        env={**nni_environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    name = re.search(r"Experiment ID: \S*?(\w{8})\b", run.stdout + run.stderr).group(1)
    file = Path(nni_environment["HOME"], "nni-experiments", name, "db", "nni.sqlite")
    with closing(sqlite3.connect(file)) as database:
        ends = database.execute("select trialJobId from TrialJobEvent where event = 'SUCCEEDED'").fetchall()
        told = database.execute("select trialJobId, type, data from MetricData order by rowid").fetchall()
    (search,), (training,) = ends
    reports = {(trial, kind): json.loads(json.loads(data)) for trial, kind, data in told}
    assert reports[search, "PERIODICAL"].keys() == reports[search, "FINAL"].keys() - {"networks"}
    assert "temperature" in reports[search, "PERIODICAL"]
    found = json.loads(reports[search, "FINAL"]["networks"])[0]
    assert all(
        re.search(rf"{label} +{re.escape(str(value))}\n", run.stdout) for label, value in found.items()
    )
    assert f"validation accuracy {reports[training, 'FINAL']:.4f}" in run.stdout


@pytest.mark.slow
def test_the_speed_benchmark_measures_every_mode_on_the_same_spaces(tmp_path):
    benchmark = ROOT / "examples" / "benchmarks" / "speed.py"
    run = subprocess.run(
        [sys.executable, benchmark, "--quick", "--folder", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "cannot train it" not in run.stdout
    assert (tmp_path / "speed.png").stat().st_size > 0
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    networks = {"(a) largest network", "(b) random networks"}
    for space in ("mnist", "chain2"):
        modes = {row["mode"] for row in rows if row["space"] == space}
        assert modes >= networks | {"GumbelSearch", "GumbelDARTS"}
        for mode in modes:
            of_mode = [row for row in rows if row["space"] == space and row["mode"] == mode]
            assert all(float(row["ms"]) > 0 for row in of_mode if row["ms"])
            parts = {"weight", "pair"} if mode in networks else {"weight", "structure", "both", "pair"}
            assert {row["part"] for row in of_mode if row["ms"]} == parts
            assert {row["part"] for row in of_mode if row["megabytes"]} == parts & {"weight", "structure"}

"""The doctor: each mistake is told in one line with its remedy, and nothing is told of what is right."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nni_node
import numpy as np
import pytest
import yaml

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.doctor import config_findings, examine, read_config
from nni_gumbel.pipeline.machine import (
    FAIL,
    OK,
    WARN,
    Gpu,
    command_findings,
    gpu_findings,
    version_findings,
)

REPOSITORY = Path(__file__).parents[2]
SPACE = """
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace

class Tiny(ModelSpace):
    def __init__(self, width: int = 2, other: int = 0):
        super().__init__()
        layers = [torch.nn.Linear(64, width), torch.nn.Linear(64, other or width, bias=False)]
        self.layer = LayerChoice(layers, label="layer")

    def forward(self, x):
        return self.layer(x.flatten(1))

class Pair(Tiny):
    def forward(self, x):
        return super().forward(x), x

class Two(ModelSpace):
    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(3, n_chosen=None, reduction="concat", label="inputs")

class Labels(Tiny):
    def __init__(self):
        super().__init__()
        self.again = LayerChoice([torch.nn.Identity(), torch.nn.Tanh(), torch.nn.ReLU()], label="layer")

class Infinite(Tiny):
    def forward(self, x):
        return super().forward(x) / 0

class Images(ModelSpace):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(1, 1, 3, bias=False), torch.nn.Conv2d(1, 1, 3)]
        self.layer = LayerChoice(layers, label="layer")

    def forward(self, x):
        return self.layer(x)

class Plain(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 4)

def loader():
    ...

def depth(sample):
    return 1 + sample["layer"]

def wrong(sample):
    return "much"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "doctored.py").write_text(SPACE)
    labels = np.arange(40) % 2
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(
        tmp_path / "tiny.npz",
        x_train=images[:30],
        y_train=labels[:30],
        x_test=images[30:],
        y_test=labels[30:],
    )
    return tmp_path


def write(folder, *, command="--space doctored:Tiny --data npz:tiny.npz", class_args=None, **changes):
    config = {
        "searchSpace": {},
        "trialCommand": f"nni-gumbel trial {command}",
        "trialConcurrency": 1,
        "tuner": {"name": "GumbelSearch", "classArgs": class_args or {}},
        "trainingService": {"platform": "local"},
        **changes,
    }
    path = folder / "experiment.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def bad(findings):
    found = [finding for finding in findings if finding.level != OK]
    assert all("\n" not in finding.text for finding in found)
    return found


def check(folder, **changes):
    return bad(config_findings(read_config(write(folder, **changes))))


# The YAML


def test_a_sound_experiment_has_nothing_to_mend(folder):
    assert check(folder, maxTrialNumber=5) == []


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("Tiny width=3", ["gives (3,) an example, the data has 2 classes", "num_classes=2"]),
        ("Pair", ["gives a tuple", "return one tensor"]),
        ("Tiny other=5", ["choice 'layer'", "different shapes"]),
        ("Two", ["choice 'inputs'", "reduction 'concat' of any number"]),
    ],
)
def test_a_space_that_does_not_fit_shows_in_the_rehearsal(folder, space, words):
    (finding,) = check(folder, command=f"--space doctored:{space} --data npz:tiny.npz")
    assert (finding.level, finding.subject) == (FAIL, "search")
    assert all(word in finding.text for word in words), finding.text


def test_two_choices_of_one_label_are_told(folder):
    finding, *_ = check(folder, command="--space doctored:Labels --data npz:tiny.npz")
    assert finding.level == FAIL and "give different choices different labels" in finding.text


def test_outputs_that_are_not_finite_are_told_before_the_search(folder):
    (finding,) = check(folder, command="--space doctored:Infinite --data npz:tiny.npz")
    assert finding.level == FAIL and "numbers that are not finite" in finding.text


def test_a_flag_that_the_trainer_lacks_is_told(folder):
    (finding,) = check(folder, class_args={"trainer": {"accumulate": 2}})
    assert finding.level == FAIL and "trainer: Lightning's Trainer has no flag 'accumulate'" in finding.text


def test_a_metric_that_the_built_in_classification_does_not_log_is_told(folder):
    (finding,) = check(folder, class_args={"metric": "f1"})
    assert finding.level == FAIL and "logs acc and loss, not 'f1'" in finding.text


def test_the_main_job_has_nothing_to_mend():
    assert bad(config_findings(read_config(REPOSITORY / "experiment.yml"))) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["line 1", "is not YAML"]),
        ("- 1", ["holds no names and values"]),
        ("a: \x01", ["is not YAML"]),
    ],
)
def test_a_file_that_is_no_experiment_is_one_line(tmp_path, text, words):
    path = tmp_path / "experiment.yml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert all(word in str(caught.value) for word in [str(path), *words])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.yml: cannot be read .*`nni-gumbel init DIR` writes one"):
        read_config(tmp_path / "nowhere.yml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trialConcurency": 2}, ["trialconcurency"]),
        ({"trialConcurrency": 0}, ["trial_concurrency > 0"]),
        ({"maxTrialNumber": -1}, ["max_trial_number"]),
        ({"trainingService": {"platform": "locl"}}, ["trainingService", "locl", "platform: local"]),
        ({"trainingService": {"platform": "local", "useActveGpu": True}}, ["useactvegpu"]),
        ({"trialGpuNumber": 1}, ["use_active_gpu"]),
        ({"trialCodeDirectory": "elsewhere"}, ["elsewhere", "not a directory"]),
    ],
)
def test_what_nni_refuses_is_one_line(folder, changes, words):
    with pytest.raises(UsageError) as caught:
        read_config(write(folder, **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_can_be_read_after_one_that_nni_refuses(folder):
    with pytest.raises(UsageError):
        read_config(write(folder, trialCodeDirectory="elsewhere"))
    assert read_config(write(folder))["trialCodeDirectory"] == str(folder)


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"tuner": {"name": "TPE"}}, "tuner", ["'TPE'", "GumbelSearch"]),
        ({"class_args": {"temperature_strat": 1}}, "settings", ["temperature_strat", "temperature_start?"]),
        ({"class_args": {"temperature_end": 0}}, "settings", ["temperature_end: 0", "greater than 0"]),
        (
            {"class_args": {"temperature_start": 1, "temperature_end": 2}},
            "settings",
            ["temperature_start: 1"],
        ),
        ({"class_args": {"search_epochs": 0}}, "settings", ["search_epochs: 0", "at least 1"]),
        ({"class_args": {"train_seeds": "three"}}, "settings", ["train_seeds: 'three'", "whole number"]),
        (
            {"searchSpace": {"learning_rat": {"_type": "choice", "_value": [1]}}},
            "settings",
            ["learning_rat", "learning_rate?"],
        ),
        (
            {"searchSpace": {"learning_rate": {"_type": "uniform", "_value": [0, 1]}}},
            "settings",
            ["learning_rate", "'uniform'", "_type: choice"],
        ),
        ({"maxTrialNumber": 4}, "settings", ["maxTrialNumber: 4", "at least 5"]),
        ({"command": "--space doctored:Tinny --data mnist5k"}, "trial command", ["'Tinny'", "Tiny?"]),
        ({"command": "--space nowhere:Tiny --data mnist5k"}, "trial command", ["'nowhere'", "nowhere.py"]),
        ({"command": "--space doctored:Tiny --data minst"}, "trial command", ["'minst'", "mnist"]),
        (
            {"command": "--space doctored:Tiny --evaluator doctored:lodaer"},
            "trial command",
            ["--evaluator", "loader?"],
        ),
        ({"trialCommand": "python train.py"}, "trial command", ["python train.py", "nni-gumbel trial"]),
        ({"command": "--space doctored:Plain --data npz:tiny.npz"}, "search", ["nothing to choose"]),
        ({"command": "--space doctored:loader --data npz:tiny.npz"}, "search", ["ModelSpace"]),
        (
            {"command": "--space doctored:Tiny wdth=3 --data npz:tiny.npz"},
            "search",
            ["wdth", "width: int = 2"],
        ),
        ({"command": "--space doctored:Tiny --data npz:none.npz"}, "search", ["none.npz", "no such file"]),
        (
            {"trainingService": {"platform": "local", "reuseMode": True}},
            "settings",
            ["reuseMode", "remove"],
        ),
    ],
)
def test_a_mistake_in_the_yaml_is_one_line_with_its_remedy(folder, changes, subject, words):
    (finding,) = check(folder, **changes)
    assert (finding.level, finding.subject) == (FAIL, subject)
    assert all(word in finding.text for word in words), finding.text


# Linear(64, 2) with and without bias: 130 and 128 parameters, as many multiply-adds.
@pytest.mark.parametrize(
    ("class_args", "search_space", "words"),
    [
        ({"max_params": 127}, {}, ["max_params: 127", "128"]),
        ({"max_flops": 100}, {}, ["max_flops: 100", "128"]),
        ({}, {"max_params": {"_type": "choice", "_value": [None, 128, 100]}}, ["max_params: 100", "128"]),
        (
            {"max_params": 128},
            {"max_flops": {"_type": "choice", "_value": [130, 10]}},
            ["max_flops: 10", "128"],
        ),
    ],
)
def test_a_budget_that_no_network_can_meet_is_refused_in_every_combination(
    folder, class_args, search_space, words
):
    (finding,) = check(folder, class_args=class_args, searchSpace=search_space)
    assert (finding.level, finding.subject) == (FAIL, "search")
    assert all(word in finding.text for word in words), finding.text


def test_a_budget_that_can_be_met_is_right(folder):
    values = {"_type": "choice", "_value": [None, 128, 130]}
    path = write(folder, class_args={"max_flops": 128}, searchSpace={"max_params": values})
    (finding,) = [found for found in config_findings(read_config(path)) if found.subject == "search"]
    assert finding.level == OK and finding.text.endswith("; every budget can be met")


def test_a_budget_of_multiply_adds_is_checked_before_the_data_is_downloaded(folder):
    command = "--space doctored:Images --data mnist"
    (finding,) = check(folder, command=command, class_args={"max_flops": 1000})
    # 26 x 26 outputs of 9 multiplications, without a bias.
    assert finding.level == FAIL and "max_flops: 1000" in finding.text and "6084" in finding.text
    assert check(folder, command=command, class_args={"max_flops": 6084}) == []


def test_what_only_a_search_can_tell_of_a_budget_is_said(folder):
    path = write(folder, class_args={"max_latency_ms": 1e-9})
    (finding,) = [found for found in config_findings(read_config(path)) if found.subject == "search"]
    assert finding.level == OK and "but for max_latency_ms, which the first search tells" in finding.text


@pytest.mark.parametrize(
    ("cost", "class_args", "what"),
    [
        ("", {"cost": "flops"}, "'flops'"),
        (" --cost doctored:depth", {}, "the function"),
    ],
)
def test_a_cost_without_a_weight_is_a_warning(folder, cost, class_args, what):
    command = f"--space doctored:Tiny --data npz:tiny.npz{cost}"
    (finding,) = check(folder, command=command, class_args=class_args)
    assert (finding.level, finding.subject) == (WARN, "costs")
    assert finding.text.startswith(f"cost: {what} has no effect") and "give one above 0" in finding.text
    assert check(folder, command=command, class_args={**class_args, "cost_weight": 0.3}) == []


def test_a_cost_of_ones_own_is_tried(folder):
    command = "--space doctored:Tiny --data npz:tiny.npz --cost doctored:"
    priced = {"cost_weight": 0.3}
    assert check(folder, command=command + "depth", class_args=priced) == []
    (finding,) = check(folder, command=command + "wrong", class_args=priced)
    assert (finding.level, finding.subject) == (FAIL, "search") and "'much'" in finding.text
    (finding,) = check(folder, command=command + "dpeth", class_args=priced)
    assert (finding.level, finding.subject) == (
        FAIL,
        "trial command",
    ) and "did you mean depth?" in finding.text


def test_an_npz_that_is_cut_off_is_told(folder):
    whole = (folder / "tiny.npz").read_bytes()
    (folder / "tiny.npz").write_bytes(whole[: len(whole) // 2])
    (finding,) = check(folder)
    assert finding.level == FAIL and "tiny.npz" in finding.text and "numpy.savez" in finding.text


def test_more_trials_at_a_time_than_cores_are_a_warning(folder):
    found = check(folder, trialConcurrency=1000)
    assert [(finding.level, finding.subject) for finding in found] == [(WARN, "trialConcurrency")]


def test_an_assessor_is_refused(folder):
    found = check(folder, assessor={"name": "Medianstop"})
    assert [(finding.level, finding.subject) for finding in found] == [(FAIL, "settings")]


# Versions and commands


@pytest.mark.parametrize(
    ("requirement", "version", "words"),
    [
        ("nni==3.0", "3.1", ["3.1", 'pip install "nni==3.0"']),
        ("setuptools<81", "82.0.1", ["82.0.1", 'pip install "setuptools<81"']),
        ("torch<2.15,>=2.0", "1.13.1+cu117", ["1.13.1+cu117"]),
        ("mlxtend>=0.22", None, ["is not installed", 'pip install "mlxtend>=0.22"']),
        ("torch==2.14.1", "2.14.1+cpu", []),
        ("PyYAML", "6.0", []),
    ],
)
def test_a_version_that_does_not_fit_is_told_with_the_command_that_mends_it(
    monkeypatch, requirement, version, words
):
    def installed(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "requires", lambda _: [requirement, 'ruff>=99; extra == "test"'])
    monkeypatch.setattr(metadata, "version", installed)
    (finding,) = version_findings()
    assert finding.level == (FAIL if words else OK)
    assert all(word in finding.text for word in words), finding.text


def test_commands_of_another_environment_are_told(tmp_path, monkeypatch):
    for name in ("nnictl", "nni-gumbel"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(command_findings())
    assert [finding.subject for finding in found] == ["nnictl", "nni-gumbel"]
    assert all(finding.level == FAIL and "another environment" in finding.text for finding in found)


def test_commands_that_are_not_on_the_path_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all(finding.level == FAIL and "export PATH=" in finding.text for finding in command_findings())


# GPUs


def gpus(count, active=()):
    return [Gpu("H100", index in active) for index in range(count)]


def gpu_config(concurrency=1, **service):
    return {"trialConcurrency": concurrency, "trainingService": {"platform": "local", **service}}


def gpu_level(config, found):
    return bad(gpu_findings(config, found))


def test_without_gpus_and_gpu_lines_nothing_is_wrong():
    assert gpu_level(gpu_config(), []) == []


def test_gpus_that_nobody_asked_for_are_a_warning():
    (finding,) = gpu_level(gpu_config(), gpus(1))
    assert finding.level == WARN and "uncomment" in finding.text


def test_the_gpu_lines_of_the_main_job_start_on_a_host_with_one_gpu(tmp_path):
    lines = (REPOSITORY / "experiment.yml").read_text()
    for name in ("trialGpuNumber", "useActiveGpu", "maxTrialNumberPerGpu"):
        lines = lines.replace(f"# {name}:", f"{name}:")
    (tmp_path / "experiment.yml").write_text(lines.replace("trialCodeDirectory: .", ""))
    config = read_config(tmp_path / "experiment.yml")
    assert config["trainingService"]["trialGpuNumber"] == 1
    assert gpu_level(config, gpus(1)) == []


@pytest.mark.parametrize(
    ("config", "found", "words"),
    [
        (gpu_config(trialGpuNumber=1), gpus(0), ["trialGpuNumber: 1", "sees no GPU"]),
        (
            gpu_config(trialGpuNumber=1, useActiveGpu=True),
            gpus(1),
            ["never starts", "maxTrialNumberPerGpu: 2"],
        ),
        (
            gpu_config(trialGpuNumber=3, useActiveGpu=True),
            gpus(2),
            ["never starts", "maxTrialNumberPerGpu: 2"],
        ),
        (
            gpu_config(3, trialGpuNumber=1, maxTrialNumberPerGpu=2, useActiveGpu=True),
            gpus(1),
            ["trialConcurrency: 3", "freezes", "set trialConcurrency: 2"],
        ),
        (
            gpu_config(2, trialGpuNumber=1, useActiveGpu=True, gpuIndices=[0]),
            gpus(2),
            ["set trialConcurrency: 1"],
        ),
        (
            gpu_config(trialGpuNumber=1, useActiveGpu=True, gpuIndices=[2]),
            gpus(2),
            ["gpuIndices: 2", "0 to 1"],
        ),
        (gpu_config(trialGpuNumber=1, useActiveGpu=False), gpus(2, active=[1]), ["useActiveGpu: true"]),
        (gpu_config(2, trialGpuNumber=1, useActiveGpu=False), gpus(2), ["useActiveGpu: true"]),
    ],
)
def test_gpu_lines_that_would_never_start_a_trial_are_told_with_the_remedy(config, found, words):
    (finding,) = gpu_level(config, found)
    assert finding.level == FAIL
    assert all(word in finding.text for word in words), finding.text


SCHEDULE = """
require("common/globals");
global.nni.args = {logLevel: "critical"};
const scheduling = require("common/trial_keeper/task_scheduler/scheduler");
async function started(gpus, share, concurrency) {
    const info = {gpuNumber: gpus, gpus: [...Array(gpus).keys()].map(index => ({index})), processes: []};
    scheduling.UnitTestHelpers.mockGpuInfo(info);
    const scheduler = new scheduling.TaskScheduler();
    await scheduler.init();
    let count = 0;
    for (let trial = 0; trial < concurrency; trial++) {
        const variables = await scheduler.schedule("experiment", "t" + trial, share, {rejectActive: false});
        count += Number(variables !== null);
    }
    return count;
}
(async () => {
    const counts = [];
    for (const [gpus, share, concurrency] of JSON.parse(process.argv[1]))
        counts.push(await started(gpus, share, concurrency));
    console.log(JSON.stringify(counts));
    process.exit(0);
})();
"""


def test_the_doctor_agrees_with_the_scheduler_of_nni():
    # Every case in which all trials that run at a time get their GPUs is right, every other one is not.
    cases = [
        (count, number, slots, concurrency)
        for count in (1, 2, 3, 4)
        for number in (1, 2, 3, 4)
        for slots in (1, 2, 3, 4)
        for concurrency in (1, 2, 3, 5, 8)
    ]
    node = Path(nni_node.__file__).parent
    questions = json.dumps([(count, number / slots, trials) for count, number, slots, trials in cases])
    answer = subprocess.run(
        [node / "node", "-e", SCHEDULE, questions],
        env={**os.environ, "NODE_PATH": str(node)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for case, started in zip(cases, json.loads(answer.stdout)):
        count, number, slots, concurrency = case
        config = gpu_config(concurrency, trialGpuNumber=number, maxTrialNumberPerGpu=slots, useActiveGpu=True)
        assert (gpu_level(config, gpus(count)) == []) == (started == concurrency), case


# All of it


@pytest.mark.slow
def test_a_broken_yaml_does_not_keep_the_doctor_from_the_rest(tmp_path, monkeypatch):
    (tmp_path / "experiment.yml").write_text("a: [1")
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    found = list(examine(tmp_path / "experiment.yml"))
    by_subject = {finding.subject: finding.level for finding in found}
    assert by_subject["YAML"] == FAIL
    assert by_subject["nni"] == by_subject["nnictl"] == OK
    assert "GPUs" in by_subject


@pytest.mark.slow
def test_a_tuner_that_is_not_registered_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    (finding,) = [each for each in examine(None) if each.subject == "tuner"]
    assert finding.level == FAIL and "nni-gumbel register" in finding.text

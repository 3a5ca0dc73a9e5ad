"""The tuner against NNI's real manager: real trials, real kills, a real stop and resume."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from real_experiments import TRIAL_COMMAND, Experiment, free_port, kill_trial, of_stage

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.manager import (
    CLASS_NAME,
    ERROR_FILE,
    Manager,
    ManagerUnreachable,
    is_registered,
    register,
)
from nni_gumbel.pipeline.task import Task


@pytest.fixture
def port():
    return free_port()


@pytest.fixture(scope="module")
def lived_through(nni_environment, user_folder):
    """A whole experiment: a search is killed, and with the first training it is stopped and resumed.

    Three searches and two slots: when a second search ends, the third is still running.
    """
    class_args = {"search_seeds": 3, "train_seeds": 1, "search_epochs": 2, "train_epochs": 2}
    experiment = Experiment.create(nni_environment, user_folder, free_port(), class_args)
    try:
        experiment.wait_until(lambda experiment: of_stage(experiment, "search"), 30)
        killed = of_stage(experiment, "search")[0]
        experiment.wait_until(lambda _: kill_trial(killed.id), 10)
        experiment.wait_until(lambda experiment: of_stage(experiment, "train"), 120)
        before = experiment.manager.trials()
        experiment.stop()
        assert not experiment.error_file.exists()
        experiment.resume()
        experiment.wait_for_status("DONE", 150)
        yield experiment, killed, before
    finally:
        experiment.stop()


@pytest.mark.slow
def test_an_experiment_ends_as_done_with_its_export_last(lived_through):
    experiment, _, _ = lived_through
    trials = experiment.manager.trials()
    (export,) = of_stage(experiment, "export")
    assert export.state == "succeeded"
    assert export.end == max(trial.end for trial in trials)
    assert experiment.manager.experiment()["params"]["maxTrialNumber"] == len(trials)
    assert not experiment.error_file.exists()


@pytest.mark.slow
def test_the_portal_shows_the_parameters_that_each_trial_ran(lived_through):
    experiment, _, _ = lived_through
    wrote = {
        path.parent.name: json.loads(path.read_text())
        for path in experiment.directory.glob("environments/*/trials/*/task.json")
    }
    shown = {trial.id: trial.parameters for trial in experiment.manager.trials()}
    assert len(wrote) >= len(shown) - 1  # the killed one may have died before it wrote
    assert wrote == {trial_id: shown[trial_id] for trial_id in wrote}
    assert all(experiment.manager.trial(trial_id).parameters == shown[trial_id] for trial_id in shown)


@pytest.mark.slow
def test_a_killed_trial_is_tried_once_more(lived_through):
    experiment, killed, _ = lived_through
    task = Task.from_parameters(killed.parameters)
    attempts = [
        (trial.state, trial.parameters["attempt"])
        for trial in of_stage(experiment, "search")
        if Task.from_parameters(trial.parameters).identity == task.identity
    ]
    assert sorted(attempts) == [("failed", 1), ("succeeded", 2)]


@pytest.mark.slow
def test_no_task_is_done_twice_when_an_experiment_is_resumed(lived_through):
    experiment, _, before = lived_through
    after = {trial.id: trial for trial in experiment.manager.trials()}
    ended = [trial for trial in before if trial.state != "pending"]
    assert ended and all(after[trial.id] == trial for trial in ended)
    keys = [trial.result["key"] for trial in after.values() if trial.state == "succeeded"]
    identities = {key.rsplit("-attempt", 1)[0] for key in keys}
    assert len(identities) == len(keys) == len(after) - 1


@pytest.mark.slow
def test_a_free_slot_is_filled_across_the_border_of_two_stages(lived_through):
    _, _, before = lived_through
    running = [trial.parameters["stage"] for trial in before if trial.state == "pending"]
    assert sorted(running) == ["search", "train"]
    (training,) = [trial for trial in before if trial.parameters["stage"] == "train"]
    free_since = max(trial.end for trial in before if trial.state == "succeeded")
    assert training.start - free_since < 5


@pytest.mark.slow
def test_a_stopped_experiment_can_be_viewed(lived_through):
    experiment, _, _ = lived_through
    trials = experiment.manager.trials()
    experiment.stop()
    experiment.view()
    experiment.wait_for_status("VIEWED", 20)
    assert {trial.id for trial in experiment.manager.trials()} == {trial.id for trial in trials}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("Shapes", ["choice 'size'", "different shapes", "make all of them equal"]),
        ("Infinite", ["loss: nan", "is not finite", "lower learning_rate"]),
        ("Tiny width=3", ["--space", "cannot be built with width=3", "its arguments are"]),
    ],
)
def test_what_only_a_trial_can_see_is_told_by_the_trial_and_by_wait(
    nni_environment, user_folder, port, space, words
):
    command = TRIAL_COMMAND.replace("Tiny", space)
    experiment = Experiment.create(
        nni_environment, user_folder, port, {"attempts": 1, "search_epochs": 1}, trialCommand=command
    )
    try:
        program = Path(sys.executable).parent / "nni-gumbel"
        run = subprocess.run(
            [program, "wait", experiment.id],
            env=nni_environment, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        (trial,) = experiment.manager.trials()
        said = (experiment.output_of(trial) / "trial.stderr").read_text()
        (line,) = [line for line in said.splitlines() if line.startswith("nni-gumbel: ")]
        assert all(word in line for word in words), line
        assert "Traceback" not in said
        assert line.removeprefix("nni-gumbel: ") in run.stdout
        assert run.returncode == 2 and "every search failed" in run.stderr
        assert line.removeprefix("nni-gumbel: ") in run.stderr
    finally:
        experiment.stop()


@pytest.mark.slow
def test_a_bug_in_the_tuner_ends_the_experiment_with_its_line(nni_environment, user_folder, port):
    tuner = {"className": "crashing_tuner.CrashingTuner", "codeDirectory": str(user_folder)}
    experiment = Experiment.create(nni_environment, user_folder, port, tuner=tuner)
    try:
        experiment.wait_until(lambda experiment: experiment.error_file.exists(), 10)
        assert experiment.error_file.read_text() == "ZeroDivisionError: division by zero\n"
        experiment.wait_for_status("ERROR", 45)
    finally:
        experiment.stop()


@pytest.mark.slow
def test_an_experiment_whose_searches_all_fail_ends_and_says_why(nni_environment, user_folder, port):
    command = TRIAL_COMMAND.replace("tiny.npz", "missing.npz")
    class_args = {"attempts": 1}
    experiment = Experiment.create(nni_environment, user_folder, port, class_args, trialCommand=command)
    try:
        experiment.wait_until(lambda experiment: experiment.error_file.exists(), 60)
        line = experiment.error_file.read_text()
        assert "every search failed" in line and "attempts: 1" in line
        assert any(trial.id in line for trial in experiment.manager.trials())
    finally:
        experiment.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maxTrialNumber": 4}, ["maxTrialNumber: 4", "at least 5"]),
        ({"assessor": {"name": "Medianstop"}}, ["assessor:", "remove the assessor"]),
        (
            {"trialCommand": TRIAL_COMMAND.replace("Tiny", "Tony")},
            ["--space:", "'Tony'", "did you mean Tiny?"],
        ),
        (
            {"searchSpace": {"batch_siz": {"_type": "choice", "_value": [8]}}},
            ["batch_siz", "did you mean batch_size?"],
        ),
    ],
)
def test_what_is_wrong_in_the_yaml_ends_the_experiment_before_its_first_trial(
    nni_environment, user_folder, port, changes, words
):
    experiment = Experiment.create(nni_environment, user_folder, port, **changes)
    try:
        experiment.wait_until(lambda experiment: experiment.error_file.exists(), 10)
        line = experiment.error_file.read_text()
        assert all(word in line for word in words), line
        assert experiment.manager.trials() == []
    finally:
        experiment.stop()


@pytest.mark.slow
def test_a_wrong_setting_ends_the_tuner_with_one_line_and_a_non_zero_code(tmp_path):
    (tmp_path / ERROR_FILE).write_text("of the run before\n")
    code = "from nni_gumbel.pipeline.tuner import GumbelSearchTuner; GumbelSearchTuner(learning_rat=1)"
    channel = "ws://localhost:1/tuner"  # nobody is there, and nobody is asked
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NNI_LOG_DIRECTORY": str(tmp_path), "NNI_TUNER_COMMAND_CHANNEL": channel},
    )
    assert run.returncode == 1
    line = "learning_rat: there is no such setting; did you mean learning_rate?\n"
    assert (tmp_path / ERROR_FILE).read_text() == line


@pytest.mark.slow
def test_the_tuner_imports_in_time_and_without_torch():
    code = (
        "import sys, time, nni_gumbel.pipeline.tuner; "
        "print(time.process_time(), *{'torch', 'pytorch_lightning', 'torchvision'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = run.stdout.split()
    assert not heavy
    # Its own time, so that whatever else runs on the machine does not count.
    assert float(seconds) < 3


def test_a_manager_that_does_not_answer_is_one_line():
    with pytest.raises(ManagerUnreachable, match="127.0.0.1:1/api/v1/nni does not answer"):
        Manager("http://127.0.0.1:1/api/v1/nni").trials()


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"NNI_TUNER_COMMAND_CHANNEL": "ws://localhost:8080/tuner"}, "http://127.0.0.1:8080/api/v1/nni"),
        ({"NNI_TUNER_COMMAND_CHANNEL": "ws://localhost:80/a/b/tuner"}, "http://127.0.0.1:80/a/b/api/v1/nni"),
        (
            {"NNI_PLATFORM": "local", "NNI_TRIAL_COMMAND_CHANNEL": "http://localhost:8080/env/local-env/Ab3"},
            "http://127.0.0.1:8080/api/v1/nni",
        ),
        (
            {"NNI_PLATFORM": "local", "NNI_TRIAL_COMMAND_CHANNEL": "http://localhost:80/a/env/local-env/Ab3"},
            "http://127.0.0.1:80/a/api/v1/nni",
        ),
    ],
)
def test_the_manager_is_found_from_what_nni_tells_its_processes(monkeypatch, variables, url):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    of_tuner = "NNI_TUNER_COMMAND_CHANNEL" in variables
    manager = Manager.from_tuner_environment() if of_tuner else Manager.from_trial_environment()
    assert manager.url == url


def test_registering_twice_is_once(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    assert not is_registered()
    for _ in range(2):
        register()
        assert is_registered()
    listed = yaml.safe_load((tmp_path / "registered_algorithms.yml").read_text())["tuners"]
    assert [entry["className"] for entry in listed] == [CLASS_NAME]


def test_a_list_of_algorithms_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    (tmp_path / "registered_algorithms.yml").write_text("tuners: [\n")
    with pytest.raises(UsageError, match="NNI's list of algorithms: .*registered_algorithms.yml") as caught:
        register()
    assert "\n" not in str(caught.value)


def test_a_look_at_an_experiment_of_1000_combinations_takes_2_percent_of_a_core(monkeypatch):
    from nni_gumbel.pipeline import tuner as module
    from nni_gumbel.pipeline.plan import Plan
    from nni_gumbel.pipeline.settings import ExperimentSettings

    plan = Plan(ExperimentSettings(), [{"learning_rate": 0.001 * number} for number in range(1, 1001)])
    records = []
    for number, task in enumerate(plan.next_tasks([])):
        found = json.dumps({"layer": f"conv{number}"})
        result = {"default": 0.9, "key": task.key, "parameters": number, "flops": 10, "architecture": found}
        records.append({
            "trialJobId": f"t{number}", "sequenceId": number, "status": "SUCCEEDED", "endTime": 1,
            "hyperParameters": [json.dumps({"parameters": task.parameters()})],
            "finalMetricData": [{"data": json.dumps(json.dumps(result))}],
        })  # fmt: skip
    text = json.dumps(records)

    class Unchanged(Manager):
        def _get(self, path):
            return json.loads(text) if path == "trial-jobs" else {"params": {}}

    tuner = module.GumbelSearchTuner.__new__(module.GumbelSearchTuner)
    tuner._manager, tuner._plan, tuner._on_their_way, tuner._owed = Unchanged(""), plan, {}, []
    tuner._planned_for, tuner._time_was_added = None, False
    assert len(tuner._missing()) == 3000

    def seconds() -> float:
        begun = time.process_time()
        tuner._missing()
        return time.process_time() - begun

    # The shortest of several: the work itself, not the garbage of the tests before or a cache that others use.
    assert min(seconds() for _ in range(10)) < 0.02 * module._LOOK_EVERY

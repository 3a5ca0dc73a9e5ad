"""Following an experiment: what is shown, and how every end of it is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from real_experiments import Experiment as RealExperiment
from real_experiments import command, fill_folder, free_port, new_environment

from nni_gumbel.pipeline.manager import (
    ERROR_FILE,
    Experiment,
    Manager,
    error_line,
)
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task, Trial
from nni_gumbel.pipeline.watch import failed_trial_line, progress_line

NOBODY = Manager("http://127.0.0.1:1/api/v1/nni")


def done(task, number, **result):
    return Trial(f"t{number}", number, "succeeded", task.parameters(), {"key": task.key, **result})


def searched(task, number, default):
    architecture = '{"activation": "relu"}'
    return done(task, number, default=default, architecture=architecture, parameters=10, flops=20)


# What is shown


def test_progress_counts_trials_by_stage_and_tells_the_best_of_the_searches_before_there_is_a_training():
    plan = Plan(ExperimentSettings(search_seeds=2, train_seeds=3), [{}])
    assert progress_line(plan, []) == "searches 0/2, trainings 0, export 0/1"
    first, second = plan.next_tasks([])
    trials = [searched(first, 0, 0.5), Trial("t1", 1, "pending", second.parameters())]
    assert progress_line(plan, trials) == (
        "searches 1/2 (1 running), trainings 0/3+, export 0/1, best validation acc of a search 0.5"
    )


def test_random_networks_are_shown_if_asked_for_and_are_never_the_best():
    plan = Plan(ExperimentSettings(search_seeds=1, train_seeds=1, random_baseline=2), [{}])
    (search,) = plan.next_tasks([])
    trials = [searched(search, 0, 0.5)]
    (training,) = plan.next_tasks(trials)
    trials.append(done(training, 1, default=0.7, parameters=10, flops=20))
    first, _ = plan.next_tasks(trials)
    trials.append(done(first, 2, default=0.9, architecture='{"a": 1}', parameters=10, flops=20))
    assert progress_line(plan, trials) == (
        "searches 1/1, trainings 1/1, random networks 1/2, export 0/1, best validation acc 0.7"
    )


@pytest.mark.parametrize(("mode", "best"), [("maximize", "0.8123"), ("minimize", "0.7")])
def test_the_best_so_far_follows_the_mode_and_is_of_trainings_once_there_are_some(mode, best):
    plan = Plan(ExperimentSettings(optimize_mode=mode, train_seeds=2), [{}])
    (search,) = plan.next_tasks([])
    trials = [searched(search, 0, 0.75)]
    assert progress_line(plan, trials).endswith("best validation acc of a search 0.75")
    for number, (task, value) in enumerate(zip(plan.next_tasks(trials), (0.7, 0.81234)), start=1):
        trials.append(done(task, number, default=value, parameters=10, flops=20))
    assert progress_line(plan, trials).endswith(f"best validation acc {best}")


def test_a_failed_trial_is_counted_and_its_second_attempt_is_planned():
    plan = Plan(ExperimentSettings(), [{}])
    (search,) = plan.next_tasks([])
    line = progress_line(plan, [Trial("t0", 0, "failed", search.parameters())])
    assert line == "searches 0/1, trainings 0, export 0/1, 1 failed"


# What a failed trial says


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("a warning\nnni-gumbel: --data: no such set\n", "nni-gumbel: --data: no such set"),
        ("Traceback:\n  line\nValueError: too small\n\n", "ValueError: too small"),
        (
            "torch.OutOfMemoryError: CUDA out of memory\n[W] teardown\n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("/bin/sh: 1: nni-gumbel: not found\n", "/bin/sh: 1: nni-gumbel: not found"),
        ("\n", None),
    ],
)
def test_the_error_line_of_a_trial_is_its_last_error(stderr, line):
    assert error_line(stderr) == line


def test_a_result_that_is_not_finite_is_named_as_the_reason():
    task = Task("search", 0, 1, ExperimentSettings().search_values())
    trial = Trial("t0", 0, "failed", task.parameters(), {"default": float("nan"), "key": task.key})
    line = failed_trial_line(NOBODY, trial)
    assert line == "trial t0 (stage search, seed 0, attempt 1) failed: its result nan is not a finite number"


def test_a_trial_without_a_word_on_stderr_was_killed():
    assert "killed" in failed_trial_line(NOBODY, Trial("t0", 0, "failed"))


# What an experiment leaves in its log directory


def test_the_line_of_a_tuner_before_a_resume_does_not_count(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / ERROR_FILE).write_text("seed: wrong\n")
    assert Experiment("a", "", tmp_path, 0, started=time.time() - 60).tuners_line() == "seed: wrong"
    assert Experiment("a", "", tmp_path, 0, started=time.time() + 60).tuners_line() is None


# Real experiments


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An NNI of its own, so that the newest experiment is one of these tests."""
    home = tmp_path_factory.mktemp("home")
    fill_folder(home)
    return new_environment(home)


def create(environment, **class_args):
    return RealExperiment.create(environment, Path(environment["HOME"]), free_port(), class_args)


@pytest.mark.slow
def test_waiting_can_be_given_up_and_taken_up_again_until_the_networks_are_shown(environment):
    # Long enough that it goes on while it is given up.
    experiment = create(environment, search_epochs=12, train_epochs=1, train_seeds=1)
    name = experiment.id
    try:
        impatient = command(environment, "wait", "--timeout", "1")
        assert impatient.returncode == 2
        assert impatient.stderr == (
            f"nni-gumbel: experiment {name} has not ended after 1 s and goes on; "
            f"`nni-gumbel wait {name}` follows it again\n"
        )

        interrupted = subprocess.Popen(
            [sys.executable, "-m", "nni_gumbel.cli", "wait", name],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        interrupted.stdout.readline()
        interrupted.send_signal(signal.SIGINT)
        _, told = interrupted.communicate(timeout=20)
        assert interrupted.returncode == 130
        assert told.startswith(f"nni-gumbel: experiment {name} goes on;") and told.count("\n") == 1

        waited = command(environment, "wait")
        assert waited.returncode == 0, waited.stdout + waited.stderr
        assert "network-1 (chosen)" in waited.stdout and "activation=" in waited.stdout
        assert f"gumbel-export/{name}" in waited.stdout and f"nnictl stop {name}" in waited.stdout
        assert "http://127.0.0.1:81" in waited.stdout
        assert not waited.stderr
    finally:
        experiment.stop()
    stopped = command(environment, "wait", name)
    assert stopped.returncode == 2
    assert stopped.stderr == (
        f"nni-gumbel: experiment {name} is stopped; `nni-gumbel resume {name}` goes on with it, `nni-gumbel view "
        f"{name}` shows it; if nobody stopped it, {experiment.directory / 'log' / 'nnimanager.log'} says why\n"
    )


@pytest.mark.slow
def test_a_wrong_setting_is_told_within_seconds(environment):
    experiment = create(environment, temperature_strat=3)
    name = experiment.id
    try:
        begun = time.monotonic()
        waited = command(environment, "wait", name)
        assert waited.returncode == 2 and time.monotonic() - begun < 15
        assert waited.stderr == (
            f"nni-gumbel: experiment {name} failed: temperature_strat: there is no such setting; "
            f"did you mean temperature_start?; `nnictl stop {name}` ends it\n"
        )
    finally:
        experiment.stop()


@pytest.mark.slow
def test_a_manager_that_is_killed_ends_the_waiting(environment):
    name = create(environment, search_epochs=200).id
    waiting = subprocess.Popen(
        [sys.executable, "-m", "nni_gumbel.cli", "wait", name],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    waiting.stdout.readline()
    pid = yaml.safe_load(Path(environment["HOME"], "nni-experiments", ".experiment").read_text())[name]["pid"]
    os.kill(pid, signal.SIGKILL)
    _, told = waiting.communicate(timeout=40)
    assert waiting.returncode == 2
    assert told == (
        f"nni-gumbel: experiment {name} has lost its manager (process {pid}); `nni-gumbel resume {name}` goes on "
        "with it\n"
    )


@pytest.mark.slow
def test_an_id_that_nni_does_not_know_is_one_line(environment):
    waited = command(environment, "wait", "nosuchid")
    assert waited.returncode == 2
    assert waited.stderr.startswith("nni-gumbel: ID: there is no experiment 'nosuchid'")
    assert waited.stderr.count("\n") == 1

"""What becomes of an experiment whose processes are killed, and of a tuner that cannot say its last words."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from real_experiments import TRIAL_COMMAND, Experiment, kill_trial, of_stage


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **variables},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


ENDS = """
    import threading, time
    from nni_gumbel.pipeline import tuner
    threading.Thread(target=tuner._end, args=(ValueError("a bug"),)).start()
    time.sleep(30)
"""


@pytest.mark.parametrize("kind", ["missing", "full", "hanging"])
def test_a_tuner_ends_from_every_thread_even_if_its_error_file_cannot_be_written(tmp_path, kind):
    folder = tmp_path / "log"
    if kind != "missing":
        folder.mkdir()
    if kind == "full":
        (folder / "gumbel-error.log").symlink_to("/dev/full")
    if kind == "hanging":
        os.mkfifo(folder / "gumbel-error.log")  # nobody reads: to open it is to wait
    begun = time.monotonic()
    assert run(ENDS, NNI_LOG_DIRECTORY=str(folder)).returncode != 0
    assert time.monotonic() - begun < 25


def test_a_bug_that_coincides_with_a_busy_manager_is_not_taken_for_a_stop(tmp_path):
    code = """
        import psutil
        from nni_gumbel.pipeline import tuner
        from nni_gumbel.pipeline.manager import ManagerUnreachable

        class Busy:
            def status(self):
                raise ManagerUnreachable("NNI's manager does not answer (ReadTimeout)")

        class Buggy(tuner.GumbelSearchTuner):
            def __init__(self):
                self._manager = Busy()
                self._manager_process = psutil.Process()  # lives

            @tuner._ends_the_experiment
            def look(self):
                return 1 / 0

        Buggy().look()
    """
    assert run(code, NNI_LOG_DIRECTORY=str(tmp_path)).returncode == 1
    assert (tmp_path / "gumbel-error.log").read_text() == "ZeroDivisionError: division by zero\n"


def of_experiment(experiment):
    """The processes of an experiment: its manager, its tuner, its trials."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            variables = process.environ()
        except psutil.Error:
            continue
        if variables.get("NNI_EXP_ID") == experiment.id or experiment.id in words:
            found.append(process)
    return found


@pytest.mark.slow
def test_after_kill_9_of_the_manager_nothing_is_left_and_a_resume_on_the_same_port_ends_with_the_export(
    nni_environment, user_folder
):
    settings = {
        "preset": "gradual",
        "search_seeds": 2,
        "train_seeds": 1,
        "search_epochs": 40,
        "train_epochs": 2,
    }
    experiment = Experiment.create(nni_environment, user_folder, 8230, settings)
    try:
        experiment.wait_until(lambda _: of_stage(experiment, "search"), 60)
        first = of_stage(experiment, "search")[0]
        experiment.wait_until(lambda _: (experiment.output_of(first) / "task.json").exists(), 60)
        processes = of_experiment(experiment)
        manager = next(process for process in processes if "nni_node" in " ".join(process.cmdline()))
        orphans = [process for process in manager.children(recursive=True)]
        assert len(orphans) >= 3  # a shell, the tuner, trials
        manager.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(orphans, timeout=15)  # one may be importing yet
        assert [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
        experiment.resume()
        experiment.wait_for_status("DONE", 240)
        identities = [trial.report.identity for trial in experiment.manager.trials() if trial.report]
        assert len(identities) == len(set(identities)) and "export" in identities
    finally:
        experiment.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "limit", "port"),
    [
        ({"train_seeds": 2}, {"maxTrialNumber": 4}, 8231),
        ({"train_seeds": 30}, {"maxExperimentDuration": "45s"}, 8232),
    ],
)
def test_at_a_limit_the_best_so_far_is_exported(nni_environment, user_folder, settings, limit, port):
    settings = {"preset": "gradual", "search_epochs": 1, "train_epochs": 1, "attempts": 3, **settings}
    experiment = Experiment.create(nni_environment, user_folder, port, settings, **limit)
    try:
        if "maxTrialNumber" in limit:  # a trial that fails leaves one too few for the plan
            experiment.wait_until(lambda _: of_stage(experiment, "search"), 60)
            killed = of_stage(experiment, "search")[0]
            experiment.wait_until(lambda _: kill_trial(killed.id), 20)
        experiment.wait_until(lambda _: of_stage(experiment, "export"), 200)
        experiment.wait_for_status("DONE", 60)
        trials = experiment.manager.trials()
        assert any(trial.report for trial in of_stage(experiment, "export"))
        assert len(trials) == limit.get("maxTrialNumber", len(trials)) < 31
    finally:
        experiment.stop()


@pytest.mark.slow
def test_a_mistake_that_only_a_trial_can_see_is_not_tried_again(nni_environment, user_folder):
    command = TRIAL_COMMAND.replace("Tiny", "Infinite")
    experiment = Experiment.create(nni_environment, user_folder, 8233, {"attempts": 3}, trialCommand=command)
    try:
        experiment.wait_until(lambda experiment: experiment.error_file.exists(), 90)
        assert "every search failed" in experiment.error_file.read_text()
        trials = experiment.manager.trials()
        assert len({trial.task.identity for trial in trials}) == len(trials)  # each task once
        assert all("is not finite" in trial.mistake for trial in trials)
    finally:
        experiment.stop()

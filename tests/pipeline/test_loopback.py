"""Who reaches an experiment: by `nni-gumbel create` this machine alone, by `nnictl create` everybody."""

import socket

import pytest
import requests
import yaml
from real_experiments import SMALL, TRIAL_COMMAND, Experiment, command, free_port

from nni_gumbel.pipeline.loopback import is_open_to_others

# Of this machine, too, but not where a server listens that was told 127.0.0.1.
ANOTHER_ADDRESS = "127.0.0.2"


@pytest.fixture(scope="module")
def closed(nni_environment, user_folder):
    experiment = Experiment.create(nni_environment, user_folder, free_port(), SMALL, program="nni-gumbel")
    yield experiment
    experiment.stop()


def answers(address, port):
    try:
        return requests.get(f"http://{address}:{port}/api/v1/nni/check-status", timeout=10).ok
    except requests.ConnectionError:
        return False


def connects(address, port):
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@pytest.mark.slow
def test_an_experiment_of_nni_gumbel_create_listens_on_this_machine_alone_and_ends_with_an_export(closed):
    assert answers("127.0.0.1", closed.port)
    assert not answers(ANOTHER_ADDRESS, closed.port)
    assert not is_open_to_others(closed.port)
    waited = command(closed.environment, "wait", closed.id, "--timeout", 500)
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert "no login" not in waited.stdout


@pytest.mark.slow
def test_so_does_the_tensorboard_of_its_portal(closed):
    trial = next(trial for trial in closed.manager.trials() if trial.stage == "search")
    buttons = f"http://127.0.0.1:{closed.port}/api/v1/nni/tensorboard"
    task = requests.post(buttons, json={"trials": trial.id}, timeout=30).json()
    try:
        closed.wait_until(lambda _: connects("127.0.0.1", int(task["port"])), 120)
        assert not connects(ANOTHER_ADDRESS, int(task["port"]))
    finally:
        requests.delete(f"{buttons}/{task['id']}", timeout=30)


@pytest.mark.slow
def test_resumed_and_viewed_it_still_does(closed):
    for start in (closed.resume, closed.view):
        closed.stop()
        start()
        assert answers("127.0.0.1", closed.port) and not answers(ANOTHER_ADDRESS, closed.port)


@pytest.mark.slow
def test_an_experiment_of_nnictl_is_open_and_wait_says_so(finished_experiment):
    assert answers(ANOTHER_ADDRESS, finished_experiment.port)
    assert is_open_to_others(finished_experiment.port)
    waited = command(finished_experiment.environment, "wait", finished_experiment.id)
    assert f"whoever reaches port {finished_experiment.port}" in waited.stdout
    assert f"`nni-gumbel resume {finished_experiment.id}`" in waited.stdout


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"trainingService": {"platform": "openpai"}}, "platform: local"),
        ({"trainingService": {"platform": "remote"}}, "machine_list"),
        ({"trialConcurrency": "many"}, "trial_concurrency"),
    ],
)
def test_a_mistake_in_the_yaml_is_told_in_one_line_before_a_manager_starts(tmp_path, capsys, change, line):
    from nni_gumbel.cli import main

    config = {
        "searchSpace": {}, "trialCommand": TRIAL_COMMAND, "trialConcurrency": 2, "tuner": {"name": "GumbelSearch"},
        "trainingService": {"platform": "local"}, **change,
    }  # fmt: skip
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(config))
    assert main(["create", "--config", str(tmp_path / "experiment.yml")]) == 2
    told = capsys.readouterr().err
    assert line in told and len(told.splitlines()) == 1

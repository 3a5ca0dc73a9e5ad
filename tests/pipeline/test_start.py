"""How an experiment is started: from which files, what is told before, and who reaches its portal."""

import socket
from pathlib import Path

import pytest
import requests
import yaml
from real_experiments import SMALL, TRIAL_COMMAND, Experiment, command, fill_folder, free_port

from nni_gumbel.cli import main
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.start import STARTER_FILES, is_open_to_others, write_starter

REPOSITORY = Path(__file__).parents[2]
# Of this machine, too, but not where a server listens that was told 127.0.0.1.
ANOTHER_ADDRESS = "127.0.0.2"
CONFIG = {
    "searchSpace": {}, "trialCommand": TRIAL_COMMAND, "trialConcurrency": 2, "tuner": {"name": "GumbelSearch"},
    "trainingService": {"platform": "local"},
}  # fmt: skip


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
        ({"trainingService": {"platform": "remote"}}, "platform: local"),
        ({"trialConcurrency": "many"}, "trial_concurrency"),
        ({"tuner": {"name": "TPE"}}, "give tuner: {name: GumbelSearch}"),
        (
            {"tuner": {"name": "GumbelSearch", "classArgs": {"learning_rat": 1}}},
            "did you mean learning_rate?",
        ),
        ({"maxTrialNumber": 4}, "maxTrialNumber: 4"),
        ({"assessor": {"name": "Medianstop"}}, "remove the assessor"),
        ({"trialCommand": "nni-gumbel trial --space nowhere:Space"}, "there is no module 'nowhere'"),
    ],
)
def test_a_mistake_in_the_yaml_is_told_in_one_line_before_a_manager_starts(tmp_path, capsys, change, line):
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump({**CONFIG, **change}))
    assert main(["create", "--config", str(tmp_path / "experiment.yml")]) == 2
    told = capsys.readouterr().err
    assert line in told and len(told.splitlines()) == 1


def test_a_tuner_that_is_not_registered_is_told_before_a_manager_starts(tmp_path, monkeypatch, capsys):
    fill_folder(tmp_path)
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    assert main(["create", "--config", str(tmp_path / "experiment.yml")]) == 2
    assert "run `nni-gumbel register`" in capsys.readouterr().err


def test_the_files_of_the_clone_are_written(tmp_path):
    written = write_starter(tmp_path / "new" / "folder")
    assert [str(path.relative_to(tmp_path / "new" / "folder")) for path in written] == list(STARTER_FILES)
    for path, name in zip(written, STARTER_FILES):
        assert path.read_bytes() == (REPOSITORY / name).read_bytes()


def test_the_files_written_are_those_that_the_package_carries():
    declared = (REPOSITORY / "setup.cfg").read_text()
    section = declared.split("[options.data_files]")[1].split("[options")[0]
    assert all(f"    {name}\n" in section for name in STARTER_FILES)


def test_nothing_is_overwritten_and_nothing_is_written_beside_it(tmp_path):
    (tmp_path / "experiment.yml").write_text("mine")
    with pytest.raises(UsageError, match=r"experiment.yml exists and is not overwritten"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yml"]
    assert (tmp_path / "experiment.yml").read_text() == "mine"


def test_a_file_in_the_place_of_the_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"DIR: .*cannot be written"):
        write_starter(tmp_path / "file")

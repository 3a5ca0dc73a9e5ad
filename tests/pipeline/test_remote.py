"""Experiments on other hosts: two SSH servers on this machine, each with a home of its own, stand for them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import nni_node
import pytest
from real_experiments import SMALL, Experiment, command, fill_folder, free_port, of_stage
from ssh_host import Host
from test_trial import COMMAND, before_the_export

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline import launch
from nni_gumbel.pipeline.export import Wish, export_of, run_export
from nni_gumbel.pipeline.hosts import host_findings
from nni_gumbel.pipeline.machine import FAIL, OK
from nni_gumbel.pipeline.manager import Manager, check_params
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.remote import Artifacts, StoreUnreachable, bring
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.start import _SCRIPT, _hosts
from nni_gumbel.results.bundle import check_bundle, load

PLACE = "nni-experiments/EXP/environments/remote-worker1/trials"


def any_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def host(tmp_path):
    found = Host(tmp_path / "host", "localhost", any_port())
    yield found
    found.end()


def service(*hosts, **more):
    return {
        "platform": "remote", "nniManagerIp": "127.0.0.1", "machineList": [each.machine for each in hosts],
        "trialCommand": "nni-gumbel trial --space spaces_of_trials:Widths --data npz:tiny.npz", **more,
    }  # fmt: skip


@pytest.fixture
def elsewhere(folder, host):
    """The records of an experiment whose trainings lie on a host, as the manager's machine has them."""
    manager, task, _ = before_the_export(folder, {"train_seeds": 2})
    manager._params["trainingService"] = service(host)
    trials = [replace(trial, place=f"localhost:~/{PLACE}/{trial.id}") for trial in manager.trials()]
    manager._trials[:] = trials
    (host.home / PLACE).parent.mkdir(parents=True)
    shutil.move(folder / "trials", host.home / PLACE)
    outputs = folder / "EXP" / "environments" / "fetched" / "trials"
    return Records(manager.experiment(), trials, outputs, COMMAND), manager, task


def bundle_of(records, host):
    """The chosen training, and its bundle on the host."""
    (trial,) = records.trainings_of(records.choice.run)
    return trial, host.home / PLACE / trial.id / "bundle"


# What a trial made, on a host


def test_a_bundle_comes_from_the_host_over_sftp(elsewhere, host):
    records, _, _ = elsewhere
    trial, there = bundle_of(records, host)
    assert bring(records, [trial], "bundle") == {}
    here = records.outputs / trial.id / "bundle"
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()
    }
    assert list(load(here).state_dict())


def test_a_damaged_bundle_is_not_taken(elsewhere, host):
    records, _, _ = elsewhere
    trial, there = bundle_of(records, host)
    weights = there / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (line,) = bring(records, [trial], "bundle").values()
    assert f"localhost:~/{PLACE}/{trial.id}/bundle" in line and "model.safetensors is not the file" in line
    assert not (records.outputs / trial.id / "bundle").exists()


@pytest.mark.parametrize(
    "change", [{"space": "os:system"}, {"arguments": {"width": 3}}, {"architecture": {"width": 2}}], ids=str
)
def test_a_bundle_of_something_else_is_not_taken_and_nothing_that_it_names_is_imported(
    elsewhere, host, change
):
    records, _, _ = elsewhere
    trial, there = bundle_of(records, host)
    facts = json.loads((there / "bundle.json").read_text())
    if "architecture" in change:
        (there / "architecture.json").write_text(json.dumps(change.pop("architecture")))
        facts.pop("sha256")
    (there / "bundle.json").write_text(json.dumps({**facts, **change}))
    (line,) = bring(records, [trial], "bundle").values()
    assert "not of the network that trial" in line


def test_a_host_that_is_gone_is_one_line_with_host_and_path(elsewhere, host, monkeypatch):
    records, _, _ = elsewhere
    trial, _ = bundle_of(records, host)
    host.end()
    monkeypatch.setattr(Records, "of", lambda _: records)
    with pytest.raises(UsageError) as caught:
        export_of("EXP")
    line = str(caught.value)
    assert f"localhost:~/{PLACE}/{trial.id}/bundle" in line and f"logging in to localhost:{host.port}" in line
    assert "\n" not in line


def test_of_a_network_whose_best_bundle_is_lost_the_next_best_seed_is_exported_which_is_told(
    elsewhere, host, monkeypatch, folder
):
    records, _, _ = elsewhere
    best, there = bundle_of(records, host)
    shutil.rmtree(there)
    monkeypatch.setattr(Records, "of", lambda _: records)
    monkeypatch.setattr(Records, "in_code_directory", lambda _: nullcontext())
    done = export_of("EXP", folder / "exported")
    (other,) = (run for run in records.choice.network.runs if run.trial_id != best.id)
    assert done.choice.run == other
    line = f"not of the best one, {best.task.seed}: it is in localhost:~/{PLACE}/{best.id}/bundle"
    assert line in (folder / "exported" / "README.md").read_text()
    with pytest.raises(UsageError, match="weights"):
        export_of("EXP", folder / "named", Wish(trial=best.id))


def test_what_all_hosts_see_needs_no_login(elsewhere, host, tmp_path):
    records, manager, _ = elsewhere
    trial, there = bundle_of(records, host)
    shutil.copytree(there.parents[1], tmp_path / "artifacts" / "EXP" / "trials")
    manager._params["tuner"]["classArgs"]["artifacts"] = str(tmp_path / "artifacts")
    host.end()
    assert bring(records, [trial], "bundle") == {}


def test_the_export_trial_leaves_a_note_where_the_weights_are_and_the_managers_machine_exports(
    elsewhere, host, reported, monkeypatch, folder
):
    records, manager, task = elsewhere
    output = folder / "EXP" / "environments" / "remote-worker2" / "trials" / "export"
    output.mkdir(parents=True)
    run_export(task, COMMAND, manager, output)
    assert f"from localhost:~/{PLACE}" in reported["elsewhere"] and not (output / "gumbel-export").exists()
    monkeypatch.setattr(Records, "of", lambda _: records)
    monkeypatch.setattr(Records, "in_code_directory", lambda _: nullcontext())
    done = export_of("EXP", folder / "exported")
    assert check_bundle(done.folders[0]) and not done.warnings


# What a trial on a host does


def test_a_trial_on_a_host_finds_its_manager_in_what_nni_told_the_latest_trial_keeper(tmp_path, monkeypatch):
    environment = tmp_path / "environments" / "remote-worker1"
    for number, (name, port) in enumerate({"trial_keeper": 1, "trial_keeper_1": 8080}.items()):
        (environment / name).mkdir(parents=True)
        file = environment / name / "trial_keeper_config.json"
        file.write_text(
            json.dumps({"managerCommandChannel": f"ws://10.0.0.1:{port}/prefix/platform/remote/1"})
        )
        os.utime(file, (number, number))
    monkeypatch.setenv("NNI_PLATFORM", "remote")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(environment / "trials" / "T1"))
    monkeypatch.setenv("NNI_TRIAL_COMMAND_CHANNEL", "http://127.0.0.1:1/env/remote-worker1/T1")
    assert Manager.from_trial_environment().url == "http://10.0.0.1:8080/prefix/api/v1/nni"


@pytest.mark.parametrize(("platform", "again"), [("local", True), ("remote", False)])
def test_what_is_missing_on_one_host_is_tried_on_another(monkeypatch, tmp_path, platform, again):
    from nni_gumbel.data.sources import read_parts

    monkeypatch.setenv("NNI_PLATFORM", platform)
    with pytest.raises(UsageError) as caught:
        read_parts(f"npz:{tmp_path / 'missing.npz'}", ".")
    assert launch._would_come_again(caught.value) is again


def test_a_store_that_fails_is_tried_again_and_one_that_cannot_be_is_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"sftp://nobody:secret@127.0.0.1:{server.getsockname()[1]}/kept"
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(StoreUnreachable, match="artifacts: 'sftp:.*SSHException") as caught:
            Artifacts.at(url, "EXP")
    assert not launch._would_come_again(caught.value)
    with pytest.raises(UsageError, match="artifacts: 'unknown:") as caught:
        Artifacts.at("unknown://kept", "EXP")
    assert launch._would_come_again(caught.value)


# Who reaches the manager


def test_the_manager_answers_its_hosts_alone_at_the_address_that_is_for_them():
    port = any_port()
    environment = {
        **os.environ, "NODE_OPTIONS": f'--require "{_SCRIPT}"',
        "NNI_GUMBEL_HOSTS": json.dumps({"address": "127.0.0.5", "admitted": ["127.0.0.7"]}),
    }  # fmt: skip
    server = "require('http').createServer((_, answer) => answer.end('manager'))"
    program = f"{server}.listen({port}, () => console.log('up'))"
    node = subprocess.Popen(
        [Path(nni_node.__path__[0], "node"), "-e", program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer(address, source):
        with socket.create_connection((address, port), timeout=10, source_address=(source, 0)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            try:
                return connection.makefile("rb").read()[-7:]
            except ConnectionResetError:
                return b""

    try:
        assert node.stdout.readline() == "up\n"
        assert answer("127.0.0.1", "127.0.0.1") == answer("127.0.0.5", "127.0.0.7") == b"manager"
        assert answer("127.0.0.5", "127.0.0.8") == b""
        with pytest.raises(ConnectionRefusedError):
            answer("127.0.0.6", "127.0.0.7")
    finally:
        node.kill()
        node.wait()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("127.0.0.1", "machineList: host 'nowhere.invalid' has no address"),
        ("192.0.2.1", "nniManagerIp: nothing here can listen at '192.0.2.1'"),  # one of no machine: RFC 5737
    ],
)
def test_a_host_without_an_address_is_told_before_a_manager_starts(address, line):
    machine = {"host": "nowhere.invalid", "port": 22}
    params = {"trainingService": {"platform": "remote", "nniManagerIp": address, "machineList": [machine]}}
    with pytest.raises(UsageError, match=line):
        _hosts(params)


def test_hosts_need_the_address_of_their_manager():
    with pytest.raises(UsageError, match="nniManagerIp: it is missing"):
        check_params({"trainingService": {"platform": "remote"}})


def test_artifacts_are_an_absolute_path_or_a_url():
    with pytest.raises(UsageError, match="artifacts: 'kept' is no absolute path"):
        ExperimentSettings(artifacts="kept")
    for place in ("/kept", "s3://bucket/kept"):
        assert ExperimentSettings(artifacts=place).artifacts == place


# The doctor


@pytest.mark.slow
def test_the_doctor_logs_in_to_each_host_and_names_host_and_path(host, tmp_path):
    gone = {**host.machine, "port": any_port()}
    config = {
        "trialConcurrency": 2, "searchSpace": {},
        "tuner": {"name": "GumbelSearch", "classArgs": {"artifacts": str(tmp_path / "kept")}},
        "trainingService": {
            **service(host), "machineList": [host.machine, gone],
            "trialCommand": "nni-gumbel trial --space spaces_of_trials:Widths --data npz:/nowhere/tiny.npz",
        },
    }  # fmt: skip
    findings = {finding.subject: finding for finding in host_findings(config, any_port())}
    name = f"localhost:{host.port}"
    for subject in ("Python", "nni-gumbel", "GPUs", "disk", "artifacts", "manager"):
        assert findings[f"{name} {subject}"].level == OK, findings
    data = findings[f"{name} --data"]
    assert data.level == FAIL and "there is no /nowhere/tiny.npz" in data.text
    assert findings[f"localhost:{gone['port']}"].text.startswith(f"logging in to localhost:{gone['port']}")
    assert all("\n" not in finding.text for finding in findings.values())


# Whole experiments


@pytest.fixture
def hosts(tmp_path):
    first = Host(tmp_path / "host-1", "127.0.0.1", any_port())
    second = Host(tmp_path / "host-2", "localhost", any_port(), by_key=True)
    yield first, second
    first.end(), second.end()


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    fill_folder(folder)
    return folder


def start(environment, code, hosts, class_args):
    """An experiment on these hosts, by `nni-gumbel create`."""
    platform = {"platform": "remote", "machineList": [each.machine for each in hosts]}
    for _ in range(8):
        experiment = Experiment.create(
            environment, code, free_port(), class_args, program="nni-gumbel", trainingService=platform,
            nniManagerIp="127.0.0.1",
        )  # fmt: skip
        experiment.wait_until(lambda e: e.manager.status()[0] == "ERROR" or e.manager.trials(), 300)
        if experiment.manager.status()[0] != "ERROR":
            return experiment
        experiment.stop()  # a tuner has 10 s to connect, which a busy machine exceeds
    raise AssertionError("the machine is too busy for NNI")


@pytest.mark.slow
def test_an_experiment_on_two_hosts_whose_manager_was_killed_ends_with_an_export_on_its_machine(
    nni_environment, code, hosts
):
    experiment = start(nni_environment, code, hosts, {**SMALL, "random_baseline": 0})
    try:
        experiment.wait_until(lambda e: len([t for t in e.manager.trials() if t.report]) >= 2, 600)
        done = {trial.id for trial in experiment.manager.trials() if trial.report}
        manager = json.loads(Path(nni_environment["HOME"], "nni-experiments", ".experiment").read_text())
        os.kill(manager[experiment.id]["pid"], signal.SIGKILL)
        experiment.resume()
        waited = command(nni_environment, "wait", experiment.id, "--timeout", 900, timeout=1200)
        assert waited.returncode == 0, waited.stdout + waited.stderr
        trials = experiment.manager.trials()
        assert done <= {trial.id for trial in trials if trial.report}
        keys = [trial.result["key"] for trial in trials if trial.state == "succeeded"]
        assert len(keys) == len(set(keys))
        trained = {trial.id for trial in of_stage(experiment, "train") if trial.report}
        on_hosts = [set(host.trials_of(experiment)) for host in hosts]
        assert all(found & trained for found in on_hosts) and not on_hosts[0] & on_hosts[1]
        export = code / "gumbel-export" / experiment.id
        assert f"export   {export}" in waited.stdout
        (trial,) = re.findall(r"trial (\w+)", (export / "README.md").read_text())[:1]
        (there,) = [
            host.trials_of(experiment)[trial] for host in hosts if trial in host.trials_of(experiment)
        ]
        assert (export / "model.safetensors").read_bytes() == (
            there / "bundle" / "model.safetensors"
        ).read_bytes()
        assert (code / "gumbel-report" / experiment.id / "report.html").is_file()
    finally:
        experiment.stop()


@pytest.mark.slow
def test_when_a_host_goes_away_its_task_goes_on_at_another(nni_environment, code, hosts, tmp_path):
    settings = {**SMALL, "train_seeds": 1, "random_baseline": 0, "search_seeds": 2, "search_epochs": 150}
    settings |= {"artifacts": str(tmp_path / "kept"), "attempts": 3}
    experiment = start(nni_environment, code, hosts, settings)
    checkpoints = tmp_path / "kept" / experiment.id / "checkpoints"
    try:
        experiment.wait_until(lambda _: len(list(checkpoints.glob("*/*.ckpt"))) >= 4, 400)
        (lost,) = [
            trial for trial in experiment.manager.trials() if trial.id in hosts[1].trials_of(experiment)
        ]
        hosts[1].end()
        waited = command(nni_environment, "wait", experiment.id, "--timeout", 900, timeout=1200)
        assert waited.returncode == 0, waited.stdout + waited.stderr
        trials = experiment.manager.trials()
        assert [trial.state for trial in trials if trial.id == lost.id] == ["failed"]
        (again,) = [
            trial for trial in trials if trial.task.identity == lost.task.identity and trial.id != lost.id
        ]
        assert "goes on from epoch=" in (hosts[0].trials_of(experiment)[again.id] / "trial.log").read_text()
        keys = [trial.result["key"] for trial in trials if trial.state == "succeeded"]
        assert len(keys) == len(set(keys))
    finally:
        experiment.stop()

"""How a trial begins: it runs what the manager's record of itself says, on its share of the cores."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import loky
import numpy as np
import pytest

from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task

SPACE = """
import os, torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace

class Small(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([torch.nn.Linear(64, 2), torch.nn.Linear(64, 2, bias=False)], label="layer")
        with open("threads", "w") as file:
            file.write(f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}")

    def forward(self, x):
        return self.layer(x.flatten(1))
"""
TASK = Task(
    "train",
    0,
    1,
    ExperimentSettings.from_flat({"train_epochs": 1, "batch_size": 8}).train_values(),
    {"layer": 1},
)


class Record(BaseHTTPRequestHandler):
    """NNI's REST interface with one experiment of one trial, which is handed the parameters of another."""

    sent = []

    def do_GET(self):
        packed = json.dumps({"parameters": TASK.parameters()})
        answers = {
            "/api/v1/nni/trial-jobs/T1": {
                "trialJobId": "T1",
                "status": "RUNNING",
                "hyperParameters": [packed],
            },
            "/env/local-env/T1": {
                "type": "parameter",
                "parameter": json.dumps({"parameter_id": 7, "parameters": {"stage": "export"}}),
            },
            "/api/v1/nni/experiment": {"params": {"trialConcurrency": 2, "tuner": {"classArgs": {}}}},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers[self.path]).encode())

    def do_PUT(self):
        self.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def manager():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Record)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/env/local-env/T1"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_trial_runs_what_the_managers_record_of_itself_says_on_its_share_of_the_cores(manager, tmp_path):
    (tmp_path / "small_space.py").write_text(SPACE)
    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("NNI_", "OMP_", "MKL_"))
    }
    environment |= {
        "NNI_TRIAL_JOB_ID": "T1", "NNI_OUTPUT_DIR": str(tmp_path / "out"), "NNI_TRIAL_COMMAND_CHANNEL": manager
    }  # fmt: skip
    words = ["trial", "--space", "small_space:Small", "--data", "npz:tiny.npz"]
    ran = subprocess.run(
        [sys.executable, "-m", "nni_gumbel.cli", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    metrics = [json.loads(command["metric"]) for command in Record.sent if command["type"] == "metric"]
    assert [metric["type"] for metric in metrics] == ["PERIODICAL", "FINAL"]
    assert json.loads(metrics[1]["value"])["key"] == TASK.key
    assert json.loads((tmp_path / "out" / "task.json").read_text()) == TASK.parameters()
    assert json.loads((tmp_path / "out" / "bundle" / "architecture.json").read_text()) == {"layer": 1}
    share = str(max(1, loky.cpu_count() // 2))
    assert (tmp_path / "threads").read_text().split() == [share, share]


def test_a_trial_that_nni_did_not_start_says_so_in_one_line(monkeypatch, capsys):
    from nni_gumbel.pipeline.launch import main

    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    assert main(["--space", "small_space:Small"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nni-gumbel: nni-gumbel trial: it is started by NNI") and error.count("\n") == 1


@pytest.mark.parametrize("button_first", [False, True])
def test_a_trial_that_runs_again_in_its_folder_finds_its_tensorboard_link(
    tmp_path, monkeypatch, button_first
):
    from nni_gumbel.pipeline.launch import _show_tensorboard_to_the_portal

    monkeypatch.setenv("NNI_PLATFORM", "local")
    output = tmp_path / "environments" / "local-env" / "trials" / "T1"
    output.mkdir(parents=True)
    seen = tmp_path / "trials" / "T1" / "output" / "tensorboard"
    if button_first:
        seen.mkdir(parents=True)
    for _ in range(2):
        _show_tensorboard_to_the_portal(output)
        (output / "tensorboard" / "events").touch()
    assert (seen / "events").exists()


@pytest.mark.parametrize("own", [{}, {"OMP_NUM_THREADS": "1"}, {"MKL_NUM_THREADS": "1"}], ids=str)
def test_a_number_of_threads_that_a_person_has_set_stays_and_speaks_for_both_variables(monkeypatch, own):
    from nni_gumbel.pipeline.launch import _use_share_of_cores

    class Alone:
        def experiment(self):
            return {"params": {"trialConcurrency": 1}}

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, own.get(name, ""))
    _use_share_of_cores(Alone())
    expected = "1" if own else str(loky.cpu_count())
    assert [os.environ[name] for name in names] == [expected] * 2

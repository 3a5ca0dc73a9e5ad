"""Real experiments of NNI for the tests: a home of their own, a tiny space, and what can be done to them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

from nni_gumbel.pipeline.manager import ERROR_FILE, Manager, ManagerUnreachable

SPACE = """
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace

class Tiny(ModelSpace):
    def __init__(self):
        super().__init__()
        print("threads:", torch.get_num_threads())
        self.layer = LayerChoice([torch.nn.Linear(64, 8), torch.nn.Linear(64, 8, bias=False)], label="layer")
        self.activation = LayerChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, label="activation")
        self.skip = InputChoice(2, n_chosen=1, label="skip")
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        first = self.layer(x.flatten(1))
        return self.head(self.skip([self.activation(first), first + self.activation(first)]))

class Shapes(ModelSpace):
    def __init__(self):
        super().__init__()
        self.size = LayerChoice([torch.nn.Linear(64, 2), torch.nn.Linear(64, 3)], label="size")

    def forward(self, x):
        return self.size(x.flatten(1))

class Infinite(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([torch.nn.Linear(64, 2), torch.nn.Linear(64, 2)], label="layer")

    def forward(self, x):
        # The rehearsal, in eval mode, sees nothing of it.
        return self.layer(x.flatten(1)) * (float("nan") if self.training else 1.0)
"""
CRASHING_TUNER = """
from nni_gumbel.pipeline.tuner import GumbelSearchTuner

class CrashingTuner(GumbelSearchTuner):
    def _missing(self):
        return 1 / 0
"""
# Two searches, and two trainings and a random network for each found: enough for every stage, a choice and a spread.
SMALL = {
    "search_seeds": 2,
    "train_seeds": 2,
    "random_baseline": 1,
    "search_epochs": 2,
    "warmup_epochs": 0,
    "train_epochs": 2,
}
TRIAL_COMMAND = "nni-gumbel trial --space tiny_space:Tiny --data npz:tiny.npz"


@dataclass
class Experiment:
    """An experiment of NNI in a home of its own, started by `nnictl` or `nni-gumbel`."""

    id: str
    environment: dict[str, str]
    port: int
    program: str = "nnictl"

    @classmethod
    def create(cls, environment, folder, port, class_args=None, program="nnictl", **changes):
        config = {
            "searchSpace": {},
            "trialCommand": TRIAL_COMMAND,
            "trialCodeDirectory": str(folder),
            "trialConcurrency": 2,
            "tuner": {"name": "GumbelSearch", "classArgs": class_args or {}},
            "trainingService": {"platform": "local"},
            **changes,
        }
        path = folder / f"experiment-{port}.yml"
        path.write_text(yaml.safe_dump(config))
        output = nnictl(environment, "create", "--config", path, "--port", port, program=program)
        found = re.search(r"Experiment ID: \S*?(\w{8})\b", output)
        assert found, output
        return cls(found.group(1), environment, port, program)

    def stop(self):
        nnictl(self.environment, "stop", self.id)

    def resume(self):
        nnictl(self.environment, "resume", self.id, "--port", self.port, program=self.program)

    def view(self):
        nnictl(self.environment, "view", self.id, "--port", self.port, program=self.program)

    @property
    def manager(self):
        return Manager(f"http://127.0.0.1:{self.port}/api/v1/nni")

    @property
    def directory(self):
        return Path(self.environment["HOME"], "nni-experiments", self.id)

    @property
    def error_file(self):
        return self.directory / "log" / ERROR_FILE

    @property
    def log_file(self):
        return self.directory / "log" / "dispatcher.log"

    def output_of(self, trial):
        """The output directory of a trial."""
        return self.directory / "environments" / "local-env" / "trials" / trial.id

    def wait_until(self, condition, seconds):
        """Wait until the condition of this experiment holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if condition(self):
                    return
            except ManagerUnreachable:
                pass
            time.sleep(0.3)
        raise AssertionError(f"{self.manager.status()}, {self.manager.trials()}, {self.log_file.read_text()}")

    def wait_for_status(self, status, seconds):
        self.wait_until(lambda experiment: experiment.manager.status()[0] == status, seconds)


def nnictl(environment, *words, program="nnictl"):
    for _ in range(10):
        run = subprocess.run(
            [Path(sys.executable).parent / program, *map(str, words)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # It gives a manager three seconds to start, which a busy machine exceeds.
        if run.returncode == 0 or "Timeout, retry" not in run.stdout:
            break
    assert run.returncode == 0, run.stdout
    return re.sub(r"\x1b\[\d+m", "", run.stdout)


def command(environment, *words, folder=None, timeout=600):
    """A run of `nni-gumbel` in a folder, the home of the environment if none is named."""
    return subprocess.run(
        [Path(sys.executable).parent / "nni-gumbel", *map(str, words)],
        env=environment,
        cwd=folder or environment["HOME"],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def new_environment(home: Path) -> dict[str, str]:
    """A home and a list of algorithms of its own, with the tuner registered."""
    programs = Path(sys.executable).parent
    environment = {
        # A number of threads that is set around the tests would stay: trials are to take their share of the cores.
        **{name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))},
        "HOME": str(home),
        "NNI_CONFIG_DIR": str(home / "config"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(
        [sys.executable, "-c", "from nni_gumbel.pipeline.manager import register; register()"],
        env=environment, check=True,
    )  # fmt: skip
    return environment


def fill_folder(folder: Path) -> None:
    """A user's folder: a space, data with test labels right and shuffled, and a tuner with a bug."""
    (folder / "tiny_space.py").write_text(SPACE)
    (folder / "crashing_tuner.py").write_text(CRASHING_TUNER)
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = (generator.integers(0, 100, (200, 8, 8)) + 100 * labels[:, None, None]).astype(np.uint8)
    arrays = {
        "x_train": images[:160],
        "y_train": labels[:160],
        "x_test": images[160:],
        "y_test": labels[160:],
    }
    np.savez(folder / "tiny.npz", **arrays)
    np.savez(folder / "shuffled.npz", **{**arrays, "y_test": generator.permutation(labels[160:])})


def free_port():
    for port in range(8180, 8280):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no free port from 8180 to 8279")


def of_stage(experiment, stage):
    return [trial for trial in experiment.manager.trials() if trial.parameters["stage"] == stage]


def kill_trial(trial_id):
    """`kill -9` on all processes of a trial; whether there were any."""
    found = False
    for process in psutil.process_iter():
        try:
            if process.environ().get("NNI_TRIAL_JOB_ID") == trial_id:
                process.send_signal(signal.SIGKILL)
                found = True
        except psutil.Error:
            continue
    return found

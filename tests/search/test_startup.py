"""A search starts quickly: what a trial does before its first step costs little beside NNI's own imports."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One process, so that both times are of the same machine in the same state; of the process alone, in CPU seconds.
PROGRAM = """
import sys, time
started = time.process_time()
import pytorch_lightning, nni.nas.strategy
imported = time.process_time()

from nni_gumbel.pipeline import trial
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task

class FirstStep(BaseException):
    pass

class Manager:
    def experiment(self):
        tuner = {"name": "GumbelSearch", "classArgs": {}}
        return {"params": {"tuner": tuner, "searchSpace": {}, "trialConcurrency": 2}}

def first_step(*args):
    raise FirstStep

from nni_gumbel.search.module import GumbelSearchModule
GumbelSearchModule.training_step = first_step
from pathlib import Path
folder = Path(sys.argv[1])
command = TrialCommand.parse(["--space", "search_spaces.mnist:MnistSpace", "--data-dir", str(folder)])
task = Task("search", 0, 1, dict(ExperimentSettings().search_values()))
try:
    trial.run_search(task, command, Manager(), folder)
except FirstStep:
    print(imported - started, time.process_time() - imported)
"""


@pytest.mark.slow
def test_a_search_trial_adds_two_seconds_of_cpu_at_most_before_its_first_step(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    imports, added = map(float, run.stdout.splitlines()[-1].split())
    assert added <= 2.0, f"{added:.2f} s after {imports:.2f} s of imports"

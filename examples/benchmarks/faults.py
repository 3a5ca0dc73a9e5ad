"""Small but complete experiments under NNI's real manager, each with one fault at a random moment.

`python examples/benchmarks/faults.py --times 7 --seed 0` prints, for each kind of fault: how often it was tried, how
many experiments came to their export, tasks done twice, results lost or under wrong parameters, and the largest number
of epochs that one task repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from real_experiments import Experiment, fill_folder, new_environment

from nni_gumbel.pipeline.manager import ManagerUnreachable, is_alive
from nni_gumbel.pipeline.plan import finished
from nni_gumbel.pipeline.task import TRAIN

SETTINGS = {
    "preset": "gradual", "search_seeds": 2, "train_seeds": 1, "search_epochs": 10, "train_epochs": 10, "attempts": 3,
}  # fmt: skip
# From the first trial on; an experiment of these settings takes longer.
_MOMENTS = 25.0
_PATIENCE = 400.0


@dataclass(frozen=True)
class Verdict:
    """What became of an experiment."""

    completed: bool
    twice: int
    lost: int
    wrong: int
    repeated: int


def processes(experiment: Experiment, kind: str) -> list[psutil.Process]:
    """The ``manager``, the ``tuner`` or the ``trials`` of an experiment that run now."""
    found = []
    for process in psutil.process_iter():
        try:
            words, variables = " ".join(process.cmdline()), process.environ()
        except psutil.Error:
            continue
        manager = "nni_node" in words and experiment.id in words
        trial = variables.get("NNI_EXP_ID") == experiment.id and "NNI_TRIAL_JOB_ID" in variables
        tuner = "-m nni --exp_params" in words and any(
            experiment.id in " ".join(parent.cmdline()) for parent in process.parents()
        )
        if {"manager": manager, "tuner": tuner and not manager, "trials": trial}[kind]:
            found.append(process)
    return found


def _signalled(kind: str, number: signal.Signals) -> Callable[[Experiment, random.Random], bool]:
    def act(experiment: Experiment, rng: random.Random) -> bool:
        found = processes(experiment, kind)
        if kind == "trials" and found:
            found = [rng.choice(found)]
        for process in found:
            process.send_signal(number)
        return bool(found)

    return act


def _stop_and_resume(experiment: Experiment, rng: random.Random) -> bool:
    experiment.stop()
    experiment.resume()
    return True


def _truncate(experiment: Experiment, rng: random.Random) -> bool:
    """Of a trial that is killed, the latest checkpoint is cut off."""
    folders = list(experiment.directory.glob("environments/local-env/trials/checkpoints/*"))
    if not folders or not _signalled("trials", signal.SIGKILL)(experiment, rng):
        return False
    for folder in folders:
        files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[-1:]:
            file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])
    return True


FAULTS: dict[str, Callable[[Experiment, random.Random], bool]] = {
    "kill -9 a trial": _signalled("trials", signal.SIGKILL),
    "SIGTERM to a trial": _signalled("trials", signal.SIGTERM),
    "SIGINT to a trial": _signalled("trials", signal.SIGINT),
    "kill -9 the tuner": _signalled("tuner", signal.SIGKILL),
    "kill -9 the manager": _signalled("manager", signal.SIGKILL),
    "stop and resume": _stop_and_resume,
    "a truncated checkpoint": _truncate,
}


def suffer(experiment: Experiment, fault: str, rng: random.Random) -> Verdict:
    """Let a fault befall an experiment that has just begun, bring it to its end, and judge it."""
    experiment.wait_until(lambda each: each.manager.trials(), 60)
    time.sleep(rng.uniform(0, _MOMENTS))
    before = experiment.manager.trials()
    end = time.monotonic() + 60
    while not FAULTS[fault](experiment, rng) and time.monotonic() < end:
        time.sleep(0.2)
    trials = _end(experiment)
    reports = [trial.report for trial in trials if trial.report]
    after = {trial.id: trial.result for trial in trials}
    done = Counter(report.identity for report in reports)
    epochs: Counter[str] = Counter()
    wrong = 0
    for trial in trials:
        if trial.task is None:
            continue
        wrong += trial.report is not None and trial.report.identity != trial.task.identity
        ran = experiment.output_of(trial) / "task.json"
        wrong += ran.exists() and json.loads(ran.read_text()) != trial.parameters
        epochs[trial.task.identity] += len(
            experiment.manager._get(f"metric-data/{trial.id}?type=PERIODICAL") or []
        )
    planned = {"search": SETTINGS["search_epochs"], TRAIN: SETTINGS["train_epochs"]}
    return Verdict(
        completed=finished(trials) is not None,
        twice=sum(count - 1 for count in done.values()),
        lost=sum(trial.report is not None and after.get(trial.id) != trial.result for trial in before),
        wrong=wrong,
        repeated=max(
            (
                count - planned[name.split("-")[0]]
                for name, count in epochs.items()
                if name.split("-")[0] in planned
            ),
            default=0,
        ),
    )


def _end(experiment: Experiment) -> list:
    """Follow an experiment to its end, as a person would: what `nni-gumbel wait` asks for is done."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if not any(map(is_alive, processes(experiment, "manager"))):
            experiment.resume()
        try:
            trials = experiment.manager.trials()
            if finished(trials) and experiment.manager.status()[0] == "DONE":
                return trials
            if experiment.manager.status()[0] == "ERROR":
                experiment.stop()
        except ManagerUnreachable:
            pass
        time.sleep(1.0)
    return experiment.manager.trials()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="experiments for each kind of fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--port", type=int, default=8230, help="of the experiments, one after the other")
    parser.add_argument(
        "--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), help="kinds to try"
    )
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch, "home"), Path(scratch, "code")
        home.mkdir(), folder.mkdir()
        fill_folder(folder)
        environment = new_environment(home)
        print(
            f"{'fault':24} {'tried':>6} {'completed':>10} {'twice':>6} {'lost':>5} {'wrong':>6} {'repeated':>9}"
        )
        for fault in arguments.faults:
            verdicts = []
            for _ in range(arguments.times):
                experiment = Experiment.create(environment, folder, arguments.port, SETTINGS)
                try:
                    verdicts.append(suffer(experiment, fault, rng))
                finally:
                    experiment.stop()
            completed, twice, lost, wrong = (
                sum(getattr(each, name) for each in verdicts)
                for name in ("completed", "twice", "lost", "wrong")
            )
            most = max(each.repeated for each in verdicts)
            print(
                f"{fault:24} {len(verdicts):6} {completed:10} {twice:6} {lost:5} {wrong:6} {most:9}",
                flush=True,
            )


if __name__ == "__main__":
    main()

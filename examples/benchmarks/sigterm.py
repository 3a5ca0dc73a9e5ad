"""How long a trial of the main job lives after SIGTERM: it ends its batch and writes a checkpoint.

`python examples/benchmarks/sigterm.py --times 10 --seed 0` starts `experiment.yml` under NNI's real manager, signals
trials at random moments of their runs, and prints the seconds from each signal to the end of the process, the processor
time that it took for that, and when after the signal the checkpoint was written. NNI kills a trial 5 s after it has
asked it to end.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from faults import processes
from real_experiments import Experiment, new_environment

from nni_gumbel.pipeline.manager import is_alive

_ROOT = Path(__file__).parents[2]
# A run of the main job is longer on most machines.
_MOMENTS = 10.0


def running(experiment: Experiment) -> dict[str, psutil.Process]:
    """The processes of trials that have reported an epoch, by trial."""
    found = {}
    for process in processes(experiment, "trials"):
        trial = process.environ()["NNI_TRIAL_JOB_ID"]
        is_ours = any(word.endswith("/nni-gumbel") for word in process.cmdline())
        if is_ours and experiment.manager._get(f"metric-data/{trial}?type=PERIODICAL"):
            found[trial] = process
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="signals")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--port", type=int, default=8230, help="of the experiment")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    main_job = yaml.safe_load((_ROOT / "experiment.yml").read_text())
    settings = {**main_job["tuner"]["classArgs"], "attempts": 10 * arguments.times}
    changes = {name: main_job[name] for name in ("trialCommand", "trialConcurrency", "searchSpace")}
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch, "home"), Path(scratch, "code")
        home.mkdir(), folder.mkdir()
        shutil.copytree(_ROOT / "search_spaces", folder / "search_spaces")
        environment = new_environment(home)
        experiment = Experiment.create(environment, folder, arguments.port, settings, **changes)
        while not experiment.manager.trials():
            # A tuner has 10 s to connect, which a busy machine exceeds.
            if experiment.manager.status()[0] == "ERROR":
                experiment.stop(), experiment.resume()
            time.sleep(1.0)
        print("trial    stage         ended  its CPU  written  checkpoint", flush=True)
        try:
            for _ in range(arguments.times):
                experiment.wait_until(running, 300)
                time.sleep(rng.uniform(0, _MOMENTS))
                while not (there := running(experiment)):
                    time.sleep(0.2)
                name, process = rng.choice(sorted(there.items()))
                start, spent = time.time(), sum(process.cpu_times()[:2])
                now = spent
                process.terminate()
                while is_alive(process):
                    with suppress(psutil.Error):
                        now = max(now, sum(process.cpu_times()[:2]))
                    time.sleep(0.01)
                seconds = time.time() - start
                trial = experiment.manager.trial(name)
                kept = (
                    experiment.directory / "environments/local-env/trials/checkpoints" / trial.task.identity
                )
                files = sorted(kept.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
                written = f"{files[-1].stat().st_mtime - start:8.2f}  {files[-1].name}" if files else "none"
                print(f"{name:8} {trial.stage:8} {seconds:8.2f} {now - spent:8.2f} {written}", flush=True)
        finally:
            experiment.stop()


if __name__ == "__main__":
    main()

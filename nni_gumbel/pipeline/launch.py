"""How an NNI trial begins: it learns what it has to do, before anything slow is imported.

NNI 3.0 hands out parameters first come, first served, so trials that start together can receive each other's. The
trial therefore takes what it is given once, and then runs what the manager's record of *itself* says.

Each trial takes its share of the cores - cores / trial concurrency - and writes into its own output directory:
``task.json`` (what it ran), ``tensorboard/``, and a training its ``bundle/``; checkpoints lie beside these directories
(:mod:`~nni_gumbel.pipeline.checkpoints`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

import loky
import nni
from filelock import FileLock

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.export import run_export
from nni_gumbel.pipeline.manager import (
    REMOTE,
    Manager,
    ManagerUnreachable,
    end_with,
    manager_process,
    receive_plain_json,
)
from nni_gumbel.pipeline.remote import Artifacts, StoreUnreachable
from nni_gumbel.pipeline.task import EXPORT, EXPORT_FOLDER, TENSORBOARD, Task
from nni_gumbel.results.agreement import Sampled
from nni_gumbel.results.neighbours import Neighbours
from nni_gumbel.results.stability import Stability

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run this process's trial; ``arguments`` are those after ``nni-gumbel trial``.

    Returns:
        The exit code; a person's mistake is one line on stderr and 1.
    """
    task, host = None, ""
    try:
        command = TrialCommand.parse(arguments)
        if "NNI_TRIAL_JOB_ID" not in os.environ:
            raise UsageError(
                "nni-gumbel trial: it is started by NNI, as the trialCommand of an experiment; "
                "run `nni-gumbel create --config experiment.yml`"
            )
        nnis = manager_process()
        if nnis is None and os.environ.get("NNI_PLATFORM") == "local":
            # Another manager may answer at the same address by now: of the same experiment, resumed.
            raise UsageError("NNI's manager is gone, and so this trial ends")
        end_with(nnis)
        receive_plain_json()
        nni.get_next_parameter()  # takes one from the queue; ours is in the manager's record
        manager = Manager.from_trial_environment()
        trial = manager.trial(os.environ["NNI_TRIAL_JOB_ID"])
        host = f" (on {trial.place.partition(':')[0]})" if _is_on_another_host() else ""
        task = Task.from_parameters(trial.parameters)
        output = Path(os.environ["NNI_OUTPUT_DIR"])
        output.mkdir(parents=True, exist_ok=True)
        # Two writers never share a directory: a resumed experiment may run the same trial before the first has ended.
        with FileLock(output / ".lock"):
            (output / "task.json").write_text(json.dumps(task.parameters(), indent=2) + "\n")
            _show_tensorboard_to_the_portal(output)
            _use_share_of_cores(manager)
            artifacts = Artifacts.of(manager.experiment())
            if task.stage == EXPORT:
                run_export(task, command, manager, output)
            else:
                from nni_gumbel.pipeline.trial import RUNS  # imports torch

                RUNS[task.stage](task, command, manager, output, artifacts)
            if artifacts is not None:
                kept = (TENSORBOARD, EXPORT_FOLDER, *(each.FILE for each in (Sampled, Stability, Neighbours)))
                artifacts.put_output(output, *kept)
    except UsageError as error:
        print(f"nni-gumbel: {first_line(error)}{host}", file=sys.stderr)
        if task is not None and _would_come_again(error):
            nni.report_final_result({"key": task.key, "mistake": f"{first_line(error)}{host}"})
        return 1
    except SystemExit as error:  # Lightning ends a run so after SIGTERM, with the code of a success
        return error.code or 128 + signal.SIGTERM
    return 0


def _is_on_another_host() -> bool:
    return os.environ.get("NNI_PLATFORM") == REMOTE


def _would_come_again(error: BaseException | None) -> bool:
    """Whether another attempt would end alike: not where the machine was the cause, its memory, disk or network.

    What is missing on one host, a file or a package, may be there on the next.
    """
    while error is not None:
        of_the_machine = isinstance(error, (OSError, MemoryError, ManagerUnreachable, StoreUnreachable))
        of_the_machine |= type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported here
        is_missing = isinstance(error, (FileNotFoundError, ImportError))
        if is_missing and _is_on_another_host() or of_the_machine and not is_missing:
            return False
        error = error.__cause__ or error.__context__
    return True


def _use_share_of_cores(manager: Manager) -> None:
    """Limit this process to cores / trials at a time on this host: trials that share cores slow each other down.

    Must run before torch is imported, which reads the variable once.
    """
    cores = loky.cpu_count()  # of this process: affinity and the limits of a container count
    params = manager.experiment()["params"]
    hosts = len((params.get("trainingService") or {}).get("machineList") or [None])  # NNI takes them in turn
    share = max(1, cores // math.ceil(params["trialConcurrency"] / hosts))
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    # What a person has set stays, and one that is alone speaks for both: torch takes MKL's number for OpenMP, too.
    threads = next((os.environ[name] for name in variables if os.environ.get(name)), str(share))
    for name in variables:
        os.environ[name] = os.environ.get(name) or threads
    logger.info("this trial uses %s of %d cores", threads, cores)


def _show_tensorboard_to_the_portal(output: Path) -> None:
    """Link the events to where the portal's TensorBoard button looks.

    The button reads ``<experiment>/trials/<id>/output/tensorboard``, whatever ``$NNI_OUTPUT_DIR`` is, and
    makes that folder itself when it is pressed before there is one.
    """
    events = output / TENSORBOARD
    if os.environ.get("NNI_PLATFORM") != "local":
        return
    # <experiment>/environments/local-env/trials/<id>
    expected = output.parents[3] / "trials" / output.name / "output" / "tensorboard"
    expected.parent.mkdir(parents=True, exist_ok=True)
    if expected.is_dir() and not expected.is_symlink():
        if not events.exists():  # as it does when NNI runs the trial again
            events.symlink_to(expected)
    elif not expected.is_symlink():
        events.mkdir(exist_ok=True)
        expected.symlink_to(events)

"""Following an experiment until it ends, for `nni-gumbel wait`.

NNI's status alone does not say how an experiment fares: `TUNER_NO_MORE_TRIAL` is also a moment between
two stages, a tuner that failed leaves a line in a file half a minute before NNI notices, and a manager
that is gone says nothing. So each look asks, in this order: has an export succeeded; has the tuner left
its line; what does the status say; is the manager there at all.

Only the experiment itself is truth: nothing is kept here but what has been told already.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.manager import (
    Experiment,
    Manager,
    ManagerUnreachable,
    check_tuner,
    plan_of,
)
from nni_gumbel.pipeline.plan import Plan, finished
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, TRAIN, Trial

# Longer than a manager is silent when it is busy.
_PATIENCE = 30.0
# NNI becomes DONE within seconds of the export; nobody is kept waiting longer for a formality.
_UNTIL_DONE = 15.0

_NOUNS = {SEARCH: "searches", TRAIN: "trainings", RANDOM: "random networks", EXPORT: "export"}


def follow(
    experiment: Experiment,
    *,
    show: Callable[[str, float], None],
    warn: Callable[[str], None],
    timeout: float | None = None,
) -> Records:
    """Watch an experiment until its export has succeeded.

    Args:
        experiment: which one.
        show: called at every look, with a line of progress and the seconds that the experiment has run.
        warn: called once for each trial that failed.
        timeout: seconds; the experiment goes on after them.

    Raises:
        UsageError: the experiment failed, was stopped, ended without an export or does not answer, or the
            time is over; one line says which.
    """
    manager, told = experiment.manager, set()
    begun = last_answer = time.monotonic()
    done_at = None
    while True:
        now = time.monotonic()
        try:
            status, errors = manager.status()
            profile = manager.experiment()  # nothing, while NNI is starting it
            trials = manager.trials() if profile else []
            last_answer, end = now, None
        except ManagerUnreachable:
            profile, end = None, _end_without_manager(experiment, silent=now - last_answer)
        if profile:
            plan = _plan(experiment, profile)
            for trial in sorted(trials, key=lambda trial: trial.sequence):
                if trial.state == "failed" and trial.id not in told:
                    told.add(trial.id)
                    warn(failed_trial_line(manager, trial))
            show(progress_line(plan, trials), profile.get("execDuration", 0.0))
            if finished(trials):
                done_at = done_at or now
                if status in ("DONE", "VIEWED") or now - done_at > _UNTIL_DONE:
                    return Records.of(experiment.directory)
            else:
                end = _end(experiment, status, errors, profile["params"], trials)
        if end is not None:
            raise UsageError(f"experiment {experiment.id} {end}")
        if timeout is not None and now - begun > timeout:
            raise UsageError(
                f"experiment {experiment.id} has not ended after {timeout:g} s and goes on; "
                f"`nni-gumbel wait {experiment.id}` follows it again"
            )
        time.sleep(2.0)


def progress_line(plan: Plan, trials: list[Trial]) -> str:
    """Where an experiment is: trials by stage, failures, and the best result so far.

    How many trainings and random networks are needed is known search by search. The best is of trainings of networks
    found, before there is one of searches.
    """
    done, running = (
        Counter(trial.stage for trial in trials if trial.state == state) for state in ("succeeded", "pending")
    )
    waiting = Counter(task.stage for task in plan.next_tasks(trials))
    parts, earlier_are_open = [], False
    for stage, noun in _NOUNS.items():
        planned = max(done[stage] + running[stage] + waiting[stage], int(stage == EXPORT))
        if stage == RANDOM and not plan.settings.random_baseline:
            continue
        # A search brings trainings, a training its baseline.
        more = "+" if stage != EXPORT and earlier_are_open else ""
        earlier_are_open |= done[stage] < planned
        # Before a network is found, and after everything failed, no number is known.
        of = f"/{planned}{more}" if planned else ""
        now = f" ({running[stage]} running)" if running[stage] else ""
        parts.append(f"{noun} {done[stage]}{of}{now}")
    if failed := sum(trial.state == "failed" for trial in trials):
        parts.append(f"{failed} failed")
    judged = next((stage for stage in (TRAIN, SEARCH) if done[stage]), None)
    results = [t.result["default"] for t in trials if t.state == "succeeded" and t.stage == judged]
    if judged is not None:
        better = max if plan.settings.optimize_mode == "maximize" else min
        of = " of a search" if judged == SEARCH else ""
        parts.append(f"best validation {plan.settings.metric}{of} {better(results):.4g}")
    return ", ".join(parts)


def failed_trial_line(manager: Manager, trial: Trial) -> str:
    """One line about a trial that failed: which one it was, and its own last word."""
    parameters = trial.parameters or {}
    names = [name for name in ("stage", "seed", "attempt") if name in parameters]
    what = ", ".join(f"{name} {parameters[name]}" for name in names)
    if trial.mistake is not None:
        reason = trial.mistake
    elif trial.result is not None:
        reason = f"its result {trial.result.get('default')!r} is not a finite number"
    else:
        reason = manager.last_word(trial.id)
    return f"trial {trial.id} ({what}) failed: {reason}"


def _plan(experiment: Experiment, profile: Mapping[str, Any]) -> Plan:
    check_tuner(profile)
    try:
        return plan_of(profile)
    except UsageError as error:
        # The tuner ends with the same line.
        raise UsageError(
            f"experiment {experiment.id} failed: {error}; `nnictl stop {experiment.id}` ends it"
        ) from None


def _end_without_manager(experiment: Experiment, silent: float) -> str | None:
    """How an experiment ended whose manager has been silent for so many seconds; ``None`` if it may go on."""
    if (line := experiment.tuners_line()) is not None:
        return f"failed: {line}"
    if experiment.is_stopped:
        return _stopped(experiment)
    if experiment.has_ended:
        return f"has lost its manager (process {experiment.pid}); `nni-gumbel resume {experiment.id}` goes on with it"
    if silent > _PATIENCE:
        return (
            f"has a manager at {experiment.portal} that does not answer, although its process {experiment.pid} lives; "
            f"`nni-gumbel doctor experiment.yml` tells GPU lines that freeze it, `kill {experiment.pid}` ends it"
        )
    return None


def _end(
    experiment: Experiment, status: str, errors: list[str], params: Mapping[str, Any], trials: list[Trial]
) -> str | None:
    """How an experiment ended without an export: by the tuner's line or NNI's status."""
    end_it = f"`nnictl stop {experiment.id}` ends it"
    if (line := experiment.tuners_line()) is not None:
        return f"failed: {line}; {end_it}"
    if status == "ERROR":
        reason = " ".join(errors[-1].split()) if errors else "NNI gives no reason"
        if "did not connect" in reason:
            reason += " If it is not registered, run `nni-gumbel register`; else the machine was too busy: try again"
        return f"failed: {reason}; see {experiment.logs}; {end_it}"
    if status in ("STOPPING", "STOPPED"):
        return _stopped(experiment)
    if status == "VIEWED":
        resume = f"`nni-gumbel resume {experiment.id}` then goes on"
        return f"was stopped before its export and is only viewed; {end_it}, {resume}"
    if status == "DONE" and not any(trial.state == "pending" for trial in trials):
        limits = {key: params.get(key) for key in ("maxTrialNumber", "maxExperimentDuration")}
        used_up = " or ".join(f"{key} ({value})" for key, value in limits.items() if value is not None)
        return f"ended without an export: {used_up} is used up; give more or leave it out; {end_it}"
    return None


def _stopped(experiment: Experiment) -> str:
    return (
        f"is stopped; `nni-gumbel resume {experiment.id}` goes on with it, `nni-gumbel view {experiment.id}` shows "
        f"it; if nobody stopped it, {experiment.logs / 'nnimanager.log'} says why"
    )

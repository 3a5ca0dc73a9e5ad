"""Following an experiment until it ends, for `nni-gumbel wait`.

NNI's status alone does not say how an experiment fares: `TUNER_NO_MORE_TRIAL` is also a moment between
two stages, a tuner that failed leaves a line in a file half a minute before NNI notices, and a manager
that is gone says nothing. So each look asks, in this order: has an export succeeded; has the tuner left
its line; what do the status, and what does the plan say; is the manager there at all.

Only the experiment itself is truth: nothing is kept here but what has been told already.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.manager import (
    NAME,
    Experiment,
    Manager,
    ManagerUnreachable,
    plan_of,
)
from nni_gumbel.pipeline.plan import Plan, finished
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import EXPORT, RANDOM, SEARCH, STAGES, TRAIN, Trial
from nni_gumbel.results.choice import Network

# Longer than a manager is silent when it is busy.
_PATIENCE = 30.0
# NNI becomes DONE within seconds of the export; nobody is kept waiting longer for a formality.
_UNTIL_DONE = 15.0
_NOTHING_RUNS = 90.0


@dataclass(frozen=True)
class StageProgress:
    """Trials of one stage: done, running now, and known to be needed."""

    stage: str
    done: int
    running: int
    planned: int


@dataclass(frozen=True)
class Progress:
    """Where an experiment is.

    ``best`` is of trainings of networks found, before there is one of searches. A stage that was not asked for
    is left out.
    """

    status: str
    stages: tuple[StageProgress, ...]
    failed: int
    metric: str
    best: float | None
    best_stage: str | None
    elapsed: float


@dataclass(frozen=True)
class Outcome:
    """A finished experiment: all networks that were trained, the chosen one, and where it lies."""

    networks: list[Network]
    chosen: Network | None
    settings: ExperimentSettings
    path: str
    warning: str | None = None


def follow(
    experiment: Experiment,
    *,
    show: Callable[[Progress], None],
    warn: Callable[[str], None],
    timeout: float | None = None,
    every: float = 2.0,
) -> Outcome:
    """Watch an experiment until it ends.

    Args:
        experiment: which one.
        show: called at every look.
        warn: called once for each trial that failed, and once when nothing runs for long.
        timeout: seconds; the experiment goes on after them.
        every: seconds between two looks.

    Raises:
        UsageError: the experiment failed, was stopped, ended without an export or does not answer, or the
            time is over; one line says which.
    """
    manager, told = Manager(experiment.api), set()
    begun = last_answer = last_running = time.monotonic()
    done_at = None
    while True:
        now = time.monotonic()
        try:
            status, errors = manager.status()
            profile = manager.experiment()
            trials = manager.trials() if profile else []
        except ManagerUnreachable:
            end = _end_without_manager(experiment, silent=now - last_answer)
            profile = None
        else:
            end, last_answer = None, now
        if profile:
            plan = _plan(experiment, profile)
            progress = progress_of(status, plan, trials, profile.get("execDuration", 0.0))
            for trial in sorted(trials, key=lambda trial: trial.sequence):
                if trial.state == "failed" and trial.id not in told:
                    told.add(trial.id)
                    warn(failed_trial_line(manager, trial))
            show(progress)
            if finished(trials):
                done_at = done_at or now
                if status in ("DONE", "VIEWED") or now - done_at > _UNTIL_DONE:
                    return _outcome(plan, trials)
            else:
                failed = plan.failure(trials)
                end = _end(
                    experiment,
                    status,
                    errors,
                    profile["params"],
                    trials,
                    failed and manager.explained(failed),
                )
                if any(stage.running for stage in progress.stages):
                    last_running = now
                elif now - last_running > _NOTHING_RUNS and "stall" not in told and end is None:
                    told.add("stall")
                    warn(
                        f"no trial has run for {now - last_running:.0f} s; `nni-gumbel doctor experiment.yml` says "
                        f"whether one can start, the logs are in {experiment.logs}"
                    )
        if end is not None:
            raise UsageError(f"experiment {experiment.id}{end}")
        if timeout is not None and now - begun > timeout:
            raise UsageError(
                f"experiment {experiment.id} has not ended after {timeout:g} s and goes on; "
                f"`nni-gumbel wait {experiment.id}` follows it again"
            )
        time.sleep(every)


def progress_of(status: str, plan: Plan, trials: list[Trial], elapsed: float) -> Progress:
    """Count trials by stage; how many trainings and random networks are needed is known search by search."""
    done = Counter(trial.stage for trial in trials if trial.state == "succeeded")
    running = Counter(trial.stage for trial in trials if trial.state == "pending")
    waiting = Counter(task.stage for task in plan.next_tasks(trials))
    best_stage = next((stage for stage in (TRAIN, SEARCH) if done[stage]), None)
    results = [t.result["default"] for t in trials if t.state == "succeeded" and t.stage == best_stage]
    better = max if plan.settings.optimize_mode == "maximize" else min
    return Progress(
        status=status,
        stages=tuple(
            StageProgress(
                stage,
                done[stage],
                running[stage],
                max(done[stage] + running[stage] + waiting[stage], int(stage == EXPORT)),
            )
            for stage in STAGES
            if stage != RANDOM or plan.settings.random_baseline
        ),
        failed=sum(trial.state == "failed" for trial in trials),
        metric=plan.settings.metric,
        best=better(results) if best_stage else None,
        best_stage=best_stage,
        elapsed=elapsed,
    )


def failed_trial_line(manager: Manager, trial: Trial) -> str:
    """One line about a trial that failed: which one it was, and its own last word."""
    parameters = trial.parameters or {}
    what = ", ".join(
        f"{name} {parameters[name]}" for name in ("stage", "seed", "attempt") if name in parameters
    )
    if trial.result is not None:
        reason = f"its result {trial.result.get('default')!r} is not a finite number"
    else:
        reason = manager.last_word(trial.id)
    return f"trial {trial.id} ({what}) failed: {reason}"


def _plan(experiment: Experiment, profile: Mapping[str, Any]) -> Plan:
    tuner = profile["params"].get("tuner") or {}
    if str(tuner.get("name")).lower() != NAME.lower():
        raise UsageError(
            f"ID: experiment {experiment.id} runs the tuner {tuner.get('name')!r}; give one of {NAME}"
        )
    try:
        return plan_of(profile)
    except UsageError as error:
        # The tuner ends with the same line.
        raise UsageError(f"experiment {experiment.id} failed: {error}; {_end_it(experiment)}") from None


def _end_without_manager(experiment: Experiment, silent: float) -> str | None:
    """How an experiment ended whose manager has been silent for so many seconds; ``None`` if it may go on."""
    line = experiment.tuners_line()
    if line is not None:
        return f" failed: {line}"
    if experiment.is_stopped:
        return _stopped(experiment)
    if experiment.has_ended:
        return f": its manager (process {experiment.pid}) is gone; {_go_on(experiment)}"
    if silent > _PATIENCE:
        return (
            f": its manager at {experiment.portal} does not answer, although its process {experiment.pid} lives; "
            "`nni-gumbel doctor experiment.yml` tells GPU lines that freeze it, "
            f"`kill {experiment.pid}` ends it"
        )
    return None


def _end(
    experiment: Experiment, status: str, errors: list[str], params: Mapping[str, Any], trials: list[Trial],
    failed: str | None,
) -> str | None:  # fmt: skip
    """How an experiment ended without an export: by the tuner's line, NNI's status or the plan."""
    end_it = _end_it(experiment)
    line = experiment.tuners_line()
    if line is not None:
        return f" failed: {line}; {end_it}"
    if status == "ERROR":
        reason = " ".join(errors[-1].split()) if errors else "NNI gives no reason"
        if "did not connect" in reason:
            reason += " If it is not registered, run `nni-gumbel register`; else the machine was too busy: try again"
        return f" failed: {reason}; see {experiment.logs}; {end_it}"
    if status in ("STOPPING", "STOPPED"):
        return _stopped(experiment)
    if status == "VIEWED":
        return f" was stopped before its export and is only viewed; {end_it}, then resume it"
    if failed is not None:
        return f" failed: {failed}; {end_it}"
    if status == "DONE" and not any(trial.state == "pending" for trial in trials):
        limits = {key: params.get(key) for key in ("maxTrialNumber", "maxExperimentDuration")}
        used_up = " or ".join(f"{key} ({value})" for key, value in limits.items() if value is not None)
        return f" ended without an export: {used_up} is used up; give more or leave it out; {end_it}"
    return None


def _stopped(experiment: Experiment) -> str:
    """How it ended, if a person stopped it, or it shut down because it could not go on."""
    reason = experiment.why_it_shut_down()
    if reason is not None:
        return f" failed: {reason}; see {experiment.logs}"
    if experiment.exported:
        again = f"`nnictl view {experiment.id}` and then `nni-gumbel wait {experiment.id}` show its networks again"
        return f" has exported a network and is stopped; {again}"
    return f" is stopped; {_go_on(experiment)}"


def _go_on(experiment: Experiment) -> str:
    return f"`nnictl resume {experiment.id}` goes on with it"


def _end_it(experiment: Experiment) -> str:
    return f"`nnictl stop {experiment.id}` ends it"


def _outcome(plan: Plan, trials: list[Trial]) -> Outcome:
    found = plan.networks(trials)
    export = next(trial for trial in trials if trial.state == "succeeded" and trial.stage == EXPORT)
    chosen = next((network for network in found if network.name == export.result.get("network")), None)
    return Outcome(found, chosen, plan.settings, str(export.result.get("path")), export.result.get("warning"))

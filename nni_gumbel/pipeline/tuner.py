"""The tuner that NNI runs: NNI's protocol around :mod:`nni_gumbel.pipeline.plan`.

NNI's callbacks leave out too much: trials that are resumed, that fail after a resume, that ran each
other's parameters. So every call is only a reason to look: the tuner reads all trials from the
manager, asks what is missing, and hands that out for as many slots as NNI has asked to fill. It also
looks every few seconds by itself, because some ends are reported to nobody.

Two things no list of the manager can tell, so they are remembered for as long as the process lives:

- *slots owed*: NNI asks once for each free slot. A slot that cannot be filled at that moment, because
  the next tasks depend on a running trial, would stay empty for good; the number that NNI gave to
  the request is kept and filled later through NNI's callback.
- *tasks on their way*: between the moment when a task is handed out and the one in which its trial
  appears in the manager's list it must not be handed out again.

If either is lost with the process, a resumed experiment has lost them, too: it asks for all its
slots again, and what was on its way was never started.

It imports no torch: NNI gives a tuner ten seconds to connect.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from nni.runtime.msg_dispatcher import _create_parameter_id
from nni.tuner import Tuner

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.manager import (
    ERROR_FILE,
    Manager,
    ManagerClosed,
    ManagerUnreachable,
    check_params,
    end_with,
    is_alive,
    manager_process,
    receive_plain_json,
    time_is_over,
    trial_command_of,
)
from nni_gumbel.pipeline.plan import Plan, finished
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task, Trial

_logger = logging.getLogger(__name__)

_LOOK_EVERY = 5.0
_SECONDS_FOR_LAST_WORDS = 5
_TIME_FOR_AN_EXPORT = 600


def _ends_the_experiment(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let no exception leave a method: NNI would go on `RUNNING` without a tuner, for ever.

    The one line goes into the error file, where `nni-gumbel wait` finds it, and the process ends.
    """

    @wraps(method)
    def guarded(self: GumbelSearchTuner, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self._end_unless_stopping(error)
            return []

    return guarded


def _end(error: Exception) -> NoReturn:
    """End this process, whatever becomes of the log and of the error file.

    NNI takes nothing less than the end of the process for the end of the tuner.
    """
    # A disk that answers no more, or a lock that another thread holds: the kernel ends the process then.
    signal.alarm(_SECONDS_FOR_LAST_WORDS)
    try:
        line = first_line(error)
        _logger.error("%s", line, exc_info=None if isinstance(error, UsageError) else error)
        _error_file().write_text(line + "\n", encoding="utf8")
        logging.shutdown()
    finally:
        os._exit(1)


def _error_file() -> Path:
    return Path(os.environ.get("NNI_LOG_DIRECTORY", "."), ERROR_FILE)


class GumbelSearchTuner(Tuner):
    """Searches, trainings and the export as trials of one experiment. Settings: `ExperimentSettings`."""

    def __init__(self, /, **class_args: Any) -> None:
        super().__init__()
        receive_plain_json()
        self._manager_process = manager_process()
        end_with(self._manager_process)
        self._lock = threading.RLock()
        self._owed: list[int] = []
        self._time_was_added = False
        self._planned_for: tuple[list[Trial], int | None] | None = None
        self._planned: list[Task] = []
        self._on_their_way: dict[str, Task] = {}
        self._send: Callable[[int, dict[str, Any]], None] | None = None
        self._manager = Manager.from_tuner_environment()
        try:
            _error_file().unlink(missing_ok=True)
            self._start(class_args)
        except Exception as error:
            _end(error)
        threading.Thread(target=self._keep_looking, name="gumbel-look", daemon=True).start()

    def _start(self, class_args: dict[str, Any]) -> None:
        """Check everything that can be checked before the first trial."""
        settings = ExperimentSettings.from_flat(class_args)
        params = self._manager.experiment()["params"]
        self._plan = Plan.of(settings, params.get("searchSpace"))
        check_params(params)
        command, directory = trial_command_of(params)
        command.check(directory)
        # After the export it is the number of trials that there were.
        if not finished(self._manager.trials()):
            self._plan.check_trial_limit(params.get("maxTrialNumber"))
        count, most = len(self._plan.combinations), self._plan.trial_count
        _logger.info("%d combinations, at most %d trials if none fails", count, most)

    @_ends_the_experiment
    def update_search_space(self, search_space: Any) -> None:
        try:
            changed = Plan.of(self._plan.settings, search_space)
        except UsageError as error:
            # That of the YAML was checked at the start: this one was typed into the portal.
            _logger.error("the search space stays as it was: %s", error)
            return
        with self._lock:
            self._plan, self._planned_for = changed, None
            self._look()

    @_ends_the_experiment
    def generate_multiple_parameters(
        self, parameter_id_list: list[int], st_callback: Callable[[int, dict[str, Any]], None], **_: Any
    ) -> list[dict[str, Any]]:
        with self._lock:
            self._send = st_callback
            tasks = self._missing()
            now, later = tasks[: len(parameter_id_list)], tasks[len(parameter_id_list) :]
            for task in now:
                self._note(task)
            # Slots that were owed before come after these: what is returned must fit the ids asked for.
            self._fill(later)
            self._owed += parameter_id_list[len(now) :]
            return [task.parameters() for task in now]

    def trial_end(self, *_: Any, **__: Any) -> None:
        self._look()

    receive_trial_result = import_data = trial_end

    @_ends_the_experiment
    def _look(self) -> None:
        with self._lock:
            self._fill(self._missing())

    def _missing(self) -> list[Task]:
        """The tasks that may start now; ends the experiment if it is over, one way or the other."""
        try:
            trials, profile = self._manager.trials(), self._manager.experiment()
            if finished(trials):
                # Only when `maxTrialNumber` is the number of trials, NNI shows `DONE`.
                if profile["params"].get("maxTrialNumber") != len(trials):
                    self._manager.set_max_trial_number(len(trials))
                    _logger.info("the export has succeeded; the experiment has %d trials", len(trials))
                return []
        except ManagerUnreachable as error:
            # It is ending, and then this process does, too; or it is busy, and the next look succeeds.
            _logger.warning("%s", error)
            return []
        shown = {(trial.parameters or {}).get("key") for trial in trials}
        self._on_their_way = {key: task for key, task in self._on_their_way.items() if key not in shown}
        trials += [Trial(key, -1, "pending", task.parameters()) for key, task in self._on_their_way.items()]
        no_time = time_is_over(profile)
        limit = 0 if no_time or self._time_was_added else profile["params"].get("maxTrialNumber")
        if self._planned_for != (trials, limit):  # most looks see nothing new
            failed = self._plan.failure(trials, limit)
            if failed is not None:
                word = self._manager.last_word(failed.last_trial)
                raise UsageError(f"{failed.line}; the last was trial {failed.last_trial}: {word}")
            self._planned_for, self._planned = (trials, limit), self._plan.next_tasks(trials, limit)
        tasks = list(self._planned)
        if no_time and (tasks or self._on_their_way):
            # NNI starts nothing any more, what it was given before neither, and asks for nothing; it takes what comes.
            try:
                self._manager.add_time(_TIME_FOR_AN_EXPORT)
            except ManagerUnreachable as error:
                _logger.warning("%s", error)
                return []
            self._time_was_added = True
            self._owed += [_create_parameter_id() for _ in range(len(tasks) - len(self._owed))]
        return tasks

    def _fill(self, tasks: list[Task]) -> None:
        while tasks and self._owed and self._send is not None:
            task, parameter_id = tasks.pop(0), self._owed.pop(0)
            self._note(task)
            self._send(parameter_id, task.parameters())

    def _note(self, task: Task) -> None:
        self._on_their_way[task.key] = task
        _logger.info("hand out %s", task.key)

    def _on_exit(self) -> None:
        # After an exception in its own code NNI's dispatcher leaves as quietly as at the end, and the
        # manager goes on waiting for it.
        why = "dispatcher.log in the log directory says why"
        self._end_unless_stopping(UsageError(f"NNI's tuner process has ended by itself; {why}"))

    _on_error = _on_exit

    def _end_unless_stopping(self, error: Exception) -> None:
        # While an experiment is being stopped, calls fail for no reason of its own.
        if not self._is_stopping():
            _end(error)

    def _is_stopping(self) -> bool:
        try:
            return self._manager.status()[0] in ("STOPPING", "STOPPED")
        except ManagerClosed:  # which a manager that stops is first, and then waits for this process
            return True
        except ManagerUnreachable:
            # One that is busy answers later, and lives.
            return self._manager_process is not None and not is_alive(self._manager_process)

    def _keep_looking(self) -> None:
        pause = threading.Event()
        while not pause.wait(_LOOK_EVERY):
            self._look()

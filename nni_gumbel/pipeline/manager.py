"""What NNI knows: an experiment's manager, its process and its REST interface; the experiments of this machine; the
tuner's name.

The manager is the only memory of an experiment: the tuner, every trial and `nni-gumbel wait` read the same trials
here. What comes back was written by whoever reaches NNI's port: it is read as plain JSON, never with `nni.load`, which
unpickles.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from nni_gumbel.errors import UsageError, first_line, user_code
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Trial, judged

# In the experiment's log directory: the one line with which the tuner ended. A tuner that starts
# removes what one before it has left.
ERROR_FILE = "gumbel-error.log"

# NNI's word for its training service of other hosts, by SSH.
REMOTE = "remote"

_API = "api/v1/nni"

_logger = logging.getLogger(__name__)


class ManagerUnreachable(UsageError):
    """NNI's manager does not answer: it is ending, or not there."""


class ManagerClosed(ManagerUnreachable):
    """Nobody listens where the manager was."""


class Manager:
    """A client of one experiment's manager.

    Args:
        url: of its REST interface.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._read: dict[str, tuple[Mapping[str, Any], Trial]] = {}
        # The manager is on this machine, or in its network: a proxy for the outside is not asked.
        self._session.trust_env = False
        # The manager closes idle connections after five seconds, perhaps just when one is used again.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(total=2, backoff_factor=0.2)))

    @classmethod
    def from_tuner_environment(cls) -> Manager:
        """The manager that started this tuner."""
        return cls(_api_beside(os.environ["NNI_TUNER_COMMAND_CHANNEL"], own_parts=1))

    @classmethod
    def from_trial_environment(cls) -> Manager:
        """The manager of this trial's experiment."""
        channel = os.environ["NNI_TRIAL_COMMAND_CHANNEL"]
        if os.environ.get("NNI_PLATFORM") == REMOTE:
            # It is of NNI's trial keeper on this host, which knows its manager's. Each keeper has a folder of its own.
            environment = Path(os.environ["NNI_OUTPUT_DIR"]).parents[1]
            keepers = environment.glob("trial_keeper*/trial_keeper_config.json")
            latest = max(keepers, key=lambda file: file.stat().st_mtime)
            channel = json.loads(latest.read_text(encoding="utf8"))["managerCommandChannel"]
        return cls(_api_beside(channel, own_parts=3))

    def trials(self) -> list[Trial]:
        """All trials so far, in no particular order; of one that has ended, the same object every time."""
        read = {}
        for record in self._get("trial-jobs"):
            before, trial = self._read.get(record["trialJobId"], (None, None))
            if before != record or trial.state == "pending":
                metric = record.get("finalMetricData")
                # NNI keeps that of a failed trial, and leaves it out of its list.
                if record.get("status") == "FAILED" and not metric:
                    metric = self._get(f"metric-data/{record['trialJobId']}?type=FINAL")
                trial = trial_of({**record, "finalMetricData": metric})
            read[record["trialJobId"]] = (record, trial)
        self._read = read
        return [trial for _, trial in read.values()]

    def trial(self, trial_id: str) -> Trial:
        """One trial. Its parameters are those that the portal shows for it.

        Raises:
            UsageError: the manager has no such trial.
        """
        record = self._get(f"trial-jobs/{trial_id}")
        if not isinstance(record, Mapping):
            raise UsageError(f"trial {trial_id}: NNI's manager at {self.url} does not know it")
        return trial_of(record)

    def experiment(self) -> dict[str, Any]:
        """The experiment's profile: ``id``, ``params`` (the YAML in NNI's own form), times."""
        return self._get("experiment")

    def status(self) -> tuple[str, list[str]]:
        """The experiment's status and the manager's errors."""
        answer = self._get("check-status")
        return answer["status"], list(answer.get("errors", []))

    def set_max_trial_number(self, number: int) -> None:
        """Change ``maxTrialNumber``; an experiment that has reached it becomes ``DONE``."""
        profile = self.experiment()
        profile["params"]["maxTrialNumber"] = number
        self._request("PUT", "experiment?update_type=MAX_TRIAL_NUM", json=profile)

    def add_time(self, seconds: int) -> None:
        """Let ``maxExperimentDuration`` end so much later than now."""
        profile = self.experiment()
        profile["params"]["maxExperimentDuration"] = f"{math.ceil(profile['execDuration']) + seconds}s"
        self._request("PUT", "experiment?update_type=MAX_EXEC_DURATION", json=profile)

    def last_word(self, trial_id: str) -> str:
        """The line of a trial's stderr that says why it failed."""
        try:
            text = self._request("GET", f"trial-file/{trial_id}/stderr").text
        except ManagerUnreachable:
            text = ""
        told = None if text == "stderr is empty." else error_line(text)
        return told or "it was killed, or ended without a word on stderr"

    def _get(self, path: str) -> Any:
        response = self._request("GET", path)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise ManagerUnreachable(f"NNI's manager at {self.url}: {path} does not answer in JSON") from None

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            response = self._session.request(method, f"{self.url}/{path}", timeout=10.0, **arguments)
            response.raise_for_status()
        except requests.RequestException as error:
            # Only an answer says more than the name of the error.
            why = first_line(error) if isinstance(error, requests.HTTPError) else type(error).__name__
            is_closed = isinstance(error, requests.ConnectionError) and not isinstance(
                error, requests.Timeout
            )
            raise (ManagerClosed if is_closed else ManagerUnreachable)(
                f"NNI's manager at {self.url} does not answer ({why}); is the experiment running?"
            ) from None
        return response


def error_line(stderr: str) -> str | None:
    """The last error of a trial's stderr, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    error = re.compile(r"nni-gumbel: |[\w.]*(Error|Exception|Interrupt|Exit)\b")
    return (list(filter(error.match, lines)) or lines or [None])[-1]


def receive_plain_json() -> None:
    """Let NNI's own code in this process, a tuner or a trial, read what it is sent with `json.loads`.

    It would read with `nni.load`, which runs the code that a parameter or a metric names.
    """
    import nni
    from nni.runtime import msg_dispatcher, msg_dispatcher_base

    nni.load = msg_dispatcher.load = msg_dispatcher_base.load = json.loads


def plan_of(experiment: Mapping[str, Any]) -> Plan:
    """The plan of an experiment's profile.

    Raises:
        UsageError: its settings or its search space are wrong.
    """
    return Plan.of(experiment_settings(experiment), experiment["params"].get("searchSpace"))


def experiment_settings(experiment: Mapping[str, Any]) -> ExperimentSettings:
    """The settings of an experiment's profile, without those that its search space varies.

    Raises:
        UsageError: one is wrong.
    """
    return ExperimentSettings.from_flat((experiment["params"].get("tuner") or {}).get("classArgs"))


def check_tuner(experiment: Mapping[str, Any]) -> None:
    """See that an experiment's profile is of one that this package's tuner runs.

    Raises:
        UsageError: another one does.
    """
    tuner = (experiment["params"].get("tuner") or {}).get("name")
    if str(tuner).lower() != NAME.lower():
        raise UsageError(f"ID: experiment {experiment['id']} runs the tuner {tuner!r}; give one of {NAME}")


def time_is_over(experiment: Mapping[str, Any]) -> bool:
    """Whether an experiment's profile says that ``maxExperimentDuration`` is used up."""
    most = experiment["params"].get("maxExperimentDuration")
    if most is None:
        return False
    from nni.experiment.config.utils import parse_time

    return experiment["execDuration"] > parse_time(most)


def check_params(params: Mapping[str, Any]) -> None:
    """See that an experiment asks NNI for nothing that does not go with this tuner.

    Args:
        params: the YAML in NNI's canonical form.

    Raises:
        UsageError: it does.
    """
    if params.get("assessor"):
        raise UsageError(
            "assessor: networks are compared after trainings of equal length, so none may be stopped early; "
            "remove the assessor"
        )
    service = params.get("trainingService") or {}
    platform = service.get("platform", "local") if isinstance(service, Mapping) else service
    if platform not in ("local", REMOTE):
        raise UsageError(
            f"trainingService: {service!r} is none for this tuner; give platform: local or {REMOTE}"
        )
    if platform == REMOTE and not service.get("nniManagerIp"):
        raise UsageError(
            "nniManagerIp: it is missing, and NNI's hosts would look for the manager on themselves; give the address "
            "of this machine that the hosts of machineList reach"
        )
    if service.get("reuseMode"):
        raise UsageError("trainingService: reuseMode: true ends in an error in NNI 3.0; remove it")


def is_remote(params: Mapping[str, Any]) -> bool:
    """Whether the trials of an experiment run on the hosts of its ``machineList``."""
    return (params.get("trainingService") or {}).get("platform") == REMOTE


def trial_command_of(params: Mapping[str, Any]) -> tuple[TrialCommand, Path]:
    """The trial command of an experiment, and the directory in which it runs.

    Args:
        params: the YAML in NNI's canonical form.

    Raises:
        UsageError: the command is not ours.
    """
    service = params["trainingService"]  # NNI copies both to there, where they stand at the top
    command = TrialCommand.from_trial_command(service.get("trialCommand") or "")
    return command, Path(service.get("trialCodeDirectory") or ".")


def _api_beside(channel: str, own_parts: int) -> str:
    """The REST address on the host, port and URL prefix of one of the manager's channels."""
    parts = urlsplit(channel)
    prefix = parts.path.strip("/").split("/")[:-own_parts]
    # `localhost` may mean ::1 first, where an older manager does not listen, and costs a second try.
    host = parts.netloc.replace("localhost", "127.0.0.1")
    return "/".join([f"http://{host}", *prefix, _API])


def trial_of(record: Mapping[str, Any]) -> Trial:
    """A trial from NNI's own record of it, as its REST interface and its database have it."""
    result = _decoded((record.get("finalMetricData") or [{}])[0].get("data"))
    packed = _decoded((record.get("hyperParameters") or [None])[0])
    start, end = (record[name] / 1000 if record.get(name) else None for name in ("startTime", "endTime"))
    return Trial(
        id=record["trialJobId"],
        sequence=record.get("sequenceId", -1),
        state=judged(record["status"], result, end, time.time()),
        parameters=_decoded((packed or {}).get("parameters")),
        result=result,
        start=start,
        end=end,
        place=record.get("logPath"),
    )


def _decoded(text: Any) -> dict[str, Any] | None:
    """JSON inside JSON, as often as NNI has wrapped it; ``None`` for all but an object."""
    while isinstance(text, str):
        try:
            text = json.loads(text)
        except ValueError:
            return None
    return text if isinstance(text, dict) else None


# -- the manager's process ------------------------------------------------------------------------------------
#
# After `kill -9` of a manager NNI's processes live on: a tuner connects by itself to whatever manager listens on that
# port next, which drops its own tuner for it; a trial works until its next report. Both end with it here.

_LOOK_EVERY = 0.5


def manager_process() -> psutil.Process | None:
    """The manager among this process's ancestors; ``None`` where there is none, as for a trial on another host."""
    for process in psutil.Process().parents():
        try:
            if any("nni_node" in word for word in process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. One that ended, but waits to be reaped, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with(process: psutil.Process | None) -> None:
    """Let this process end, with code 1, as soon as another one is gone."""

    def watch() -> None:
        while is_alive(process):
            time.sleep(_LOOK_EVERY)
        try:
            _logger.error("NNI's manager (process %d) is gone, and so this process ends", process.pid)
        finally:
            os._exit(1)

    if process is not None:
        threading.Thread(target=watch, name="gumbel-lifeline", daemon=True).start()


# -- the experiments on this machine -----------------------------------------------------------------
#
# `nnictl` and the managers keep a list of them (`~/nni-experiments/.experiment`); it says where an experiment's manager
# listens, but not truthfully whether it still runs: a killed one stays `RUNNING` there.


@dataclass(frozen=True)
class Experiment:
    """One experiment of NNI's list on this machine."""

    id: str
    portal: str
    directory: Path
    pid: int
    started: float

    @property
    def manager(self) -> Manager:
        """A client of its manager."""
        return Manager(f"{self.portal}/{_API}")

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    @property
    def is_stopped(self) -> bool:
        """Whether NNI's list says so by now."""
        return _listed().get(self.id, {}).get("status") == "STOPPED"

    @property
    def has_ended(self) -> bool:
        """Whether its manager is gone; one that was resumed meanwhile has another."""
        try:
            return not is_alive(psutil.Process(_listed()[self.id]["pid"]))
        except (KeyError, TypeError, psutil.Error):
            return True

    def tuners_line(self) -> str | None:
        """The line with which this run's tuner ended."""
        path = self.logs / ERROR_FILE
        try:
            # One from before a resume stays until the new tuner removes it.
            is_ours = path.stat().st_mtime >= self.started
            return path.read_text(encoding="utf8").strip() or None if is_ours else None
        except OSError:
            return None


def find_experiment(experiment_id: str | None = None) -> Experiment:
    """Look an experiment up in NNI's list; the newest one if no id is given.

    Raises:
        UsageError: there is none, or none with this id.
    """
    known = _listed()
    if not known:
        line = "no experiment was started on this machine; run `nni-gumbel create --config experiment.yml`"
        raise UsageError(line)
    newest_first = sorted(known, key=lambda name: known[name]["startTime"], reverse=True)
    name = experiment_id or newest_first[0]
    if name not in known:
        some = f"the newest are {', '.join(newest_first[:3])} (`nnictl experiment list --all`)"
        raise UsageError(f"ID: there is no experiment {name!r}; {some}")
    entry = known[name]
    prefix = f"/{entry['prefixUrl'].strip('/')}" if entry.get("prefixUrl") else ""
    return Experiment(
        id=name,
        # A manager that ended has no port any more.
        portal=f"http://127.0.0.1:{entry.get('port', 0)}{prefix}",
        directory=Path(entry["logDir"]).expanduser() / name,
        pid=entry["pid"],
        started=entry["startTime"] / 1000,
    )


def _listed() -> dict[str, dict[str, Any]]:
    from nni.tools.nnictl.config_utils import Experiments

    return {
        name: entry for name, entry in Experiments().get_all_experiments().items() if isinstance(entry, dict)
    }


# -- the tuner on NNI's list of algorithms, so that YAML can say `tuner: {name: GumbelSearch}` ----------------


NAME = "GumbelSearch"
CLASS_NAME = "nni_gumbel.pipeline.tuner.GumbelSearchTuner"


def register() -> None:
    """Make the tuner known to NNI; a second time changes nothing.

    Raises:
        UsageError: NNI's list cannot be read or written.
    """
    from nni.tools.package_utils import AlgoMeta, register_algo_meta

    # No validator: NNI 3.0 calls none for today's YAML, the tuner checks its settings itself.
    meta = AlgoMeta(
        name=NAME, alias=None, class_name=CLASS_NAME, accept_class_args=True, class_args=None,
        validator_class_name=None, algo_type="tuner", is_advisor=False, is_builtin=False, nni_version=None,
    )  # fmt: skip
    if not is_registered():
        with _nnis_list():
            register_algo_meta(meta)


def is_registered() -> bool:
    """Whether NNI knows the tuner under its name.

    Raises:
        UsageError: NNI's list cannot be read.
    """
    from nni.tools.package_utils import get_algo_meta

    with _nnis_list():
        meta = get_algo_meta(NAME)
    return meta is not None and meta.class_name == CLASS_NAME


def _nnis_list() -> AbstractContextManager[None]:
    """The list is a YAML file that a person may have edited or may not write."""
    from nni.runtime.config import get_config_directory

    path = get_config_directory() / "registered_algorithms.yml"
    return user_code("NNI's list of algorithms", f"see that {path} is sound and can be written")

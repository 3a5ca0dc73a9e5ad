"""What lies on other machines: the artifacts of an experiment, and the hosts of NNI's remote training service.

NNI's remote service (SSH) leaves the output directory of a trial on the host that ran it, and brings back its log
alone. What a trial made comes to where it is needed from one of three places, asked in this order: this machine itself;
``artifacts``, a folder or URL that all hosts write to; the host, over SFTP, with the experiment's own ``machineList``.
Files are copied, and none is run; a bundle counts only if its checksums are right and it is of the space
and the architecture that were asked for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.manager import experiment_settings, is_remote
from nni_gumbel.pipeline.records import FETCHED, Records
from nni_gumbel.pipeline.task import BUNDLE, Trial
from nni_gumbel.results.bundle import ARCHITECTURE, check_bundle
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import Stability

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_logger = logging.getLogger(__name__)

PATIENCE = 20.0
# What NNI tells of a trial on a host.
_PLACE = re.compile(
    r"(?P<host>[^:]+|\[.+\]):~/(?P<folder>nni-experiments/\w+/environments/[\w-]+/trials/\w+)"
)


# -- artifacts -------------------------------------------------------------------------------------------------


class StoreUnreachable(UsageError):
    """The store of the artifacts fails: it may answer the next attempt."""


@dataclass(frozen=True)
class Artifacts:
    """The folder of one experiment in ``artifacts``."""

    files: AbstractFileSystem
    root: str

    @classmethod
    def of(cls, experiment: Mapping[str, Any]) -> Artifacts | None:
        """The artifacts of an experiment's profile; ``None`` if it asks for none.

        Raises:
            UsageError: this machine cannot write there; a StoreUnreachable where the network may be why.
        """
        # Not the plan's: NNI keeps a search space that somebody has changed meanwhile, and no plan can be made of it.
        url = experiment_settings(experiment).artifacts
        return None if url is None else cls.at(url, experiment["id"])

    @classmethod
    def at(cls, url: str, experiment_id: str) -> Artifacts:
        """The artifacts of an experiment at a path or URL; see :meth:`of`."""
        try:
            files, root = fsspec.core.url_to_fs(url)
            found = cls(files, f"{root.rstrip('/')}/{experiment_id}")
            files.makedirs(found.root, exist_ok=True)
        # Each store has errors of its own for a network that fails, and a few of Python's for a person's mistake.
        except Exception as error:
            is_mistake = isinstance(error, (ImportError, ValueError, FileNotFoundError))
            remedy = "give a folder, or a URL of fsspec whose package is installed, that every host can write"
            raise (UsageError if is_mistake else StoreUnreachable)(
                f"artifacts: {url!r} on {socket.gethostname()}: {first_line(error)}; {remedy}"
            ) from error
        return found

    def put(self, source: Path, name: str) -> None:
        """Copy a file, or the files of a folder; what is not there is left out, what fails is a warning."""
        paths = [source] if source.is_file() else []
        if source.is_dir():
            paths = sorted(path for path in source.iterdir() if path.is_file())
        for path in paths:
            to = f"{self.root}/{name}" if path is source else f"{self.root}/{name}/{path.name}"
            try:
                self.files.makedirs(to.rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(path), to)
            # Whatever the library of a file system raises: the file lies on this host as well.
            except Exception as error:
                _logger.warning("%s cannot be written: %s", to, first_line(error))

    def put_output(self, output: Path, *names: str) -> None:
        """Copy files and folders of a trial's output directory."""
        for name in names:
            self.put(output / name, f"trials/{output.name}/{name}")

    def get(self, name: str, folder: Path) -> None:
        """Copy the files of a folder that are not there yet; what fails is a warning."""
        source = f"{self.root}/{name}"
        try:
            self.files.invalidate_cache()
            if self.files.isdir(source):
                _copy(self.files, source, folder)
        except Exception as error:  # as in `put`
            _logger.warning("%s cannot be read: %s", source, first_line(error))

    def mirror(self, folder: Path, name: str) -> None:
        """Leave in a folder of the artifacts what is in a folder here, each file of which is written once."""
        target, here = f"{self.root}/{name}", {path.name: path for path in folder.glob("*") if path.is_file()}
        try:
            self.files.invalidate_cache()
            there = self.files.ls(target, detail=False) if self.files.isdir(target) else []
            known = {PurePosixPath(path).name: path for path in there}
            for file in here.keys() - known.keys():
                self.put(here[file], f"{name}/{file}")
            for file in known.keys() - here.keys():
                self.files.rm_file(known[file])
        except Exception as error:  # as in `put`
            _logger.warning("%s is not up to date: %s", target, first_line(error))

    def remove(self, name: str) -> None:
        """Remove a folder."""
        try:
            if self.files.isdir(f"{self.root}/{name}"):
                self.files.rm(f"{self.root}/{name}", recursive=True)
        except Exception as error:  # as in `put`
            _logger.warning("%s/%s is not removed: %s", self.root, name, first_line(error))


def _copy(files: AbstractFileSystem, source: str, target: Path) -> None:
    """Copy a file, or the files of a folder, by their last names; files that are there stay."""
    if not files.isdir(source):
        files.get_file(source, str(target))
        return
    target.mkdir(parents=True, exist_ok=True)
    for entry in files.ls(source, detail=True):
        path = target / PurePosixPath(entry["name"]).name
        if entry["type"] == "file" and not path.exists():
            part = path.with_name(f".{path.name}.part")
            files.get_file(entry["name"], str(part))
            os.replace(part, path)


# -- what trials on other machines made ------------------------------------------------------------------------


def bring(records: Records, trials: Iterable[Trial], name: str, *, from_hosts: bool = True) -> dict[str, str]:
    """Copy a file or folder of some trials' output directories to ``records.outputs``, where it is missing.

    Args:
        records: of the experiment.
        trials: whose.
        name: in the output directory: a bundle is checked, too.
        from_hosts: whether to log in to hosts, as the manager's machine can.

    Returns:
        For each trial of which it was found nowhere, a line that says where it should be and what was in the way.
    """
    artifacts, reasons = None, {}
    try:
        artifacts = Artifacts.of(records.profile)
    except UsageError as error:
        reasons = {trial.id: [str(error)] for trial in trials}
    if artifacts is None and not is_remote(records.profile["params"]):
        return {}
    lacking = {trial.id: trial for trial in trials if not (records.outputs / trial.id / name).exists()}
    for files, folder_of in _sources(records, artifacts, lacking, from_hosts, reasons):
        for trial in list(lacking.values()):
            folder = folder_of(trial)
            if folder is None:
                continue
            target = records.outputs / trial.id / name
            part = target.with_name(f".{name}.{secrets.token_hex(4)}")
            try:
                if not files.exists(f"{folder}/{name}"):
                    if name != BUNDLE and files.exists(folder):
                        del lacking[trial.id]  # it has none
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(files, f"{folder}/{name}", part)
                if name == BUNDLE:
                    _check_bundle_of(records, trial, part)
                part.rename(target)
                del lacking[trial.id]
            # What SSH, a file system or a damaged file raises: another place may have it.
            except Exception as error:
                reasons.setdefault(trial.id, []).append(first_line(error))
            finally:
                shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    return {
        trial.id: f"{trial.place or records.outputs / trial.id}/{name}"
        + (f" ({'; '.join(reasons[trial.id])})" if trial.id in reasons else "")
        for trial in lacking.values()
    }


def bring_stability(records: Records) -> list[str]:
    """Bring the stability of trained networks, by which they are chosen; a line for each that is found nowhere."""
    unknown = bring(records, records.trainings, Stability.FILE).values()
    return [f"the choice is made without the stability in {where}" for where in unknown]


def _sources(
    records: Records,
    artifacts: Artifacts | None,
    lacking: Mapping[str, Trial],
    from_hosts: bool,
    reasons: dict[str, list[str]],
) -> Iterator[tuple[AbstractFileSystem, Callable[[Trial], str | None]]]:
    """File systems, and the output directory of a trial in each, as long as something is lacking."""
    # A host that NNI has connected to again has another environment.
    environments = [path for path in records.outputs.parents[1].glob("*") if path.name != FETCHED]

    def own(trial: Trial) -> str | None:
        folders = (environment / "trials" / trial.id for environment in environments)
        return next((str(folder) for folder in folders if folder.is_dir()), None)

    yield LocalFileSystem(), own
    if artifacts is not None:
        yield artifacts.files, lambda trial: f"{artifacts.root}/trials/{trial.id}"
    if not from_hosts or not is_remote(records.profile["params"]):
        return
    for machine in records.profile["params"]["trainingService"]["machineList"]:
        on_it = {name: found for name, trial in lacking.items() if (found := _folder_on(machine, trial))}
        if not on_it:
            continue
        try:
            files = connect(machine)
        except UsageError as error:
            for name in on_it:
                reasons.setdefault(name, []).append(str(error))
            continue
        with files.client:
            yield files, lambda trial, on_it=on_it: on_it.get(trial.id)


def _folder_on(machine: Mapping[str, Any], trial: Trial) -> str | None:
    """A trial's output directory, from the home of a host; ``None`` if it is on another one."""
    found = _PLACE.fullmatch(trial.place or "")
    return found["folder"] if found and found["host"] == machine["host"] else None


def _check_bundle_of(records: Records, trial: Trial, folder: Path) -> None:
    """See that a bundle is whole, and of what the trial was to train: its space is imported by name."""
    facts, reference = check_bundle(folder), records.command.reference
    told = [facts.get("space"), facts.get("arguments"), json.loads((folder / ARCHITECTURE).read_text("utf8"))]
    architecture = (trial.task and trial.task.architecture) or trial.report.architecture
    if canonical(told) != canonical([str(reference), reference.arguments, architecture]):
        raise UsageError(f"the bundle is of {told[0]}, not of the network that trial {trial.id} has trained")


def connect(machine: Mapping[str, Any]) -> Any:
    """Log in to a host as NNI does: by its key file or its password, and whatever its own key is.

    Args:
        machine: an entry of ``machineList``, in NNI's canonical form.

    Returns:
        Its files, an ``SFTPFileSystem`` of fsspec; paths that are not absolute begin at the home.

    Raises:
        UsageError: paramiko is not installed, or the login fails.
    """
    try:
        import paramiko
        from fsspec.implementations.sftp import SFTPFileSystem
    except ImportError as error:
        raise UsageError(f'{first_line(error)}; run `pip install "nni-gumbel[remote]"`') from error
    key = machine.get("sshKeyFile")
    secret = (
        {"key_filename": key, "passphrase": machine.get("sshPassphrase")}
        if key
        else {"password": machine["password"]}
    )
    try:
        return SFTPFileSystem(
            machine["host"], port=machine["port"], username=machine["user"], **secret, timeout=PATIENCE,
            allow_agent=False, look_for_keys=False, skip_instance_cache=True,
        )  # fmt: skip
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise UsageError(
            f"logging in to {name_of(machine)} as {machine['user']!r} fails: {first_line(error)}; see that it runs, "
            "and correct machineList"
        ) from error


def name_of(machine: Mapping[str, Any]) -> str:
    """A host, as its findings and errors name it."""
    return f"{machine['host']}:{machine['port']}"

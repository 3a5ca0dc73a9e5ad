"""What there is on this machine: cores, installed versions, `nnictl`, ports, GPUs.

The bounds of versions are written once, in `setup.cfg`; they are read from the installed package's own
metadata. Every finding is one line, and a bad one ends with its remedy.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.starter import DISTRIBUTION

OK, WARN, FAIL = "ok", "warn", "FAIL"

DEFAULT_PORT = 8080  # nnictl's


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: how grave it is, what was looked at, what was found and the remedy."""

    level: str
    subject: str
    text: str


def finding_of(subject: str, check: Callable[[], str]) -> Finding:
    """What a check says; what it refuses is to be mended."""
    try:
        return Finding(OK, subject, check())
    except UsageError as error:
        return Finding(FAIL, subject, str(error))


def usable_cores() -> int:
    """The cores that this process may run on (its CPU affinity): what a trial shares with the others."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version_findings(requirements: Iterable[str], installed: Mapping[str, str]) -> list[Finding]:
    """Compare installed versions with requirements.

    Args:
        requirements: as in package metadata (PEP 508); those of extras and other platforms are left out.
        installed: normalised name -> version of every distribution that is there.
    """
    found = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonicalize_name(requirement.name))
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            found.append(Finding(FAIL, requirement.name, f'is not installed; run `pip install "{wanted}"`'))
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(
                Finding(
                    FAIL, requirement.name, f'{version} does not fit {wanted}; run `pip install "{wanted}"`'
                )
            )
        else:
            bounds = f" ({requirement.specifier})" if requirement.specifier else ""
            found.append(Finding(OK, requirement.name, f"{version}{bounds}"))
    return found


def python_finding(specifier: str, version: str) -> Finding:
    """Compare Python's version with ``Requires-Python``."""
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(OK, "python", f"{version} ({specifier})")
    return Finding(
        FAIL, "python", f"{version} does not fit {specifier}; make an environment with Python 3.11"
    )


def installed_version_findings() -> Iterator[Finding]:
    """Python, everything that this package requires, and the torch that torchvision was built for."""
    try:
        own = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Finding(
            FAIL, DISTRIBUTION, "is not installed in this environment; run `pip install .` in its clone"
        )
        return
    installed = {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    yield python_finding(own["Requires-Python"], platform.python_version())
    yield from version_findings(metadata.requires(DISTRIBUTION) or [], installed)
    if "torchvision" in installed:
        pair = [text for text in metadata.requires("torchvision") or [] if Requirement(text).name == "torch"]
        for finding in version_findings(pair, installed):
            yield Finding(finding.level, "torch for torchvision", finding.text)


def command_findings() -> Iterator[Finding]:
    """Whether the shell finds `nnictl` and `nni-gumbel` of this environment, and whether `nnictl` starts."""
    schemes = (sysconfig.get_default_scheme(), f"{os.name}_user")
    ours = {Path(sysconfig.get_path("scripts", scheme)).resolve() for scheme in schemes}
    here = sysconfig.get_path("scripts")
    for command in ("nnictl", "nni-gumbel"):  # the second is what a trial command runs
        path = shutil.which(command)
        if path is None:
            remedy = f"activate the environment, or `export PATH={here}:$PATH`"
            yield Finding(FAIL, command, f"is not on the PATH; {remedy}")
        elif Path(path).parent.resolve() not in ours:
            remedy = f"activate this one, or `export PATH={here}:$PATH`"
            yield Finding(FAIL, command, f"{path} belongs to another environment; {remedy}")
        elif command == "nnictl":
            yield _start(path)
        else:
            yield Finding(OK, command, path)


def _start(nnictl: str) -> Finding:
    try:
        ran = subprocess.run([nnictl, "--version"], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(
            FAIL, "nnictl", f"does not start ({error}); run `pip install --force-reinstall nni==3.0`"
        )
    if ran.returncode == 0:
        return Finding(OK, "nnictl", f"{nnictl} starts, version {ran.stdout.strip()}")
    line = next(reversed(ran.stderr.strip().splitlines()), f"exit code {ran.returncode}")
    remedy = "setuptools<81" if "pkg_resources" in line else "nni==3.0"
    return Finding(FAIL, "nnictl", f'does not start ({line}); run `pip install "{remedy}"`')


def port_findings(port: int, *, next_is_used: bool, owners: Mapping[int, str]) -> Iterator[Finding]:
    """Whether the manager's port is free, and the next one.

    Args:
        port: what `nnictl create --port` will be given.
        next_is_used: NNI listens on the next port, too (every training service but the local one).
        owners: port -> id of the running experiments on this machine.
    """
    other = f"`nnictl create --config experiment.yml --port {free_pair(port + 2)}`"
    for number, needed in ((port, True), (port + 1, next_is_used)):
        reason = _taken(number)
        owner = owners.get(number)
        stop = f"`nnictl stop {owner}` ends experiment {owner} there, or " if owner else ""
        if reason is None:
            yield Finding(OK, f"port {number}", "free")
        elif needed:
            yield Finding(FAIL, f"port {number}", f"{reason}; {stop}take another: {other}")
        else:
            yield Finding(
                WARN, f"port {number}", f"{reason}; a local experiment does without it, a remote one needs it"
            )


def _taken(port: int) -> str | None:
    """Why nobody can listen on a port; ``None`` if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # all interfaces, as NNI's manager does
        except OverflowError:
            return "is no port number (0 to 65535)"
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return None


def free_pair(first: int) -> int:
    """The lowest port from ``first`` on that is free, and the next one with it."""
    candidates = range(max(1024, first), 65534)
    return next(
        (number for number in candidates if not _taken(number) and not _taken(number + 1)), DEFAULT_PORT
    )


# -- GPUs --------------------------------------------------------------------------------------------
#
# NNI 3.0 gives a trial trialGpuNumber / maxTrialNumberPerGpu of a GPU, and its scheduler
# (nni_node/common/trial_keeper/task_scheduler/scheduler.js) has three traps:
#
# - it refuses every trial unless that share is *below* the number of GPUs: one whole GPU of one never is;
# - with useActiveGpu: false it leaves out every GPU that ran a process when it last looked, which may be
#   a trial of this very experiment that has ended since;
# - a refused trial is asked for again at once, without a pause: the manager answers nobody any more, and
#   starts processes until the machine stands still. So there must be room for trialConcurrency trials.

# A share of 1/3 is added up three times; NNI allows for the rounding, too.
_FULL = 1.001


@dataclass(frozen=True)
class Gpu:
    """One GPU as NNI sees it."""

    model: str
    is_active: bool


def visible_gpus() -> list[Gpu]:
    """The GPUs of this machine, found by NNI's own collector; none without an NVIDIA driver."""
    from nni.tools.nni_manager_scripts.collect_gpu_info import collect

    info = collect(True)
    if info is None:  # no driver, or one that does not answer: NNI finds no GPU either
        return []
    active = {process.gpu_index for process in info.processes}
    return [Gpu(str(gpu.model), gpu.index in active) for gpu in info.gpus]


def gpu_findings(config: Mapping[str, Any], gpus: Sequence[Gpu]) -> list[Finding]:
    """What the GPU lines of an experiment lead to on a local machine with these GPUs.

    Args:
        config: the experiment's YAML in NNI's canonical form.
        gpus: the GPUs that NNI sees.
    """
    service = config["trainingService"]
    number = service.get("trialGpuNumber")
    seen = ", ".join(gpu.model for gpu in gpus) or "none"
    summary = Finding(
        OK, "GPUs", f"{len(gpus)} visible ({seen})" if gpus else "none visible, trials use the CPU"
    )
    if not number:
        if gpus:
            why = "trialGpuNumber: 0 hides them from trials" if number == 0 else (
                "without trialGpuNumber all trials share the first; uncomment the GPU lines of experiment.yml"
            )  # fmt: skip
            return [Finding(WARN, "GPUs", f"{summary.text}; {why}")]
        return [summary]

    def fail(text: str) -> list[Finding]:
        return [summary, Finding(FAIL, "GPU lines", text)]

    slots, concurrency = service.get("maxTrialNumberPerGpu", 1), config["trialConcurrency"]
    share = number / slots
    if not gpus:
        return fail(
            f"trialGpuNumber: {number}, but NNI sees no GPU and the experiment would end at its start; "
            "remove trialGpuNumber, or install NVIDIA's driver"
        )
    if share >= len(gpus):
        return fail(
            f"trialGpuNumber: {number} with maxTrialNumberPerGpu: {slots} never starts a trial on {_count(len(gpus))}: "
            f"NNI wants their quotient below the number of GPUs; set maxTrialNumberPerGpu: {number // len(gpus) + 1}"
        )
    indices = service.get("gpuIndices")
    outside = sorted(set(indices or ()) - set(range(len(gpus))))
    if outside:
        return fail(f"gpuIndices: {outside[0]} does not exist; give numbers from 0 to {len(gpus) - 1}")
    allowed = [gpu for index, gpu in enumerate(gpus) if indices is None or index in indices]
    if not service.get("useActiveGpu"):
        idle = [gpu for gpu in allowed if not gpu.is_active]
        if len(idle) < len(allowed):
            return fail(
                f"useActiveGpu: false leaves out {_count(len(allowed) - len(idle))} with other processes, and NNI's "
                "manager freezes when no GPU is left; set useActiveGpu: true"
            )
        if concurrency > 1:
            return fail(
                "useActiveGpu: false leaves out GPUs on which this experiment's own trials ran at the last look, and "
                "NNI's manager freezes when no GPU is left; set useActiveGpu: true"
            )
    # Halves are rounded up, as JavaScript does.
    whole = math.floor(share + 0.5)
    room = len(allowed) * math.floor(_FULL / share) if share < 1 else len(allowed) // whole
    if concurrency > room:
        remedy = f"set trialConcurrency: {room}" if room else "lower trialGpuNumber or widen gpuIndices"
        return fail(
            f"trialConcurrency: {concurrency} is more than the {room} that have room on {_count(len(allowed))}, and "
            f"NNI's manager freezes over the next one; {remedy}"
        )
    return [summary, Finding(OK, "GPU lines", f"{concurrency} trials at a time, room for {room}")]


def _count(gpus: int) -> str:
    return f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"

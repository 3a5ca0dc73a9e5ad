"""What there is on this machine: installed versions, the two commands, ports, GPUs.

The bounds of versions are written once, in `setup.cfg`; they are read from the installed package's own metadata.
Every finding is one line, and a bad one ends with its remedy.
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
from packaging.utils import canonicalize_name

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.starter import DISTRIBUTION

OK, WARN, FAIL = "ok", "warn", "FAIL"


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


def installed_version_findings() -> Iterator[Finding]:
    """Python, everything that this package requires, and the torch that torchvision was built for."""
    try:
        own = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        remedy = "run `pip install .` in its clone"
        yield Finding(FAIL, DISTRIBUTION, f"is not installed in this environment; {remedy}")
        return
    installed = {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    installed["python"] = platform.python_version()
    required = [f"python{own['Requires-Python']}", *(metadata.requires(DISTRIBUTION) or [])]
    yield from version_findings(required, installed)
    if "torchvision" in installed:
        pair = [text for text in metadata.requires("torchvision") or [] if Requirement(text).name == "torch"]
        for finding in version_findings(pair, installed):
            yield Finding(finding.level, "torch for torchvision", finding.text)


def version_findings(requirements: Iterable[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """Compare installed versions with requirements.

    Args:
        requirements: as in package metadata (PEP 508); those of extras and other platforms are left out.
        installed: normalised name -> version of every distribution that is there, and of ``python``.
    """
    for text in requirements:
        requirement = Requirement(text)
        name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonicalize_name(name))
        remedy = (
            "make an environment with Python 3.11" if name == "python" else f'run `pip install "{wanted}"`'
        )
        if version is None:
            yield Finding(FAIL, name, f"is not installed; {remedy}")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(FAIL, name, f"{version} does not fit {wanted}; {remedy}")
        else:
            yield Finding(
                OK, name, f"{version} ({requirement.specifier})" if requirement.specifier else version
            )


def command_findings() -> Iterator[Finding]:
    """Whether the shell finds `nnictl` and `nni-gumbel` of this environment, and whether `nnictl` starts."""
    schemes = (sysconfig.get_default_scheme(), f"{os.name}_user")
    ours = {Path(sysconfig.get_path("scripts", scheme)).resolve() for scheme in schemes}
    remedy = f"or `export PATH={sysconfig.get_path('scripts')}:$PATH`"
    for command in ("nnictl", "nni-gumbel"):  # the second is what a trial command runs
        path = shutil.which(command)
        if path is None:
            yield Finding(FAIL, command, f"is not on the PATH; activate the environment, {remedy}")
        elif Path(path).parent.resolve() not in ours:
            yield Finding(
                FAIL, command, f"{path} belongs to another environment; activate this one, {remedy}"
            )
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
    for number, needed in ((port, True), (port + 1, next_is_used)):
        reason, owner = _taken(number), owners.get(number)
        if reason is None:
            yield Finding(OK, f"port {number}", "free")
        elif needed:
            stop = f"`nnictl stop {owner}` ends experiment {owner} there, or " if owner else ""
            other = f"`nnictl create --config experiment.yml --port {free_pair(port + 2)}`"
            yield Finding(FAIL, f"port {number}", f"{reason}; {stop}take another: {other}")
        else:
            without = "a local experiment does without it, a remote one needs it"
            yield Finding(WARN, f"port {number}", f"{reason}; {without}")


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
    """The lowest port from ``first`` on that is free, and the next one with it; nnictl's own if there is none."""
    candidates = range(max(1024, first), 65534)
    return next((port for port in candidates if not _taken(port) and not _taken(port + 1)), 8080)


# -- GPUs ----------------------------------------------------------------------------------------------
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


def gpu_findings(config: Mapping[str, Any], gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """What the GPU lines of an experiment lead to on a local machine with these GPUs.

    Args:
        config: the experiment's YAML in NNI's canonical form.
        gpus: the GPUs that NNI sees.
    """
    number = config["trainingService"].get("trialGpuNumber")
    seen = f"{len(gpus)} visible ({', '.join(gpu.model for gpu in gpus)})"
    if not gpus:
        yield Finding(OK, "GPUs", "none visible, trials use the CPU")
    elif number:
        yield Finding(OK, "GPUs", seen)
    else:
        why = "trialGpuNumber: 0 hides them from trials" if number == 0 else (
            "without trialGpuNumber all trials share the first; uncomment the GPU lines of experiment.yml"
        )  # fmt: skip
        yield Finding(WARN, "GPUs", f"{seen}; {why}")
    if number:
        yield finding_of("GPU lines", lambda: _gpu_lines(config, gpus))


def _gpu_lines(config: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    service, concurrency = config["trainingService"], config["trialConcurrency"]
    number, slots = service["trialGpuNumber"], service.get("maxTrialNumberPerGpu", 1)
    share = number / slots
    if not gpus:
        raise UsageError(
            f"trialGpuNumber: {number}, but NNI sees no GPU and the experiment would end at its start; "
            "remove trialGpuNumber, or install NVIDIA's driver"
        )
    if share >= len(gpus):
        raise UsageError(
            f"trialGpuNumber: {number} with maxTrialNumberPerGpu: {slots} never starts a trial on {_count(len(gpus))}: "
            f"NNI wants their quotient below the number of GPUs; set maxTrialNumberPerGpu: {number // len(gpus) + 1}"
        )
    indices = service.get("gpuIndices")
    outside = sorted(set(indices or ()) - set(range(len(gpus))))
    if outside:
        raise UsageError(f"gpuIndices: {outside[0]} does not exist; give numbers from 0 to {len(gpus) - 1}")
    allowed = [gpu for index, gpu in enumerate(gpus) if indices is None or index in indices]
    active = sum(gpu.is_active for gpu in allowed)
    if not service.get("useActiveGpu") and (active or concurrency > 1):
        left_out = f"{_count(active)} with other processes" if active else (
            "GPUs on which this experiment's own trials ran at the last look"
        )  # fmt: skip
        raise UsageError(
            f"useActiveGpu: false leaves out {left_out}, and NNI's manager freezes when no GPU is left; "
            "set useActiveGpu: true"
        )
    # Halves are rounded up, as JavaScript does.
    whole = math.floor(share + 0.5)
    room = len(allowed) * math.floor(_FULL / share) if share < 1 else len(allowed) // whole
    if concurrency > room:
        remedy = f"set trialConcurrency: {room}" if room else "lower trialGpuNumber or widen gpuIndices"
        raise UsageError(
            f"trialConcurrency: {concurrency} is more than the {room} that have room on {_count(len(allowed))}, and "
            f"NNI's manager freezes over the next one; {remedy}"
        )
    return f"{concurrency} trials at a time, room for {room}"


def _count(gpus: int) -> str:
    return f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"

"""What there is on this machine: installed versions, the two commands, GPUs.

The bounds of versions are written once, in `setup.cfg`; they are read from the installed package's own metadata.
Every finding is one line, and a bad one ends with its remedy.
"""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.start import DISTRIBUTION

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


def version_findings(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """Everything that an installed distribution requires; those of extras and other platforms are left out."""
    try:
        required = map(Requirement, metadata.requires(distribution) or [])
    except metadata.PackageNotFoundError:
        text = f"is not installed in this environment; run `pip install {distribution}`"
        yield Finding(FAIL, distribution, text)
        return
    for each in required:
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield finding_of(each.name, partial(_version, each))


def _version(required: Requirement) -> str:
    remedy = f'run `pip install "{required.name}{required.specifier}"`'
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        raise UsageError(f"is not installed; {remedy}") from None
    if not required.specifier.contains(version, prereleases=True):
        raise UsageError(f"{version} does not fit {required.specifier}; {remedy}")
    return f"{version} ({required.specifier})" if required.specifier else version


def command_findings() -> Iterator[Finding]:
    """Whether the shell finds `nnictl` and `nni-gumbel`, which a trial command runs, of this environment."""
    schemes = (sysconfig.get_default_scheme(), f"{os.name}_user")
    ours = {Path(sysconfig.get_path("scripts", scheme)).resolve() for scheme in schemes}
    for command in ("nnictl", "nni-gumbel"):
        path = shutil.which(command)
        if path is not None and Path(path).parent.resolve() in ours:
            yield Finding(OK, command, path)
            continue
        found = "is not on the PATH" if path is None else f"{path} belongs to another environment"
        remedy = f"activate this one, or `export PATH={sysconfig.get_path('scripts')}:$PATH`"
        yield Finding(FAIL, command, f"{found}; {remedy}")


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
    if not gpus:
        yield Finding(OK, "GPUs", "none visible, trials use the CPU")
    else:
        seen = f"{len(gpus)} visible ({', '.join(gpu.model for gpu in gpus)})"
        unused = {
            None: "; without trialGpuNumber all trials share the first; uncomment the GPU lines of experiment.yml",
            0: "; trialGpuNumber: 0 hides them from trials",
        }.get(number, "")
        yield Finding(WARN if unused else OK, "GPUs", seen + unused)
    if number:
        yield finding_of("GPU lines", partial(_gpu_lines, config, gpus))


def _gpu_lines(config: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    service, concurrency, count = config["trainingService"], config["trialConcurrency"], len(gpus)
    number, slots = service["trialGpuNumber"], service.get("maxTrialNumberPerGpu", 1)
    share = number / slots
    if not gpus:
        raise UsageError(
            f"trialGpuNumber: {number}, but NNI sees no GPU and the experiment would end at its start; "
            "remove trialGpuNumber, or install NVIDIA's driver"
        )
    if share >= count:
        raise UsageError(
            f"trialGpuNumber: {number} with maxTrialNumberPerGpu: {slots} never starts a trial on {count} GPU(s): "
            f"NNI wants their quotient below the number of GPUs; set maxTrialNumberPerGpu: {number // count + 1}"
        )
    indices = service.get("gpuIndices")
    outside = sorted(set(indices or ()) - set(range(count)))
    if outside:
        raise UsageError(f"gpuIndices: {outside[0]} does not exist; give numbers from 0 to {count - 1}")
    allowed = [gpu for index, gpu in enumerate(gpus) if indices is None or index in indices]
    active = sum(gpu.is_active for gpu in allowed)
    if not service.get("useActiveGpu") and (active or concurrency > 1):
        raise UsageError(
            f"useActiveGpu: false leaves out GPUs with a process at NNI's last look ({active} now; trials of this "
            "experiment count), and NNI's manager freezes when no GPU is left; set useActiveGpu: true"
        )
    # Halves are rounded up, as JavaScript does.
    whole = math.floor(share + 0.5)
    room = len(allowed) * math.floor(_FULL / share) if share < 1 else len(allowed) // whole
    if concurrency > room:
        remedy = f"set trialConcurrency: {room}" if room else "lower trialGpuNumber or widen gpuIndices"
        raise UsageError(
            f"trialConcurrency: {concurrency} is more than the {room} that have room on {len(allowed)} GPU(s), and "
            f"NNI's manager freezes over the next one; {remedy}"
        )
    return f"{concurrency} trials at a time, room for {room}"

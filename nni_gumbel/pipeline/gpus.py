"""Whether NNI would ever start a trial on this machine's GPUs.

NNI 3.0 gives a trial ``trialGpuNumber / maxTrialNumberPerGpu`` of a GPU, and its scheduler
(``nni_node/common/trial_keeper/task_scheduler/scheduler.js``) has three traps:

- it refuses every trial unless that share is *below* the number of GPUs: one whole GPU of one never is;
- with ``useActiveGpu: false`` it leaves out every GPU that ran a process when it last looked, which may be
  a trial of this very experiment that has ended since;
- a refused trial is asked for again at once, without a pause: the manager answers nobody any more, and
  starts processes until the machine stands still. So there must be room for ``trialConcurrency`` trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nni_gumbel.pipeline.host import FAIL, OK, WARN, Finding

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

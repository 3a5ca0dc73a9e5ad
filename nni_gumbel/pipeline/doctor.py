"""What would go wrong with an experiment, told before it starts: the checks of `nni-gumbel doctor`.

NNI 3.0 calls no validator for today's YAML, so a mistake in it shows only in a started experiment. The doctor looks at
this machine, reads the YAML as `nnictl create` does, and asks the functions that the tuner and the trials will ask, in
the order in which they would fail; `nni-gumbel create` asks those that need no torch. Every finding is one line, and a
bad one ends with its remedy.
"""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import loky
import yaml
from packaging.requirements import Requirement

from nni_gumbel.errors import UsageError
from nni_gumbel.names import ignore_what_nni_wonders_about, inside
from nni_gumbel.pipeline.manager import NAME, check_params, is_registered, plan_of, trial_command_of
from nni_gumbel.pipeline.start import DISTRIBUTION
from nni_gumbel.search.settings import without_effect

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: how grave it is, what was looked at, what was found and the remedy."""

    level: str
    subject: str
    text: str


def _finding(subject: str, check: Callable[[], str]) -> Finding:
    """What a check says; what it refuses is to be mended."""
    try:
        return Finding(OK, subject, check())
    except UsageError as error:
        return Finding(FAIL, subject, str(error))


def examine(config_file: str | Path | None) -> Iterator[Finding]:
    """All checks, each as soon as it is made.

    Args:
        config_file: the experiment's YAML; ``None`` looks at the machine alone.
    """
    yield from version_findings()
    # Each torchvision is built for one torch.
    yield from (each for each in version_findings("torchvision") if each.subject == "torch")
    yield from command_findings()
    yield _finding("tuner", _registration)
    config: dict[str, Any] = {"trainingService": {}, "trialConcurrency": 1}
    if config_file is not None:
        try:
            config = read_config(config_file)
        except UsageError as error:
            yield Finding(FAIL, "YAML", str(error))
        else:
            yield Finding(OK, "YAML", f"{config_file} is one that NNI accepts")
            yield from config_findings(config)
    gpus = visible_gpus()
    yield from gpu_findings(config, gpus)
    if gpus:
        import torch

        seen = torch.cuda.device_count()
        remedy = "" if seen >= len(gpus) else "; install a CUDA build of torch that fits the driver"
        text = f"{torch.__version__} sees {seen} of {len(gpus)} GPUs{remedy}"
        yield Finding(WARN if remedy else OK, "torch", text)


def check_before_start(config_file: str | Path) -> None:
    """What takes seconds, for `nni-gumbel create`: NNI's own checks, the settings, the trial command, the tuner's name.

    Raises:
        UsageError: the first of them that fails.
    """
    for finding in (*quick_findings(read_config(config_file)), _finding("tuner", _registration)):
        if finding.level == FAIL:
            raise UsageError(finding.text)


# -- the experiment ------------------------------------------------------------------------------------------


def read_config(config_file: str | Path) -> dict[str, Any]:
    """An experiment's YAML in NNI's canonical form, checked by NNI's own code.

    Raises:
        UsageError: there is no such file, it is not YAML, or NNI does not accept it.
    """
    path = Path(config_file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except OSError as error:
        line = f"{path}: cannot be read ({error.strerror}); `nni-gumbel init DIR` writes one"
        raise UsageError(line) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: holds no names and values; `nni-gumbel init DIR` writes an example")
    # A mistake that NNI meets with an error of Python's own.
    service = content.get("trainingService")
    if not isinstance(service, Mapping) or service.get("platform") != "local":
        raise UsageError(f"trainingService: {service!r} is none for this tuner; give platform: local")

    from nni.experiment.config import ExperimentConfig, utils

    utils.set_base_path(path.parent)
    try:
        return ExperimentConfig(**content).json()
    except Exception as error:  # whatever NNI's classes raise, an AssertionError without a text among them
        text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__
        raise UsageError(f"{path}: NNI refuses it: {' '.join(text.split())}") from error
    finally:
        utils.unset_base_path()  # NNI's own `load` forgets it after an error


def quick_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """What can be told of a YAML, in NNI's canonical form, without torch and without a person's code."""
    name = (config.get("tuner") or {}).get("name")
    if str(name).lower() != NAME.lower():
        yield Finding(FAIL, "tuner", f"name: {name!r} is another tuner; give tuner: {{name: {NAME}}}")
        return
    cores, concurrency = loky.cpu_count(), config["trialConcurrency"]
    if concurrency > cores:
        slower = f"{concurrency} trials share {cores} cores and slow each other down"
        yield Finding(WARN, "trialConcurrency", f"{slower}; give at most {cores}")
    yield _finding("settings", partial(_settings, config))
    yield _finding("trial command", partial(_command, config))


def _settings(config: Mapping[str, Any]) -> str:
    check_params(config)
    plan = plan_of({"params": config})
    plan.check_trial_limit(config.get("maxTrialNumber"))
    settings = plan.settings
    return (
        f"{len(plan.combinations)} combination(s) x {settings.search_seeds} search(es) of {settings.search_epochs} "
        f"epochs, {settings.train_seeds} training(s) of {settings.train_epochs} for each network found; at most "
        f"{plan.trial_count} trials if none fails"
    )


def _command(config: Mapping[str, Any]) -> str:
    command, directory = trial_command_of(config)
    command.check(directory)
    return f"runs in {directory}"


def config_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything that the YAML says, in NNI's canonical form, but its GPU lines."""
    failed = set()
    for finding in quick_findings(config):
        yield finding
        failed |= {finding.subject} if finding.level == FAIL else set()
    if failed & {"tuner", "trial command"}:
        return
    command, directory = trial_command_of(config)
    plan = None if failed else plan_of({"params": config})
    searches = [] if plan is None else [variant.search for variant in plan.variants]

    def search() -> str:
        # Imports torch, which the checks of the machine may have found to be missing.
        from nni_gumbel.pipeline.rehearsal import rehearsed

        if command.evaluator is None and plan is not None and plan.settings.metric not in ("acc", "loss"):
            raise UsageError(
                f"metric: the built-in classification logs acc and loss, not {plan.settings.metric!r}; set metric: "
                "acc, or name an --evaluator of your own"
            )
        return rehearsed(command, searches)

    with inside(directory), warnings.catch_warnings():
        ignore_what_nni_wonders_about()
        yield _finding("search", search)
    lines = (line for each in searches for line in without_effect(each, command.cost is not None))
    yield from (Finding(WARN, "costs", line) for line in dict.fromkeys(lines))


# -- versions and commands -----------------------------------------------------------------------------------
#
# The bounds of versions are written once, in `setup.cfg`, and read from the installed package's own metadata.


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
            yield _finding(each.name, partial(_version, each))


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


def _registration() -> str:
    if not is_registered():
        raise UsageError(f"{NAME} is not registered with NNI in this environment; run `nni-gumbel register`")
    return f"{NAME} is registered with NNI"


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
        yield _finding("GPU lines", partial(_gpu_lines, config, gpus))


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

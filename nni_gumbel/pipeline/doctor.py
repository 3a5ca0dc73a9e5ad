"""The checks of `nni-gumbel doctor`: what would go wrong, told before anything starts.

NNI 3.0 calls no validator for today's YAML, so a mistake in it shows only in a started experiment.
The doctor reads the YAML as `nnictl create` does and then asks the same functions that the tuner and the
trials will ask, in the order in which they would fail.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import loky
import yaml

from nni_gumbel.data import DIRECTORY_FIELD, DOWNLOADED
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.machine import (
    FAIL,
    OK,
    WARN,
    Finding,
    command_findings,
    finding_of,
    gpu_findings,
    installed_version_findings,
    port_findings,
    visible_gpus,
)
from nni_gumbel.pipeline.manager import NAME, is_registered, running_experiments, trial_command_of
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.tuner import ASSESSOR_REFUSED
from nni_gumbel.search.settings import SearchSettings, without_effect


def examine(config_file: str | Path | None, port: int) -> Iterator[Finding]:
    """All checks, each as soon as it is made.

    Args:
        config_file: the experiment's YAML; ``None`` looks at the machine alone.
        port: the port that `nnictl create` will be given.
    """
    yield from installed_version_findings()
    yield from command_findings()
    yield finding_of("tuner", _registration)
    config = None
    if config_file is not None:
        try:
            config = read_config(config_file)
        except UsageError as error:
            yield Finding(FAIL, "YAML", str(error))
        else:
            yield Finding(OK, "YAML", f"{config_file} is one that NNI accepts")
            yield from config_findings(config)
    service = config["trainingService"] if config else {"platform": "local"}
    is_local = service.get("platform") == "local"
    yield from port_findings(port, next_is_used=not is_local, owners=running_experiments())
    if not is_local:
        yield Finding(
            WARN, "GPUs", f"platform {service.get('platform')!r}: run the doctor on its machines, too"
        )
    else:
        gpus = visible_gpus()
        yield from gpu_findings(config or {"trainingService": service, "trialConcurrency": 1}, gpus)
        if gpus:
            yield _torch_finding(len(gpus))


def _registration() -> str:
    if not is_registered():
        raise UsageError(f"{NAME} is not registered with NNI in this environment; run `nni-gumbel register`")
    return f"{NAME} is registered with NNI"


def _torch_finding(gpus: int) -> Finding:
    import torch

    seen = torch.cuda.device_count()
    if seen < gpus:
        remedy = "install a CUDA build of torch that fits the driver"
        return Finding(WARN, "torch", f"{torch.__version__} sees {seen} of {gpus} GPUs; {remedy}")
    return Finding(OK, "torch", f"sees {seen} GPU(s)")


def read_config(config_file: str | Path) -> dict[str, Any]:
    """An experiment's YAML in NNI's canonical form, checked by NNI's own code.

    Raises:
        UsageError: there is no such file, it is not YAML, or NNI does not accept it.
    """
    path = Path(config_file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); `nni-gumbel init DIR` writes one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"{path}{where}: is not YAML ({problem}); correct it") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: holds no names and values; `nni-gumbel init DIR` writes an example")
    # Two mistakes that NNI meets with an error of Python's own.
    service = content.get("trainingService")
    if not isinstance(service, Mapping) or service.get("platform") not in ("local", "remote"):
        raise UsageError(
            f"trainingService: {service!r} is none for this tuner; give platform: local or remote"
        )
    concurrency = content.get("trialConcurrency")
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise UsageError(f"trialConcurrency: {concurrency!r} is no number of trials; give at least 1")

    from nni.experiment.config import ExperimentConfig, utils

    utils.set_base_path(path.parent)
    try:
        return ExperimentConfig(**content).json()
    except Exception as error:  # whatever NNI's classes raise, an AssertionError without a text among them
        text = str(error) or traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__
        raise UsageError(f"{path}: NNI refuses it: {' '.join(text.split())}") from error
    finally:
        utils.unset_base_path()  # NNI's own `load` forgets it after an error


def config_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything that the YAML says, in NNI's canonical form, but its GPU lines."""
    algorithm = config.get("tuner") or {}
    if str(algorithm.get("name")).lower() != NAME.lower():
        name = algorithm.get("name")
        yield Finding(FAIL, "tuner", f"name: {name!r} is another tuner; give tuner: {{name: {NAME}}}")
        return
    service = config["trainingService"]
    if service.get("reuseMode"):
        yield Finding(FAIL, "trainingService", "reuseMode: true ends in an error in NNI 3.0; remove it")
    if service.get("platform") != "local":
        yield Finding(
            FAIL, "trainingService", "weights stay on the machine that trained them; give platform: local"
        )
    if config.get("assessor"):
        yield Finding(FAIL, "assessor", ASSESSOR_REFUSED.removeprefix("assessor: "))
    cores, concurrency = loky.cpu_count(), config["trialConcurrency"]
    if concurrency > cores:
        slower = f"{concurrency} trials share {cores} cores and slow each other down"
        yield Finding(WARN, "trialConcurrency", f"{slower}; give at most {cores}")

    # Each check needs what those before it have read.
    settings, plan = None, None

    def read_settings() -> str:
        nonlocal settings
        class_args = algorithm.get("classArgs")
        if not isinstance(class_args or {}, Mapping):
            raise UsageError(f"tuner.classArgs: {class_args!r} holds no names and values; give settings")
        settings = ExperimentSettings.from_flat(class_args)
        return (
            f"{settings.search_epochs} epochs a search, {settings.train_epochs} a training, "
            f"{settings.train_seeds} trainings a network"
        )

    def read_combinations() -> str:
        nonlocal plan
        plan = Plan.of(settings, config.get("searchSpace"))
        count = len(plan.combinations)
        return f"{count} combination(s), {count * settings.search_seeds} search(es)"

    def compare_trials() -> str:
        plan.check_trial_limit(config.get("maxTrialNumber"))
        most = plan.largest_trial_count
        usual = (most - 1) // settings.attempts + 1
        return f"{usual} if none fails and no two networks are alike, at most {most} with attempts: {settings.attempts}"

    yield finding_of("settings", read_settings)
    if settings is not None:
        yield finding_of("searchSpace", read_combinations)
    if plan is not None:
        yield finding_of("trials", compare_trials)
    searches = [variant.search for variant in plan.variants] if plan else []
    yield from _command_and_data_findings(config, settings.metric if settings else None, searches)


# -- the trial command: what it names is built and tried, in the order in which it would fail ---------------


def _command_and_data_findings(
    config: Mapping[str, Any], metric: str | None, searches: Sequence[SearchSettings]
) -> Iterator[Finding]:
    """The trial command: its words, its space (which is built and tried), its data, its evaluator and its costs."""
    try:
        command, directory = trial_command_of(config)
    except UsageError as error:
        yield Finding(FAIL, "trial command", str(error))
        return
    yield Finding(OK, "trial command", f"runs in {directory}")
    with _inside(directory):
        found = [
            finding_of("space", lambda: _space(command)),
            finding_of("data", lambda: _data(command)),
        ]
        yield from found
        if all(finding.level == OK for finding in found):
            # Imports torch, which the checks of the machine may have found to be missing.
            from nni_gumbel.pipeline.rehearsal import rehearsed_command, rehearsed_costs

            rehearsed = finding_of("rehearsal", lambda: rehearsed_command(command, searches))
            yield rehearsed
            if rehearsed.level == OK and searches:
                yield finding_of("costs", lambda: rehearsed_costs(command, searches))
    own_cost = command.cost is not None
    lines = dict.fromkeys(line for settings in searches for line in without_effect(settings, own_cost))
    yield from (Finding(WARN, "costs", line) for line in lines)
    yield finding_of("evaluator", lambda: _evaluator(command, metric))


def _space(command: TrialCommand) -> str:
    with warnings.catch_warnings():
        # NNI wonders about classes that torch has added since; nobody can do anything about it.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"nni\.nas")
        return f"{command.space}, {len(command.reference.build().simplify())} choices"


def _data(command: TrialCommand) -> str:
    name, folder = command.data, Path(command.data_dir).expanduser()
    if name in DOWNLOADED:
        # The nearest folder that exists is the one in which the others would be made.
        existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UsageError(
                f"{DIRECTORY_FIELD}: {existing} cannot be written; give a directory that can, or that holds {name}"
            )
        return f"{name}, which the first trial downloads unless it is in {folder}"
    if not command.data_is_at_hand:
        return name or "the evaluator's own"
    from nni_gumbel.data.sources import read_parts

    parts = read_parts(name, command.data_dir)
    sizes = f"{len(parts.train)} training, {len(parts.validation)} validation, {len(parts.test)} test images"
    return f"{name}, {sizes} of shape {parts.train.pixels.shape[1:]}"


def _evaluator(command: TrialCommand, metric: str | None) -> str:
    if command.evaluator is None and metric not in (None, "acc", "loss"):
        raise UsageError(
            f"metric: the built-in classification logs acc and loss, not {metric!r}; set metric: acc, "
            "or name an --evaluator of your own"
        )
    return command.evaluator or "the built-in classification"


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Work in the trial code directory, where a trial finds modules and files."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path

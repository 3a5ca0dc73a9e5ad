"""What would go wrong with an experiment, told before it starts: the checks of `nni-gumbel doctor`.

NNI 3.0 calls no validator for today's YAML, so a mistake in it shows only in a started experiment. The doctor looks at
this machine, reads the YAML as `nnictl create` does, and asks the functions that the tuner and the trials will ask, in
the order in which they would fail; `nni-gumbel create` asks those that need no torch. Every finding is one line, and a
bad one ends with its remedy.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import loky
import yaml

from nni_gumbel.errors import UsageError
from nni_gumbel.names import ignore_what_nni_wonders_about, inside
from nni_gumbel.pipeline.hosts import host_findings
from nni_gumbel.pipeline.machine import (
    FAIL,
    OK,
    WARN,
    Finding,
    command_findings,
    finding_of,
    gpu_findings,
    version_findings,
    visible_gpus,
)
from nni_gumbel.pipeline.manager import (
    NAME,
    REMOTE,
    check_params,
    is_registered,
    is_remote,
    plan_of,
    trial_command_of,
)
from nni_gumbel.search.settings import without_effect


def examine(config_file: str | Path | None, remote_port: int | None = None) -> Iterator[Finding]:
    """All checks, each as soon as it is made.

    Args:
        config_file: the experiment's YAML; ``None`` looks at the machine alone.
        remote_port: log in to the hosts of the YAML, too, and see whether they reach this port here.
    """
    yield from version_findings()
    # Each torchvision is built for one torch.
    yield from (each for each in version_findings("torchvision") if each.subject == "torch")
    yield from command_findings()
    yield finding_of("tuner", _registration)
    config: dict[str, Any] = {"trainingService": {}, "trialConcurrency": 1}
    if config_file is not None:
        try:
            config = read_config(config_file)
        except UsageError as error:
            yield Finding(FAIL, "YAML", str(error))
        else:
            yield Finding(OK, "YAML", f"{config_file} is one that NNI accepts")
            yield from config_findings(config)
    if is_remote(config):
        if remote_port is None:
            yield Finding(
                WARN,
                "hosts",
                "they were not looked at; `nni-gumbel doctor --remote FILE` logs in to each of them",
            )
        else:
            yield from host_findings(config, remote_port)
        return
    gpus = visible_gpus()
    yield from gpu_findings(config, gpus)
    if gpus:
        import torch

        seen = torch.cuda.device_count()
        remedy = "" if seen >= len(gpus) else "; install a CUDA build of torch that fits the driver"
        text = f"{torch.__version__} sees {seen} of {len(gpus)} GPUs{remedy}"
        yield Finding(WARN if remedy else OK, "torch", text)


def check_before_start(config_file: str | Path) -> dict[str, Any]:
    """What takes seconds, for `nni-gumbel create`: NNI's own checks, the settings, the trial command, the tuner's name.

    Returns:
        The YAML in NNI's canonical form.

    Raises:
        UsageError: the first of them that fails.
    """
    config = read_config(config_file)
    for finding in (*quick_findings(config), finding_of("tuner", _registration)):
        if finding.level == FAIL:
            raise UsageError(finding.text)
    return config


def _registration() -> str:
    if not is_registered():
        raise UsageError(f"{NAME} is not registered with NNI in this environment; run `nni-gumbel register`")
    return f"{NAME} is registered with NNI"


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
    if not isinstance(service, Mapping) or service.get("platform") not in ("local", REMOTE):
        raise UsageError(
            f"trainingService: {service!r} is none for this tuner; give platform: local or {REMOTE}"
        )

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
    if concurrency > cores and not is_remote(config):
        slower = f"{concurrency} trials share {cores} cores and slow each other down"
        yield Finding(WARN, "trialConcurrency", f"{slower}; give at most {cores}")
    yield finding_of("settings", partial(_settings, config))
    yield finding_of("trial command", partial(_command, config))


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
        from nni_gumbel.pipeline.evaluator import check_flags
        from nni_gumbel.pipeline.rehearsal import rehearsed

        if plan is not None:
            check_flags(flag for variant in plan.variants for flag in json.loads(variant.trainer))
        if command.evaluator is None and plan is not None and plan.settings.metric not in ("acc", "loss"):
            raise UsageError(
                f"metric: the built-in classification logs acc and loss, not {plan.settings.metric!r}; set metric: "
                "acc, or name an --evaluator of your own"
            )
        return rehearsed(command, searches)

    with inside(directory), warnings.catch_warnings():
        ignore_what_nni_wonders_about()
        yield finding_of("search", search)
    lines = (line for each in searches for line in without_effect(each, command.cost is not None))
    yield from (Finding(WARN, "costs", line) for line in dict.fromkeys(lines))

"""Choosing between the trained networks, and putting the chosen one where people find it.

The export trial at the end of an experiment and ``nni-gumbel export``, at any time, are the same :func:`export`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nni

from nni_gumbel.errors import UsageError, first_line, nearest
from nni_gumbel.names import inside
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, EXPORT_FOLDER, TRAIN, Task, Trial
from nni_gumbel.results import front
from nni_gumbel.results.bundle import copy_bundle
from nni_gumbel.results.choice import Choice, Network, choose
from nni_gumbel.results.report import export_readme

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """Which network a person asks for; without any of it, the one that the experiment's rule chooses.

    Args:
        max_params, max_flops, max_latency_ms: limits of the network as it is exported; the rule chooses within them.
        trial: the id of a training, whose network and weights are taken.
        network: the name of a network, a random one among them; the weights are of its best seed.
    """

    max_params: int | None = None
    max_flops: int | None = None
    max_latency_ms: float | None = None
    trial: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]
        named = [name for name in ("--trial", "--network") if name in given]
        if named and len(given) > 1:
            raise UsageError(
                f"{named[0]}: it says which network is exported; leave out {(set(given) - {named[0]}).pop()}"
            )


# What each limit is of, in the words of Network.price and of people.
_LIMITS = {
    "max_params": ("params", "parameters"),
    "max_flops": ("flops", "FLOPs"),
    "max_latency_ms": ("latency", "ms"),
}


@dataclass(frozen=True)
class Export:
    """What was exported: the choice, the folders that hold it (at least one), and what it has to do without."""

    choice: Choice
    folders: list[Path]
    warnings: list[str]


def run_export(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """The export trial: the chosen network in its output directory and in the trial code directory."""
    destination = Path.cwd() / EXPORT_FOLDER / os.environ["NNI_EXP_ID"]
    folders = (destination, output / EXPORT_FOLDER)
    done = export(manager.experiment(), manager.trials(), output.parent, command, folders, output)
    chosen = done.choice.network
    nni.report_final_result(
        {
            "default": chosen.validation_mean,
            "key": task.key,
            "network": chosen.name,
            "test_mean": chosen.test_mean,
            "test_std": chosen.test_std,
            "parameters": chosen.parameters,
            "flops": chosen.flops,
            "path": str(done.folders[0]),
            **({"warning": "; ".join(done.warnings)} if done.warnings else {}),
        }
    )


def export_of(experiment: str | Path | None, folder: str | Path | None = None, wish: Wish = Wish()) -> Export:
    """Export a network of an experiment that runs, was stopped or failed: the best so far, or the one asked for.

    Args:
        experiment: its id or its folder; the newest one if omitted.
        folder: where to; if omitted, ``gumbel-export/<id>`` in the working directory, with the network's name behind
            it where one is asked for: the experiment's own export stays as it is.
        wish: which network.

    Raises:
        UsageError: there is no such experiment or network, no training has finished, or the folder cannot be written.
    """
    records = Records.of(experiment)
    service = records.profile["params"]["trainingService"]
    command = TrialCommand.from_trial_command(service.get("trialCommand") or "")
    code = Path(service.get("trialCodeDirectory") or ".")
    choice = _choice(records.profile, records.trials, command, wish)
    if folder is None:
        named = f"-{choice.network.name}" if wish != Wish() else ""
        folder = Path(EXPORT_FOLDER) / f"{records.profile['id']}{named}"
    folder = Path(folder).expanduser().absolute()
    outputs = records.outputs.absolute()
    # Without the directory of the space the network cannot be rebuilt: the bundle then comes without programs.
    with TemporaryDirectory() as work, inside(code) if code.is_dir() else nullcontext():
        return export(records.profile, records.trials, outputs, command, (folder,), Path(work), wish)


def export(
    experiment: Mapping[str, Any],
    trials: Sequence[Trial],
    outputs: Path,
    command: TrialCommand,
    folders: Sequence[Path],
    work: Path,
    wish: Wish = Wish(),
) -> Export:
    """Choose between the networks trained so far and write the chosen one.

    The front, and the network as programs that need no NNI, are written beside it. What of these fails, and a folder
    that cannot be written where another one can, the export comes without, and with a warning.

    Args:
        experiment: its profile.
        trials: those so far.
        outputs: the folder with their output directories.
        command: the trial command; the process works where a trial does.
        folders: those that are written, each complete in itself.
        work: a folder for files on their way.
        wish: which network.

    Raises:
        UsageError: no training has finished, there is no network as asked for, or no folder can be written.
    """
    plan = plan_of(experiment)
    settings, found = plan.settings, plan.networks(trials)
    choice = _choice(experiment, trials, command, wish)
    source = outputs / choice.run.trial_id / BUNDLE
    return write_export(choice, found, settings, command.data, source, folders, work)


def write_export(
    choice: Choice,
    found: Sequence[Network],
    settings: ExperimentSettings,
    data: str | None,
    source: Path,
    folders: Sequence[Path],
    work: Path,
) -> Export:
    """Write the chosen network and what belongs to it; see :func:`export`.

    Args:
        choice: the network and the training whose weights are written.
        found: all that were trained, the chosen one among them or among their random ones.
        settings: of the experiment.
        data: the data set's name.
        source: the bundle of the training.
        folders, work: see :func:`export`.

    Raises:
        UsageError: no folder can be written.
    """
    # Imports torch: not before a trial has taken its share of the cores, nor where there is nothing to export.
    from nni_gumbel.results.portable import PROGRAMS, write_programs

    chosen = choice.network
    files, warnings = [], []
    pictured = (found, chosen, settings.metric, settings.optimize_mode)
    for names, write in (
        ((front.TABLE,), lambda: front.write_table(work / front.TABLE, *pictured)),
        ((front.PICTURE,), lambda: front.draw(work / front.PICTURE, *pictured)),
        (PROGRAMS, lambda: write_programs(source, work)),
    ):
        missing: Mapping[str, str] = {}
        try:
            missing = write() or {}
        # Whatever a full disk or a plotting library raises: what is finished is not lost to it.
        except Exception as error:
            logger.warning("%s", error, exc_info=error)
            missing = dict.fromkeys(names, first_line(error))
        files += [work / name for name in names if name not in missing]
        warnings += [f"{name} could not be written: {reason}" for name, reason in missing.items()]
    defaults = ExperimentSettings().search_values()
    searched = {name: value for name, value in settings.search_values().items() if value != defaults[name]}
    written: list[Path] = []
    for folder in folders:
        readme = export_readme(
            choice,
            found,
            settings.metric,
            folder,
            searched=searched,
            data=data,
            picture=front.PICTURE if work / front.PICTURE in files else None,
            programs=[name for name in PROGRAMS if work / name in files],
            warnings=warnings,
        )
        try:
            copy_bundle(source, folder, readme, files)
            written.append(folder)
        except UsageError as error:
            if folder == folders[-1] and not written:
                raise
            logger.warning("%s", error)
            warnings.append(str(error))
    return Export(choice, written, warnings)


# -- which network -------------------------------------------------------------------------------------------


def _choice(
    experiment: Mapping[str, Any], trials: Sequence[Trial], command: TrialCommand, wish: Wish
) -> Choice:
    plan = plan_of(experiment)
    settings, found = plan.settings, plan.networks(trials)
    if not found and any(trial.stage == TRAIN and trial.report is not None for trial in trials):
        raise UsageError(
            f"ID: experiment {experiment['id']} has trainings, but not with the settings that its experiment.yml means "
            "to this version of nni_gumbel; export with the version that ran it"
        )
    if not found:
        raise UsageError(
            f"ID: experiment {experiment['id']} has no finished training yet, so there is nothing to export; "
            f"`nni-gumbel wait {experiment['id']}` follows it"
        )

    def chosen(networks: Sequence[Network], before: str = "") -> Choice:
        choice = choose(networks, settings.metric, settings.optimize_mode, _priced(command, plan))
        return replace(choice, reason=before + choice.reason)

    everything = {each.name: each for network in found for each in (network, *network.baseline)}
    if wish.network is not None:
        if wish.network not in everything:
            raise UsageError(f"--network: there is no {wish.network!r}{nearest(wish.network, everything)}")
        return replace(
            chosen([everything[wish.network]]), reason=f"{wish.network} was asked for by its name."
        )
    if wish.trial is not None:
        trained = {run.trial_id: (network, run) for network in everything.values() for run in network.runs}
        if wish.trial not in trained:
            raise UsageError(f"--trial: {wish.trial!r} is no finished training{nearest(wish.trial, trained)}")
        network, run = trained[wish.trial]
        reason = f"{network.name} with the weights of trial {wish.trial} was asked for."
        return replace(chosen([network]), run=run, reason=reason)
    asked = []
    for field, (cost, noun) in _LIMITS.items():
        if (most := getattr(wish, field)) is None:
            continue
        smallest = min(found, key=lambda network: network.price(cost))
        found = [network for network in found if network.price(cost) <= most]
        asked.append(f"at most {most:,} {noun}")
        if not found:
            least, option = smallest.price(cost), f"--{field.replace('_', '-')}"
            if math.isinf(least):
                raise UsageError(
                    f"{option}: no {noun} of a network were measured; search with {field}: {most}"
                )
            raise UsageError(
                f"{option}: no network with {' and '.join(asked)} was trained, the least has {least:,.10g} "
                f"({smallest.name}); give more, or search with {field}: {most}"
            )
    return chosen(found, f"Of the networks with {' and '.join(asked)}: " if asked else "")


def _priced(command: TrialCommand, plan: Plan) -> str:
    """What the searches of an experiment price; parameters, where some price one cost and some another."""
    words = {variant.search.cost for variant in plan.variants}
    if command.cost is not None:
        return "cost"
    return words.pop() if len(words) == 1 else "params"

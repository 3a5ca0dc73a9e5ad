"""Choosing between the trained networks, and putting the chosen one where people find it.

The export trial at the end of an experiment and ``nni-gumbel export``, at any time, are the same :func:`export`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nni

from nni_gumbel.errors import UsageError, first_line, nearest
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.manager import Manager, is_remote
from nni_gumbel.pipeline.records import Records, with_weights_of
from nni_gumbel.pipeline.remote import bring, bring_stability
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, EXPORT_FOLDER, REPORT_FOLDER, Task
from nni_gumbel.results import front
from nni_gumbel.results.bundle import copy_bundle
from nni_gumbel.results.choice import Choice, Network, TrainedRun
from nni_gumbel.results.report import export_readme
from nni_gumbel.results.stability import Stability

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
    """The export trial: the chosen network, and the report, in its output directory and the trial code directory."""
    # NNI keeps the output directories of an experiment's trials side by side.
    records = Records(manager.experiment(), manager.trials(), output.parent, command, output)
    elsewhere = bring(records, records.trainings, Stability.FILE, from_hosts=False)
    elsewhere |= bring(records, records.trainings_of(records.choice.run), BUNDLE, from_hosts=False)
    if elsewhere and is_remote(records.profile["params"]):
        # Other hosts are for the manager's to ask: `nni-gumbel wait` and `export` choose there, knowing everything.
        note = (
            f"`nni-gumbel wait` or `nni-gumbel export` brings it here from {next(iter(elsewhere.values()))}"
        )
        nni.report_final_result(
            {"default": records.choice.network.validation_mean, "key": task.key, "elsewhere": note}
        )
        return
    destination = Path.cwd() / EXPORT_FOLDER / records.id
    done = export(records, records.choice, (destination, output / EXPORT_FOLDER), output)
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
    # What follows are extras: the export is there, and reported.
    from nni_gumbel.pipeline.neighbours import keep_neighbours  # imports torch
    from nni_gumbel.pipeline.report import write_report
    from nni_gumbel.pipeline.trial import extra, keep_stability_on_test_part

    def page() -> None:
        # A copy: records keep what they have read, and the second page is to show the neighbours.
        folder = Path.cwd() / REPORT_FOLDER / records.id
        extra([], "the report could not be written", write_report, replace(records), folder)

    if records.plan.settings.stability == "none":
        page()
        return
    keep_stability_on_test_part(records, output)
    page()  # before the neighbours, which take a while: a report is there whatever happens to them
    extra([], "the neighbours are not known", keep_neighbours, records, output)
    page()


def export_of(experiment: str | Path | None, folder: str | Path | None = None, wish: Wish = Wish()) -> Export:
    """Export a network of an experiment that runs, was stopped or failed: the best so far, or the one asked for.

    Args:
        experiment: its id or its folder; the newest one if omitted.
        folder: where to; if omitted, ``gumbel-export/<id>`` in the working directory, with the network's or the
            trial's name behind it where one is asked for: the experiment's own export stays as it is.
        wish: which network.

    Raises:
        UsageError: there is no such experiment or network, no training has finished, or the folder cannot be written.
    """
    records = Records.of(experiment)
    unknown = bring_stability(records)
    choice = wished(records, wish)
    choice = _with_weights(records, choice, [choice.run] if wish.trial else records.runs_of(choice))
    named = f"-{wish.trial or choice.network.name}" if wish != Wish() else ""
    folder = Path(folder or Path(EXPORT_FOLDER) / f"{records.id}{named}").expanduser().absolute()
    # Without the module of the space the network cannot be rebuilt: the bundle then comes without programs.
    with TemporaryDirectory() as work, records.in_code_directory():
        done = export(records, choice, (folder,), Path(work))
    return replace(done, warnings=done.warnings + unknown)


def _with_weights(records: Records, choice: Choice, runs: Sequence[TrainedRun]) -> Choice:
    """The choice with the first of some trainings whose weights are here or can be brought.

    Raises:
        UsageError: there is none.
    """
    lost: list[str] = []
    for run in runs:
        unknown = bring(records, records.trainings_of(run), BUNDLE)
        if unknown:
            lost += unknown.values()
        else:
            return with_weights_of(choice, run, f"it is in {lost[0]}" if lost else "")
    raise UsageError(
        f"the weights of {choice.network.name} are in {lost[0]}; export again when they can be read, or give another "
        "--network or --trial"
    )


def wished(records: Records, wish: Wish) -> Choice:
    """The network that a person asks for.

    Raises:
        UsageError: no training has finished, or there is no such network.
    """
    choice, found = records.choice, records.networks
    if wish.network is not None:
        named = {each.name: each for each in records.trained}
        if wish.network not in named:
            raise UsageError(f"--network: there is no {wish.network!r}{nearest(wish.network, named)}")
        reason = f"{wish.network} was asked for by its name."
        return replace(records.choice_among([named[wish.network]]), reason=reason)
    if wish.trial is not None:
        trained = {run.trial_id: (network, run) for network in records.trained for run in network.runs}
        if wish.trial not in trained:
            raise UsageError(f"--trial: {wish.trial!r} is no finished training{nearest(wish.trial, trained)}")
        network, run = trained[wish.trial]
        reason = f"{network.name} with the weights of trial {wish.trial} was asked for."
        return replace(records.choice_among([network]), run=run, reason=reason)
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
    if asked:
        choice = records.choice_among(found)
        choice = replace(choice, reason=f"Of the networks with {' and '.join(asked)}: {choice.reason}")
    return choice


def export(records: Records, choice: Choice, folders: Sequence[Path], work: Path) -> Export:
    """Write a network of an experiment; the process works where a trial does. See :func:`write_export`."""
    source, settings = records.outputs / choice.run.trial_id / BUNDLE, records.plan.settings
    return write_export(
        choice, records.networks, settings, records.command.data, source, folders, work, records.priced
    )


def write_export(
    choice: Choice,
    found: Sequence[Network],
    settings: ExperimentSettings,
    data: str | None,
    source: Path,
    folders: Sequence[Path],
    work: Path,
    priced: str = "params",
) -> Export:
    """Write the chosen network and what belongs to it.

    The front, and the network as programs that need no NNI, are written beside it. What of these fails, and a folder
    that cannot be written where another one can, the export comes without, and with a warning.

    Args:
        choice: the network and the training whose weights are written.
        found: all that were trained, the chosen one among them or among their random ones.
        settings: of the experiment.
        data: the data set's name.
        source: the bundle of the training.
        folders: those that are written, each complete in itself.
        work: a folder for files on their way.
        priced: the cost that the front is of.

    Raises:
        UsageError: no folder can be written.
    """
    # Imports torch: not before a trial has taken its share of the cores, nor where there is nothing to export.
    from nni_gumbel.results.portable import PROGRAMS, write_programs

    chosen = choice.network
    files, warnings = [], []
    pictured = front.Front(found, chosen, settings.metric, settings.optimize_mode, priced)
    for names, write in (
        ((front.TABLE,), lambda: front.write_table(work / front.TABLE, pictured)),
        ((front.PICTURE,), lambda: front.front_figure(pictured).savefig(work / front.PICTURE, dpi=130)),
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
        lost = [name for name in PROGRAMS if (folder / name).exists() and work / name not in files]
        try:
            if lost:
                raise UsageError(
                    f"-o: {str(folder)!r} has {', '.join(lost)}, which could not be written this time; give another "
                    "folder"
                )
            copy_bundle(source, folder, readme, files)
            written.append(folder)
        except UsageError as error:
            if folder == folders[-1] and not written:
                raise
            logger.warning("%s", error)
            warnings.append(str(error))
    return Export(choice, written, warnings)

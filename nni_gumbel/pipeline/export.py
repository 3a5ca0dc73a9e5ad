"""The export trial: chooses between the trained networks, and puts the chosen one where people find it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nni

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, EXPORT_FOLDER, REPORT_FOLDER, Task
from nni_gumbel.results import front
from nni_gumbel.results.bundle import copy_bundle
from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.report import export_readme
from nni_gumbel.results.stability import FILE as STABILITY
from nni_gumbel.results.stability import read_stability

logger = logging.getLogger(__name__)


def priced_by(command: TrialCommand, plan: Plan) -> str:
    """What the searches of an experiment price; parameters, where some price one cost and some another."""
    words = {variant.search.cost for variant in plan.variants}
    if command.cost is not None:
        return "cost"
    return words.pop() if len(words) == 1 else "params"


def with_stability(networks: Sequence[Network], trials: Path) -> list[Network]:
    """The networks with what their trainings kept of their stability; a damaged file is a warning.

    Args:
        networks: of an experiment, each with its baseline.
        trials: the folder with the output directories of its trials.
    """

    def index(run: TrainedRun) -> float | None:
        try:
            found = read_stability(trials / run.trial_id / STABILITY)
        except UsageError as error:
            logger.warning("%s", error)
            return None
        return None if found is None else found.index

    return [
        replace(
            network,
            runs=tuple(replace(run, stability=index(run)) for run in network.runs),
            baseline=tuple(with_stability(network.baseline, trials)),
        )
        for network in networks
    ]


def run_export(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Choose between the trained networks and put the chosen one where people find it.

    The front, and the network as programs that need no NNI, are written beside it. What of these fails the export
    comes without, and with a warning.
    """
    from nni_gumbel.results.portable import PROGRAMS, write_programs  # imports torch

    plan = plan_of(manager.experiment())
    settings = plan.settings
    # NNI keeps the output directories of an experiment's trials side by side.
    found = with_stability(plan.networks(manager.trials()), output.parent)
    priced = priced_by(command, plan)
    choice = choose(found, settings.metric, settings.optimize_mode, priced, settings.choice_rule)
    source = output.parent / choice.run.trial_id / BUNDLE
    destination = Path.cwd() / EXPORT_FOLDER / os.environ["NNI_EXP_ID"]
    chosen = choice.network
    files, warnings = [], []
    pictured = (found, chosen, settings.metric, settings.optimize_mode, priced)
    for names, write in (
        ((front.TABLE,), lambda: front.write_table(output / front.TABLE, *pictured)),
        ((front.PICTURE,), lambda: front.draw(output / front.PICTURE, *pictured)),
        (PROGRAMS, lambda: write_programs(source, output)),
    ):
        missing: Mapping[str, str] = {}
        try:
            missing = write() or {}
        # Whatever a full disk or a plotting library raises: what is finished is not lost to it.
        except Exception as error:
            logger.warning("%s", error, exc_info=error)
            missing = dict.fromkeys(names, first_line(error))
        files += [output / name for name in names if name not in missing]
        warnings += [f"{name} could not be written: {reason}" for name, reason in missing.items()]
    defaults = ExperimentSettings().search_values()
    readme = export_readme(
        choice,
        found,
        settings.metric,
        destination,
        searched={name: value for name, value in settings.search_values().items() if value != defaults[name]},
        data=command.data,
        picture=front.PICTURE if output / front.PICTURE in files else None,
        programs=[name for name in PROGRAMS if output / name in files],
        warnings=warnings,
    )
    for folder in (output / EXPORT_FOLDER, destination):
        copy_bundle(source, folder, readme, files)
    nni.report_final_result(
        {
            "default": chosen.validation_mean,
            "key": task.key,
            "network": chosen.name,
            "test_mean": chosen.test_mean,
            "test_std": chosen.test_std,
            "parameters": chosen.parameters,
            "flops": chosen.flops,
            "path": str(destination),
            **({"warning": "; ".join(warnings)} if warnings else {}),
        }
    )
    # What follows are extras: the export is there, and reported.
    if settings.stability != "none":
        from nni_gumbel.pipeline.trial import keep_stability_on_test_part  # imports torch

        keep_stability_on_test_part(output, plan, command, chosen, choice.run, source)
    try:
        from nni_gumbel.pipeline.report import write_report

        folder = Path.cwd() / REPORT_FOLDER / os.environ["NNI_EXP_ID"]
        write_report(folder, manager.experiment(), manager.trials(), output.parent, command, export=output)
    # Whatever a full disk or a person's space raises.
    except Exception as error:
        logger.warning("the report could not be written: %s", first_line(error), exc_info=error)

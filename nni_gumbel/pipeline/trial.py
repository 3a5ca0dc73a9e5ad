"""What one NNI trial does: a search, a training from scratch of a network found or of a random one, or the export.

A trial first learns what it has to do, before anything slow is imported: NNI 3.0 hands out parameters
first come, first served, so trials that start together can receive each other's. The trial therefore
takes what it is given once, and then runs what the manager's record of *itself* says.

Each trial takes its share of the cores - cores / trial concurrency - and writes into its own output
directory: ``task.json`` (what it ran), ``tensorboard/``, and a training its ``bundle/``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nni

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.export import run_export
from nni_gumbel.pipeline.host import usable_cores
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, EXPORT, RANDOM, SEARCH, TRAIN, Task
from nni_gumbel.results.choice import EQUAL_SIZE

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


def main(arguments: list[str]) -> int:
    """Run this process's trial; ``arguments`` are those after ``nni-gumbel trial``.

    Returns:
        The exit code; a person's mistake is one line on stderr and 1.
    """
    try:
        command = TrialCommand.parse(arguments)
        if "NNI_TRIAL_JOB_ID" not in os.environ:
            raise UsageError(
                "nni-gumbel trial: it is started by NNI, as the trialCommand of an experiment; "
                "run `nnictl create --config experiment.yml`"
            )
        nni.get_next_parameter()  # takes one from the queue; ours is in the manager's record
        manager = Manager.from_trial_environment()
        task = Task.from_parameters(manager.trial(os.environ["NNI_TRIAL_JOB_ID"]).parameters)
        output = Path(os.environ["NNI_OUTPUT_DIR"])
        with _alone_in(output):
            (output / "task.json").write_text(json.dumps(task.parameters(), indent=2) + "\n")
            _show_tensorboard_to_the_portal(output)
            stages = {SEARCH: run_search, TRAIN: run_training, RANDOM: run_random, EXPORT: run_export}
            stages[task.stage](task, command, manager, output)
    except UsageError as error:
        print(f"nni-gumbel: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


def run_search(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Search the space once and report the network found."""
    _use_share_of_cores(manager)
    import pytorch_lightning as pl
    import torch

    from nni_gumbel.complexity.cost import count_parameters
    from nni_gumbel.complexity.flops import count_flops
    from nni_gumbel.pipeline.costs import budget_use, own_cost, prices_latency
    from nni_gumbel.pipeline.evaluation import evaluator_of
    from nni_gumbel.pipeline.latency import shared_table
    from nni_gumbel.pipeline.rehearsal import BeforeTheSearch, rehearse
    from nni_gumbel.pipeline.reporting import Metrics, SearchProgress, our_reports_only, validation_metric
    from nni_gumbel.results.example import Example
    from nni_gumbel.results.space import SpaceReference, network_of
    from nni_gumbel.search.strategy import GumbelSearch

    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    own = own_cost(command)
    strategy = GumbelSearch(**{**vars(settings.search), **({} if own is None else {"cost": own})})
    supernet = strategy.mutate_model(reference.build())
    with torch.no_grad():
        strategy.distribution.use_probabilities()
    evaluator = evaluator_of(command, supernet, settings, settings.search_epochs, task.seed)
    evaluator = strategy.mutate_evaluator(evaluator)
    # The built-in evaluator needs an output for every class; another one's needs are its own.
    classes = evaluator.datamodule.num_classes if command.evaluator is None else None
    costs = evaluator.module.costs

    def check(example: Example) -> None:
        rehearse(supernet, strategy.distribution, reference, example, classes)
        if prices_latency(settings.search):
            costs.latency_table = shared_table(supernet, strategy.distribution, example.first(1), output)
        # A budget that no network can meet ends the trial here.
        costs.complete(example.args, example.kwargs)

    rehearsal = BeforeTheSearch(evaluator, check)
    evaluator.trainer.callbacks += [rehearsal, SearchProgress(settings.metric, output / TENSORBOARD)]
    with our_reports_only():
        evaluator.evaluate(supernet)
        architecture = evaluator.module.export()
        found, example = network_of(supernet, architecture), rehearsal.example.cpu()
        nni.report_final_result(
            Metrics(
                default=validation_metric(evaluator.trainer, settings.metric),
                key=task.key,
                architecture=json.dumps(architecture),
                parameters=count_parameters(found),
                flops=count_flops(found, *example.args, **example.kwargs),
                **evaluator.module.structure_summary(),
                **budget_use(costs, strategy.distribution, architecture),
            )
        )


def run_training(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Train one network from scratch, write its bundle, report what it reaches."""
    _use_share_of_cores(manager)
    _train(task, task.architecture, command, manager, output, {})


def run_random(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Draw a network of the size asked for, with the task's seed, and train it as one that was found."""
    _use_share_of_cores(manager)
    from nni_gumbel.complexity.cost import expected_parameters
    from nni_gumbel.complexity.sampling import random_network
    from nni_gumbel.results.space import SpaceReference
    from nni_gumbel.supernet.mutation import relax

    supernet = SpaceReference.parse(command.space, command.space_arguments).build()
    distribution = relax(supernet)
    architecture = random_network(
        supernet,
        distribution,
        expected_parameters(supernet),
        task.target_parameters,
        EQUAL_SIZE,
        task.seed,
    )
    _train(task, architecture, command, manager, output, {"architecture": json.dumps(architecture)})


def _train(
    task: Task,
    architecture: dict[str, Any],
    command: TrialCommand,
    manager: Manager,
    output: Path,
    also: dict[str, Any],
) -> None:
    """Train the network of an NNI sample; ``also`` is reported with the results."""
    import pytorch_lightning as pl

    from nni_gumbel.complexity.cost import count_parameters
    from nni_gumbel.complexity.flops import count_flops
    from nni_gumbel.complexity.own_cost import own_cost_of
    from nni_gumbel.pipeline.costs import own_cost, prices_latency
    from nni_gumbel.pipeline.evaluation import (
        evaluator_of,
        result_on_test_part,
        validation_size,
    )
    from nni_gumbel.pipeline.latency import latencies
    from nni_gumbel.pipeline.rehearsal import remember_inputs
    from nni_gumbel.pipeline.reporting import Metrics, Progress, our_reports_only, validation_metric
    from nni_gumbel.results.bundle import write_bundle
    from nni_gumbel.results.pruning import prune
    from nni_gumbel.results.space import SpaceReference, network_of, sample_of

    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    space = reference.build()
    sample = sample_of(space, architecture)
    network = network_of(space, sample)
    own = own_cost(command)
    if own is not None:  # a function that fails is told before the training
        also = {**also, "own_cost": own_cost_of(own, sample, partial(network_of, space))}
    evaluator = evaluator_of(command, network, settings, settings.train_epochs, task.seed)
    evaluator.trainer.callbacks.append(Progress(settings.metric, output / TENSORBOARD))
    inputs = remember_inputs(network)
    with our_reports_only():
        evaluator.evaluate(network)
        validation = validation_metric(evaluator.trainer, settings.metric)
        if not inputs:
            raise UsageError("--evaluator: its steps do not call the network as self.model(...); call it so")
        (example,) = inputs
        parameters, flops = count_parameters(network), count_flops(network, *example.args, **example.kwargs)
        pruned = prune(network, *example.args, **example.kwargs)
        after_pruning = {
            "pruned_parameters": count_parameters(pruned),
            "pruned_flops": count_flops(pruned, *example.args, **example.kwargs),
        }
        facts = {
            "settings": task.settings,
            "metric": settings.metric,
            "validation": validation,
            "seed": task.seed,
            "parameters": parameters,
            "flops": flops,
            **after_pruning,
        }
        write_bundle(output / BUNDLE, network, architecture, reference, example, facts, pruned)
        plan, combinations = plan_of(manager.experiment())
        if any(prices_latency(plan.with_values(values).search) for values in combinations):
            also = {**also, **latencies(pruned, sample, reference, example.first(1), output)}
        nni.report_final_result(
            Metrics(
                default=validation,
                key=task.key,
                test=result_on_test_part(evaluator, settings.metric),
                parameters=parameters,
                flops=flops,
                **after_pruning,
                validation_size=validation_size(evaluator),
                **also,
            )
        )


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold a lock on the output directory.

    After the manager was killed, a trial lives on until its next report; a resumed experiment runs the
    same trial again in the same directory meanwhile.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for an older process of this trial, which still writes to %s", directory)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _use_share_of_cores(manager: Manager) -> None:
    """Limit this process to cores / trial concurrency threads: trials that share cores slow each other down.

    Must run before torch is imported, which reads the variable once.
    """
    cores = usable_cores()
    threads = max(1, cores // manager.experiment()["params"]["trialConcurrency"])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    logger.info("this trial uses %d of %d cores", threads, cores)


def _show_tensorboard_to_the_portal(output: Path) -> None:
    """Link the events to where the portal's TensorBoard button looks.

    The button reads ``<experiment>/trials/<id>/output/tensorboard``, whatever ``$NNI_OUTPUT_DIR`` is, and
    makes that folder itself when it is pressed before there is one.
    """
    events = output / TENSORBOARD
    if os.environ.get("NNI_PLATFORM") != "local":
        return
    # <experiment>/environments/local-env/trials/<id>
    expected = output.parents[3] / "trials" / output.name / "output" / "tensorboard"
    expected.parent.mkdir(parents=True, exist_ok=True)
    if expected.is_dir() and not expected.is_symlink():
        events.symlink_to(expected)
    elif not expected.is_symlink():
        events.mkdir(exist_ok=True)
        expected.symlink_to(events)

"""What one NNI trial does: a search, or a training from scratch of a network found or of a random one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch

from nni_gumbel.complexity.baseline import random_network
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.complexity.own_cost import own_cost_of
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.evaluator import evaluator_of, result_on_test_part, validation_size
from nni_gumbel.pipeline.latency import latencies, prices_latency, shared_table
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.rehearsal import BeforeTheSearch, rehearse, remember_inputs
from nni_gumbel.pipeline.reporting import (
    Metrics,
    Progress,
    SearchProgress,
    our_reports_only,
    validation_metric,
)
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, RANDOM, SEARCH, TENSORBOARD, TRAIN, Task
from nni_gumbel.results.bundle import write_bundle
from nni_gumbel.results.choice import EQUAL_SIZE
from nni_gumbel.results.example import Example
from nni_gumbel.results.pruning import prune
from nni_gumbel.results.space import SpaceReference, network_of, sample_of
from nni_gumbel.search.strategy import GumbelSearch
from nni_gumbel.supernet.mutation import relax


def run_search(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Search the space once and report the network found."""
    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    own = command.own_cost()
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
                **costs.used_by(architecture),
            )
        )


def run_training(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Train one network from scratch, write its bundle, report what it reaches."""
    _train(task, task.architecture, command, manager, output, {})


def run_random(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Draw a network of the size asked for, with the task's seed, and train it as one that was found."""
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
    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    space = reference.build()
    sample = sample_of(space, architecture)
    network = network_of(space, sample)
    own = command.own_cost()
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


RUNS = {SEARCH: run_search, TRAIN: run_training, RANDOM: run_random}

"""What one NNI trial does: a search, or a training from scratch of a network found or of a random one."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from filelock import FileLock
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nni_gumbel.complexity.baseline import random_network
from nni_gumbel.complexity.flops import count_flops
from nni_gumbel.complexity.latency import LatencyTable, expected_latency, measure_latency
from nni_gumbel.complexity.own_cost import own_cost_of
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.complexity.table import ExpectedSum, cost_of
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.checkpoints import CHECKPOINTS, resumable
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.evaluator import (
    Classification,
    evaluator_of,
    measure_stability_of,
    result_on_test_part,
    validation_size,
)
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.rehearsal import EXAMPLES, BeforeTheSearch, rehearse
from nni_gumbel.pipeline.remote import Artifacts
from nni_gumbel.pipeline.reporting import Metrics, Progress, our_reports_only, validation_metric
from nni_gumbel.pipeline.sampling import SampledNetworks
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, RANDOM, SEARCH, TENSORBOARD, TRAIN, Task
from nni_gumbel.results.bundle import load_with_example, write_bundle
from nni_gumbel.results.choice import EQUAL_SIZE
from nni_gumbel.results.example import Example
from nni_gumbel.results.pruning import prune
from nni_gumbel.results.space import SpaceReference, network_of, sample_of
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.strategy import GumbelSearch
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax

LATENCY_TABLE = "latency-table.json"

logger = logging.getLogger(__name__)


def run_search(
    task: Task, command: TrialCommand, manager: Manager, output: Path, artifacts: Artifacts | None = None
) -> None:
    """Search the space once and report the network found."""
    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference, own = command.reference, command.own_cost()
    strategy = GumbelSearch(**{**vars(settings.search), **({} if own is None else {"cost": own})})
    supernet = strategy.mutate_model(reference.build())
    with torch.no_grad():
        strategy.distribution.use_probabilities()
    evaluator = evaluator_of(command, supernet, settings, settings.search_epochs, task.seed, output)
    evaluator = strategy.mutate_evaluator(evaluator)
    # The built-in evaluator needs an output for every class; another one's needs are its own.
    classes = evaluator.datamodule.num_classes if command.evaluator is None else None
    costs = evaluator.module.costs

    def check(example: Example) -> None:
        rehearse(supernet, strategy.distribution, reference, example, classes)
        if _prices_latency(settings.search):
            _, costs.latency_table = shared_table(supernet, strategy.distribution, example.first(1), output)
        # A budget that no network can meet ends the trial here.
        costs.complete(example.args, example.kwargs)

    rehearsal = BeforeTheSearch(evaluator, check)
    progress = Progress(settings.metric, output / TENSORBOARD, of_search=True)
    sampled = SampledNetworks(supernet, task.seed)
    evaluator.trainer.callbacks += [rehearsal, progress, sampled]
    with our_reports_only(), resumable(evaluator, _checkpoints(task, output), artifacts):
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
        extra([], "the sampled networks are not kept", sampled.write, evaluator.module, output)


def run_training(
    task: Task, command: TrialCommand, manager: Manager, output: Path, artifacts: Artifacts | None = None
) -> None:
    """Train one network from scratch, write its bundle, report what it reaches.

    The network was found by a search, or is drawn here at random, of the size asked for.
    """
    settings, reference = ExperimentSettings.from_flat(task.settings), command.reference
    architecture, also = task.architecture, {}
    if task.stage == RANDOM:
        supernet = reference.build()
        distribution, cost = relax(supernet), expected_parameters(supernet)
        size = task.target_parameters
        architecture = random_network(supernet, distribution, cost, size, EQUAL_SIZE, task.seed)
        also["architecture"] = json.dumps(architecture)
    pl.seed_everything(task.seed)
    space = reference.build()
    sample = sample_of(space, architecture)
    network = network_of(space, sample)
    own = command.own_cost()
    if own is not None:  # a function that fails is told before the training
        also["own_cost"] = own_cost_of(own, sample, partial(network_of, space))
    evaluator = evaluator_of(command, network, settings, settings.train_epochs, task.seed, output)
    evaluator.trainer.callbacks.append(Progress(settings.metric, output / TENSORBOARD))
    plan = plan_of(manager.experiment())
    with our_reports_only(), resumable(evaluator, _checkpoints(task, output), artifacts):
        # NNI keeps the first final metric of a trial and no other. It waits for the extras, none of which can fail; the
        # report of the last epoch has told the metric before them.
        trained = train(network, evaluator, architecture, reference, task.settings, task.seed, output)
        if artifacts is not None:
            artifacts.put_output(output, BUNDLE)
        if any(_prices_latency(variant.search) for variant in plan.variants):
            example = trained.example.first(1)
            also |= latencies(trained.warnings, trained.pruned, sample, reference, example, output)
        nni.report_final_result(
            Metrics(
                default=trained.validation,
                key=task.key,
                test=trained.test,
                **trained.sizes,
                validation_size=validation_size(evaluator),
                **also,
                **({"warning": "; ".join(trained.warnings)} if trained.warnings else {}),
            )
        )
        seen = evaluator.trainer.global_step * settings.batch_size
        keep_stability(output, plan.settings, lambda: evaluator, trained=seen)


@dataclass(frozen=True)
class Trained:
    """A training: what it reaches, the network as it is exported, its costs, and an example of its inputs.

    All but the validation metric and the parameters are extras: one that cannot be told is ``None``, and a line among
    the warnings.
    """

    validation: float
    test: float | None
    pruned: nn.Module
    sizes: dict[str, int | None]
    example: Example
    warnings: list[str]


def extra(warnings: list[str], what: str, tell: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What is told or kept when the work of a trial is done; ``None`` and one more warning where that fails.

    Args:
        warnings: of the trial, so far.
        what: what is missing then.
        tell: called with the rest.
    """
    try:
        return tell(*args, **kwargs)
    # Whatever a person's network, data or evaluator, a full disk or torch raises: what is done is kept.
    except Exception as error:
        warnings.append(f"{what}: {first_line(error)}")
        logger.warning(warnings[-1], exc_info=error)
        return None


def train(
    network: nn.Module,
    evaluator: Lightning,
    architecture: dict[str, Any],
    reference: SpaceReference,
    settings: dict[str, Any],
    seed: int,
    output: Path,
) -> Trained:
    """Train a network with its evaluator, and write its bundle.

    Args:
        network: frozen, of the space.
        evaluator: of the network; it trains it.
        architecture: the sample that the network was frozen with.
        reference: of the space.
        settings: of the training, flat; ``metric`` is among them.
        seed: the global generators are already seeded with it.
        output: the folder that gets ``bundle/``.

    Raises:
        UsageError: the evaluator does not log the metric, or does not call the network, or the loss is not finite.
    """
    called_with: list[Example] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook.remove()
        batch = Example(args, kwargs).map(Tensor.detach)
        called_with.append(batch.first(EXAMPLES))
        # Our own steps know no layout of memory; those of another evaluator may.
        if isinstance(evaluator.module, Classification) and _runs_by_channels_last(network, batch):
            network.to(memory_format=torch.channels_last)

    hook = network.register_forward_pre_hook(keep, with_kwargs=True)
    evaluator.evaluate(network)
    network.to(memory_format=torch.contiguous_format)  # latencies are compared with tables of such layers
    metric = settings["metric"]
    validation = validation_metric(evaluator.trainer, metric)
    if not called_with:
        raise UsageError("--evaluator: its steps do not call the network as self.model(...); call it so")
    (example,) = called_with
    warnings: list[str] = []
    args, kwargs = example.args, example.kwargs
    pruned = extra(warnings, "the network is not pruned", prune, network, *args, **kwargs) or network
    sizes = {
        "parameters": count_parameters(network),
        "flops": extra(warnings, "FLOPs are not known", count_flops, network, *args, **kwargs),
        "pruned_parameters": count_parameters(pruned),
        "pruned_flops": extra(
            warnings, "FLOPs as exported are not known", count_flops, pruned, *args, **kwargs
        ),
    }
    facts = {"settings": settings, "metric": metric, "validation": validation, "seed": seed, **sizes}
    bundle = output / BUNDLE, network, architecture, reference, example, facts, pruned
    extra(warnings, "the weights could not be written", write_bundle, *bundle)
    test = extra(warnings, "the test result is not known", result_on_test_part, evaluator, metric)
    return Trained(validation, test, pruned, sizes, example, warnings)


def _runs_by_channels_last(network: nn.Module, example: Example) -> bool:
    """Whether a network of images computes the same by channels last, which makes a step on a CPU shorter.

    A ``view`` of a feature map fails there, and what changes a reshaped one in place changes a copy.
    """
    if any(tensor.device.type != "cpu" for tensor in example.tensors):
        return False

    def outputs(layout: torch.memory_format) -> list[Tensor]:
        tried, found = copy.deepcopy(network).to(memory_format=layout), []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for mode in (True, False):
                found += [
                    leaf for leaf in tree_leaves(example(tried.train(mode))) if isinstance(leaf, Tensor)
                ]
        return found

    try:
        pairs = zip(outputs(torch.contiguous_format), outputs(torch.channels_last), strict=True)
        return all(torch.allclose(usual, other, 1e-3, 1e-3, equal_nan=True) for usual, other in pairs)
    except Exception:  # whatever a layout that nobody asked for brings about: it is left as it is
        return False


def keep_stability(
    output: Path, settings: ExperimentSettings, evaluator: Callable[[], Lightning], **where: Any
) -> None:
    """Measure how stable a trained network is, and keep it as a file; one that cannot be told is a warning.

    Args:
        output: the trial's output directory.
        settings: of the experiment.
        evaluator: gives that of the network.
        **where: see :func:`~nni_gumbel.pipeline.evaluator.measure_stability_of`.
    """
    if settings.stability == "none":
        return
    minimize = settings.optimize_mode == "minimize"

    def keep() -> None:
        found = measure_stability_of(evaluator(), settings.metric, minimize, settings.stability, **where)
        if found is not None:
            found.write(output)

    extra([], "the stability of the network is not known", keep)


def keep_stability_on_test_part(records: Records, output: Path) -> None:
    """As :func:`keep_stability`, of the network that is exported.

    Args:
        records: of the experiment.
        output: the export trial's output directory.
    """
    with our_reports_only():
        keep_stability(
            output, records.plan.settings, lambda: exported_evaluator(records, output)[0], on_test_part=True
        )


def exported_evaluator(records: Records, output: Path) -> tuple[Lightning, Example]:
    """The evaluator of the network that is exported, with its weights, and an example of its inputs.

    A person's loggers are not told of what it does.

    Args:
        records: of the experiment.
        output: the export trial's output directory.
    """
    run, settings = records.choice.run, ExperimentSettings.from_flat(records.choice.network.settings)
    network, example = load_with_example(records.outputs / run.trial_id / BUNDLE)
    command = replace(records.command, loggers=())
    evaluator = evaluator_of(command, network, settings, settings.train_epochs, run.seed, output)
    evaluator.module.set_model(network)
    return evaluator, example


def _checkpoints(task: Task, output: Path) -> Path:
    """Of a task, whichever trial does it: NNI keeps the output directories of an experiment's trials side by side."""
    return output.parent / CHECKPOINTS / task.identity


RUNS = {SEARCH: run_search, TRAIN: run_training, RANDOM: run_training}


# -- latency: a table that the trials of an experiment share -------------------------------------------------


def _prices_latency(settings: SearchSettings) -> bool:
    return settings.cost == "latency" or settings.max_latency_ms is not None


def shared_table(
    supernet: ModelSpace, distribution: Distribution, example: Example, output: Path
) -> tuple[ExpectedSum, LatencyTable]:
    """The expected latency by the experiment's table, and the table; what it lacks is measured, while others wait.

    It lies beside the output directories of the trials. A lock lets one trial measure at a time: measurements would
    make each other longer, and a budget is to mean the same in every search.

    Args:
        supernet: a relaxed space.
        distribution: of its networks.
        example: a batch of inputs; times are of all of it.
        output: the trial's output directory.

    Raises:
        UsageError: a layer cannot be measured, or the file is no table.
    """
    path = output.parent / LATENCY_TABLE
    with FileLock(f"{path}.lock"):
        known = LatencyTable.load(path) if path.exists() else LatencyTable()
        cost, table = expected_latency(supernet, distribution, example.args, example.kwargs, known)
        if table != known:
            # A trial that is killed leaves the old file or the new one.
            fresh = path.with_name(f".{LATENCY_TABLE}.{os.getpid()}")
            table.save(fresh)
            os.replace(fresh, path)
    return cost, table


def latencies(
    warnings: list[str],
    network: nn.Module,
    sample: Mapping[str, Any],
    reference: SpaceReference,
    example: Example,
    output: Path,
) -> dict[str, float | None]:
    """How long a network takes for a batch, in milliseconds.

    Args:
        warnings: of its training, so far.
        network: frozen, of the space, as it is exported.
        sample: its NNI sample.
        reference: of the space.
        example: a batch of inputs.
        output: the trial's output directory.

    Returns:
        ``latency_ms``, the whole network measured now; ``table_latency_ms``, the sum of its layers by the table of
        the experiment, which searches go by. ``None`` for one that cannot be told, with a warning.
    """
    example = example.cpu()  # where networks are measured

    def measured() -> float:
        return measure_latency(network.cpu(), example.args, example.kwargs)

    def by_table() -> float:
        supernet = reference.build()
        distribution = relax(supernet)
        cost, _ = shared_table(supernet, distribution, example, output)
        return cost_of(distribution, cost, sample)

    return {
        name: extra(warnings, f"{name} is not known", tell)
        for name, tell in (("latency_ms", measured), ("table_latency_ms", by_table))
    }

"""What one NNI trial does: a search, a training from scratch, or the export.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.host import usable_cores
from nni_gumbel.pipeline.manager import Manager, plan_of
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.stages import networks
from nni_gumbel.pipeline.task import EXPORT, EXPORT_FOLDER, SEARCH, TRAIN, Task

if TYPE_CHECKING:
    from nni.nas.evaluator.pytorch import Lightning
    from torch import Tensor

logger = logging.getLogger(__name__)

BUNDLE, TENSORBOARD = "bundle", "tensorboard"


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
            run = {SEARCH: run_search, TRAIN: run_training, EXPORT: run_export}[task.stage]
            run(task, command, manager, output)
    except UsageError as error:
        print(f"nni-gumbel: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


def run_search(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Search the space once and report the network found."""
    _use_share_of_cores(manager)
    import pytorch_lightning as pl

    from nni_gumbel.complexity.cost import count_flops, count_parameters
    from nni_gumbel.pipeline.rehearsal import rehearse
    from nni_gumbel.pipeline.reporting import Metrics, SearchProgress, our_reports_only, validation_metric
    from nni_gumbel.results.space import SpaceReference
    from nni_gumbel.search.strategy import GumbelSearch

    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    strategy = GumbelSearch(**vars(settings.search))
    evaluator = _evaluator(command, settings, settings.search_epochs, task.seed)
    supernet = strategy.mutate_model(reference.build())
    evaluator = strategy.mutate_evaluator(evaluator)
    # The built-in evaluator needs an output for every class; another one's needs are its own.
    classes = evaluator.datamodule.num_classes if command.evaluator is None else None
    example = _example_input(evaluator)
    rehearse(supernet, strategy.distribution, reference, example, classes)
    evaluator.trainer.callbacks.append(SearchProgress(settings.metric, output / TENSORBOARD))
    with our_reports_only():
        evaluator.evaluate(supernet)
        architecture = evaluator.module.export()
        found = reference.build().freeze(architecture)
        nni.report_final_result(
            Metrics(
                default=validation_metric(evaluator.trainer, settings.metric),
                key=task.key,
                architecture=json.dumps(architecture),
                parameters=count_parameters(found),
                flops=count_flops(found, example),
                **evaluator.module.structure_summary(),
            )
        )


def run_training(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Train one network from scratch, write its bundle, report what it reaches."""
    _use_share_of_cores(manager)
    import pytorch_lightning as pl

    from nni_gumbel.complexity.cost import count_flops, count_parameters
    from nni_gumbel.pipeline.reporting import Metrics, Progress, our_reports_only, validation_metric
    from nni_gumbel.results.bundle import write_bundle
    from nni_gumbel.results.space import SpaceReference, sample_of

    settings = ExperimentSettings.from_flat(task.settings)
    pl.seed_everything(task.seed)
    reference = SpaceReference.parse(command.space, command.space_arguments)
    space = reference.build()
    network = space.freeze(sample_of(space, task.architecture))
    evaluator = _evaluator(command, settings, settings.train_epochs, task.seed)
    evaluator.trainer.callbacks.append(Progress(settings.metric, output / TENSORBOARD))
    with our_reports_only():
        evaluator.evaluate(network)
        validation = validation_metric(evaluator.trainer, settings.metric)
        example = _example_input(evaluator)
        parameters, flops = count_parameters(network), count_flops(network, example)
        facts = {
            "settings": task.settings,
            "metric": settings.metric,
            "validation": validation,
            "seed": task.seed,
            "parameters": parameters,
            "flops": flops,
        }
        write_bundle(output / BUNDLE, network, task.architecture, reference, example, facts)
        nni.report_final_result(
            Metrics(
                default=validation,
                key=task.key,
                test=_test_metric(evaluator, settings.metric),
                parameters=parameters,
                flops=flops,
                validation_size=_validation_size(evaluator),
            )
        )


def run_export(task: Task, command: TrialCommand, manager: Manager, output: Path) -> None:
    """Choose between the trained networks and put the chosen one where people find it; needs no torch."""
    from nni_gumbel.results.bundle import copy_bundle
    from nni_gumbel.results.choice import choose
    from nni_gumbel.results.report import export_readme

    settings, combinations = plan_of(manager.experiment())
    found = networks(settings, combinations, manager.trials())
    choice = choose(found, settings.metric, settings.optimize_mode)
    # NNI keeps the output directories of an experiment's trials side by side.
    source = output.parent / choice.run.trial_id / BUNDLE
    destination = Path.cwd() / EXPORT_FOLDER / os.environ["NNI_EXP_ID"]
    readme = export_readme(choice, found, settings.metric, destination, data=command.data)
    for folder in (output / EXPORT_FOLDER, destination):
        copy_bundle(source, folder, readme)
    chosen = choice.network
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
        }
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


def _evaluator(command: TrialCommand, settings: ExperimentSettings, epochs: int, seed: int) -> Lightning:
    from nni_gumbel.data import build_data
    from nni_gumbel.pipeline.evaluator import build_evaluator

    data = None
    if command.data is not None:
        data = build_data(command.data, data_dir=command.data_dir, batch_size=settings.batch_size, seed=seed)
    evaluator = build_evaluator(
        command.evaluator,
        data=data,
        epochs=epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=seed,
    )
    logger.info("this trial runs on %s", _device_name(evaluator))
    return evaluator


def _device_name(evaluator: Lightning) -> str:
    import torch

    device = evaluator.trainer.strategy.root_device
    if device.type != "cuda":
        return str(device)
    # NNI assigns a GPU by hiding the others: inside the trial it is always number 0.
    assigned = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f"{torch.cuda.get_device_name(device)} (CUDA_VISIBLE_DEVICES={assigned})"


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


def _example_input(evaluator: Lightning) -> Tensor:
    """Two inputs of the validation part."""
    from torch import Tensor

    batch = next(iter(_validation_loader(evaluator)))
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, Tensor):
        raise UsageError(
            f"--evaluator: a batch begins with {type(inputs).__name__}; give batches (inputs, targets) of tensors"
        )
    return inputs[:2]


def _validation_loader(evaluator: Lightning) -> Any:
    """The first validation loader: NNI allows several."""
    data = evaluator.datamodule
    loader = evaluator.val_dataloaders if data is None else data.val_dataloader()
    return loader[0] if isinstance(loader, (list, tuple)) else loader


def _validation_size(evaluator: Lightning) -> int | None:
    """Number of validation examples, if it is known."""
    try:
        return len(_validation_loader(evaluator).dataset)
    except (AttributeError, TypeError):
        return None


def _test_metric(evaluator: Lightning, metric: str) -> float | None:
    """The metric on the test part; ``None`` where there is none: a finished training is not lost to that."""
    from pytorch_lightning.utilities.model_helpers import is_overridden

    from nni_gumbel.pipeline.reporting import logged_metric

    data, module = evaluator.datamodule, evaluator.module
    if data is None or not (is_overridden("test_dataloader", data) and is_overridden("test_step", module)):
        return None
    evaluator.trainer.test(module, datamodule=data, verbose=False)
    value = logged_metric(evaluator.trainer, "test", metric)
    if value is None:
        logger.warning("the evaluator logs no test_%s: the test result is left out", metric)
    return value

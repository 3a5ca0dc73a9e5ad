"""What the benchmarks have in common: searches and trainings of the MNIST space, and a CSV that survives a stop.

Searches and trainings are those of the main job: the same evaluator, data and defaults.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

Row = dict[str, Any]

# The settings of the main job's searches and trainings alike.
_COMMON = ("batch_size", "learning_rate", "weight_decay")
MNIST = "mnist5k"


def search(seed: int, epochs: int, data: str = MNIST, **settings: Any) -> Row:
    """Search the MNIST space once.

    Args:
        seed: of the search.
        epochs: its length.
        data: a data set, as ``--data`` of the main job takes it.
        **settings: those of ``GumbelSearch``.

    Returns:
        ``architecture`` (JSON), ``parameters``, ``flops`` of the network that the search returns, its
        ``validation`` accuracy of the mixture, and the search's summary of the structure.
    """
    from nni_gumbel import GumbelSearch
    from nni_gumbel.complexity.flops import count_flops
    from nni_gumbel.complexity.params import count_parameters
    from search_spaces.mnist import MnistSpace

    evaluator = main_evaluator(seed, epochs, data)
    strategy = GumbelSearch(**settings)
    supernet = strategy.mutate_model(MnistSpace())
    evaluator = strategy.mutate_evaluator(evaluator)
    evaluator.evaluate(supernet)
    architecture = evaluator.module.export()
    network = MnistSpace().freeze(architecture)
    metrics = {name: float(value) for name, value in evaluator.trainer.callback_metrics.items()}
    return {
        "architecture": json.dumps(architecture),
        "parameters": count_parameters(network),
        "flops": count_flops(network, _images(evaluator)),
        "validation": metrics["val_acc"],
        **evaluator.module.structure_summary(),
    }


def train(seed: int, epochs: int, architecture: str, data: str = MNIST) -> Row:
    """Train one network of the MNIST space from scratch; see :func:`train_in`."""
    from search_spaces.mnist import MnistSpace

    return train_in(MnistSpace, seed, epochs, architecture, data)


def train_in(
    make_space: Callable[[], Any], seed: int, epochs: int, architecture: str, data: str = MNIST
) -> Row:
    """Train one network of a space from scratch; its ``validation`` and ``test`` accuracy and ``parameters``."""
    from nni_gumbel.complexity.params import count_parameters
    from nni_gumbel.results.space import sample_of

    evaluator, space = main_evaluator(seed, epochs, data), make_space()
    network = space.freeze(sample_of(space, json.loads(architecture)))
    evaluator.evaluate(network)
    validation = float(evaluator.trainer.callback_metrics["val_acc"])
    evaluator.trainer.test(evaluator.module, datamodule=evaluator.datamodule, verbose=False)
    test = float(evaluator.trainer.callback_metrics["test_acc"])
    return {"validation": validation, "test": test, "parameters": count_parameters(network)}


def main_evaluator(seed: int, epochs: int, name: str = MNIST, **settings: Any) -> Any:
    """The evaluator of the main job with its defaults, or other ``settings``, on a data set; seeds everything."""
    import pytorch_lightning as pl

    from nni_gumbel.data import build_data
    from nni_gumbel.pipeline.evaluator import build_evaluator

    pl.seed_everything(seed, verbose=False)
    common = {**main_settings(), **settings}
    data = build_data(name, data_dir="data", batch_size=common["batch_size"], seed=seed)
    return build_evaluator(None, data=data, epochs=epochs, seed=seed, **common)


def main_settings() -> Row:
    """The defaults of the main job that its searches and trainings have in common."""
    from nni_gumbel.pipeline.settings import ExperimentSettings

    return {name: getattr(ExperimentSettings(), name) for name in _COMMON}


def rows_of(
    jobs: Sequence[Mapping[str, Any]],
    run: Callable[..., Row],
    path: Path,
    workers: int,
    beside: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Run jobs that are not in a CSV yet, each on one thread, and write each there as soon as it has ended.

    Args:
        jobs: keyword arguments of ``run``.
        run: does one job: :func:`search`, :func:`train`, or another function that a new process can import.
        path: one row a job: its arguments and the defaults that it leaves alone as JSON, then what ``run`` returned.
        workers: processes at a time; 0 runs nothing.
        beside: what rows of another function depend on beside its arguments.

    Yields:
        The rows of all jobs, arguments included: those of the CSV first, the others as they end.
    """
    done = {row.pop("job"): row for row in read(path)}
    keys = {_key(job, run, beside or {}): dict(job) for job in jobs}
    for key, job in keys.items():
        if key in done:
            yield {**job, **done[key]}
    missing = [key for key in keys if key not in done]
    if not missing or workers == 0:
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _on_one_thread) as pool:
        running = {pool.submit(run, **keys[key]): key for key in missing}
        for number, future in enumerate(as_completed(running), start=1):
            key, row = running[future], future.result()
            _append(path, {"job": key, **row})
            print(f"{path.name}: {len(keys) - len(missing) + number} of {len(keys)}", file=sys.stderr)
            yield {**keys[key], **row}


def machine(device: str = "cpu") -> str:
    """What figures are measured with, in one line.

    Args:
        device: ``cuda`` adds the GPU.
    """
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; elsewhere the architecture must do
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    words = f"{', '.join(sorted(models)) or platform.machine()}, {os.cpu_count()} cores"
    if device == "cuda":
        import torch

        words += f", {torch.cuda.get_device_name()}"
    return f"{words}, Python {platform.python_version()}, torch {version('torch')}"


def read(path: Path) -> list[Row]:
    """The rows of a CSV, numbers as such, without what is empty; none, if there is no file."""
    if not path.exists():
        return []
    with path.open() as file:
        rows = csv.DictReader(file)
        return [{key: _value(text) for key, text in row.items() if text != ""} for row in rows]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write a CSV with the columns of all rows, at once: a stop leaves the old file."""
    columns = dict.fromkeys(column for one in rows for column in one)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def spread(values: Iterable[float], factor: float = 1, digits: int = 2) -> str:
    """Mean ± standard deviation of numbers times a factor, for tables; empty of nothing."""
    numbers = [factor * value for value in values]
    if not numbers:
        return ""
    return f"{mean(numbers):,.{digits}f} ± {stdev(numbers) if len(numbers) > 1 else 0:,.{digits}f}"


def _key(job: Mapping[str, Any], run: Callable[..., Row], beside: Mapping[str, Any]) -> str:
    """A job with all settings that it leaves alone: a row must not be taken for that of other defaults.

    The code is not in it: start in an empty folder after a change.
    """
    if run not in (search, train):
        return json.dumps({**beside, **job}, sort_keys=True)
    from nni_gumbel.search.settings import SearchSettings

    given = {name: value for name, value in job.items() if name not in ("seed", "epochs", "data")}
    settings = dict(SearchSettings(**given)) if run is search else {}
    return json.dumps({**main_settings(), **settings, **job}, sort_keys=True)


def _images(evaluator: Any) -> Any:
    return next(iter(evaluator.datamodule.val_dataloader()))[0][:2]


def _on_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "nni", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _append(path: Path, row: Row) -> None:
    """Add a row; the file is written anew, for a new row may have new columns."""
    write([*read(path), row], path)

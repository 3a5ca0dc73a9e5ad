"""``nni-gumbel train``: a network that was found, trained again - longer, on other data, or on from its weights.

It is the training of a trial, without NNI's manager, and ends in what an export is: the network of the best seed with
its programs, and a README with the mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from nni.nas.evaluator.pytorch import Lightning
from safetensors.torch import load_file
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.checkpoints import CHECKPOINTS, resumable
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.evaluator import check_metric, evaluator_of, validation_size
from nni_gumbel.pipeline.export import Export, write_export
from nni_gumbel.pipeline.loggers import close
from nni_gumbel.pipeline.rehearsal import check_scores, output_of
from nni_gumbel.pipeline.reporting import Progress, our_reports_only
from nni_gumbel.pipeline.settings import ExperimentSettings, deciding
from nni_gumbel.pipeline.task import BUNDLE, TENSORBOARD
from nni_gumbel.pipeline.trial import train
from nni_gumbel.results.bundle import ARCHITECTURE, FACTS, WEIGHTS, load_with_example, sha256_of
from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.space import SpaceReference, network_of, sample_of

# Of the folder: what is trained there; of a seed, when it is done: what it reached.
_BEGUN, _RESULT = "training.json", "result.json"


def train_again(
    bundle: str | Path,
    folder: str | Path,
    *,
    data: str | None,
    data_dir: str = TrialCommand.data_dir,
    evaluator: str | None = None,
    loggers: Sequence[str] = (),
    seeds: int = 1,
    from_weights: bool = False,
    **changed: Any,
) -> Export:
    """Train the network of a bundle with several seeds, and export the best one on validation.

    One that was interrupted goes on where it was when it is asked for again, and ends with the numbers of one that was
    not.

    Args:
        bundle: the folder of an export or of a training.
        folder: where to: ``seed-<n>/`` with the bundle and the TensorBoard events of each seed, and ``export/``.
        data, data_dir, evaluator, loggers: as in the trial command.
        seeds: how many; they count up from 0.
        from_weights: go on from the weights of the bundle, instead of new ones.
        changed: settings of a training that are not those of the bundle: ``train_epochs``, ``batch_size``,
            ``learning_rate``, ``weight_decay``, ``optimizer``, ``precision``, ``trainer``; ``None`` for one that stays.

    Raises:
        UsageError: the bundle cannot be rebuilt, a setting, the metric or the data do not fit it, the folder is of
            something else, or another process is training there.
    """
    path, folder = Path(bundle), Path(folder).absolute()
    _, example = load_with_example(path)  # its space is the one that was searched
    facts, architecture = (
        json.loads((path / name).read_text(encoding="utf-8")) for name in (FACTS, ARCHITECTURE)
    )
    given: Mapping[str, Any] = {name: value for name, value in changed.items() if value is not None}
    settings = ExperimentSettings.from_flat({**facts.get("settings", {}), **given, "train_seeds": seeds})
    command = TrialCommand(facts["space"], (), data, data_dir, evaluator, loggers=tuple(loggers))
    reference = replace(SpaceReference.parse(facts["space"]), arguments=dict(facts["arguments"]))
    weights = load_file(path / WEIGHTS) if from_weights else None

    def built(seed: int, command: TrialCommand = command) -> tuple[nn.Module, Lightning]:
        pl.seed_everything(seed)
        space = reference.build()
        network = network_of(space, sample_of(space, architecture))
        if weights is not None:
            # Without the layers that were pruned, whose outputs nobody uses.
            network.load_state_dict(weights, strict=False)
        output = folder / f"seed-{seed}"
        return network, evaluator_of(command, network, settings, settings.train_epochs, seed, output)

    # What every seed is trained by: a folder of the same is gone on with.
    what = {
        "space": facts["space"], "arguments": facts["arguments"], "architecture": architecture, "data": data,
        "evaluator": evaluator, "settings": deciding(settings.train_values()),
        "weights": weights and sha256_of(path / WEIGHTS),
    }  # fmt: skip
    begun = folder / _BEGUN
    if not begun.exists():
        if folder.exists():
            raise UsageError(
                f"-o: {str(folder)!r} exists already and is not overwritten; give another folder"
            )
        network, rehearsed = built(0, replace(command, loggers=()))  # MLflow's writes when it is made
        if evaluator is None:
            name = type(network).__name__
            check_scores(output_of(network, example, name), name, rehearsed.datamodule.num_classes)
        check_metric(rehearsed, network, settings.metric)
        folder.mkdir(parents=True)
        _write(begun, what)
    elif json.loads(begun.read_text(encoding="utf-8")) != what:
        raise UsageError(f"-o: {str(folder)!r} is of another training; give its settings, or another folder")
    with _alone_in(folder):
        for seed in range(seeds):
            output = folder / f"seed-{seed}"
            if (output / _RESULT).exists():
                continue
            network, made = built(seed)
            made.trainer.callbacks.append(Progress(settings.metric, output / TENSORBOARD))
            with our_reports_only(), resumable(made, folder / CHECKPOINTS / output.name):
                values = settings.train_values()
                trained = train(network, made, architecture, reference, values, seed, output)
                if not (output / BUNDLE).is_dir():
                    raise UsageError(
                        f"-o: {'; '.join(trained.warnings)}; mend it, and give the same command again"
                    )
                result = {"validation": trained.validation, "test": trained.test, **trained.sizes}
                _write(output / _RESULT, {**result, "validation_size": validation_size(made)})
            close(made.trainer.loggers)
        runs = []
        for seed in range(seeds):
            trained = json.loads((folder / f"seed-{seed}" / _RESULT).read_text(encoding="utf-8"))
            runs.append(TrainedRun(f"seed-{seed}", seed, trained.pop("validation"), trained.pop("test")))
        name = facts["space"].partition(":")[2]
        record = Network(name, architecture, settings.train_values(), runs=tuple(runs), **trained)
        origin = "its weights" if from_weights else "new weights"
        reason = f"The network of {path}, trained again from {origin}."
        choice = replace(choose([record], settings.metric, settings.optimize_mode), reason=reason)
        source = folder / choice.run.trial_id / BUNDLE
        with TemporaryDirectory() as work:
            return write_export(choice, [record], settings, data, source, (folder / "export",), Path(work))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"-o: another process is training in {str(folder)!r}; wait for it") from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole, or not at all."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)

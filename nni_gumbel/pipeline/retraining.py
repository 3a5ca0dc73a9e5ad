"""``nni-gumbel train``: a network that was found, trained again - longer, on other data, or on from its weights.

It is the training of a trial, without NNI's manager, and ends in what an export is: the network of the best seed with
its programs, and a README with the mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import load_file

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.evaluator import evaluator_of, result_on_test_part, validation_size
from nni_gumbel.pipeline.export import Export, write_export
from nni_gumbel.pipeline.rehearsal import check_scores, output_of
from nni_gumbel.pipeline.reporting import Progress, our_reports_only
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, TENSORBOARD
from nni_gumbel.pipeline.trial import train
from nni_gumbel.results.bundle import ARCHITECTURE, FACTS, WEIGHTS, load_with_example
from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.space import SpaceReference, network_of, sample_of


def train_again(
    bundle: str | Path,
    folder: str | Path,
    *,
    data: str | None,
    data_dir: str = TrialCommand.data_dir,
    evaluator: str | None = None,
    seeds: int = 1,
    from_weights: bool = False,
    **changed: Any,
) -> Export:
    """Train the network of a bundle with several seeds, and export the best one on validation.

    Args:
        bundle: the folder of an export or of a training.
        folder: where to: ``seed-<n>/`` with the bundle and the TensorBoard events of each seed, and ``export/``.
        data, data_dir, evaluator: as in the trial command.
        seeds: how many; they count up from 0.
        from_weights: go on from the weights of the bundle, instead of new ones.
        changed: settings of a training that are not those of the bundle: ``train_epochs``, ``batch_size``,
            ``learning_rate``, ``weight_decay``; ``None`` for one that stays.

    Raises:
        UsageError: the bundle cannot be rebuilt, a setting or the data do not fit it, or the folder is taken.
    """
    path, folder = Path(bundle), Path(folder).absolute()
    _, example = load_with_example(path)  # its space is the one that was searched
    facts, architecture = (
        json.loads((path / name).read_text(encoding="utf-8")) for name in (FACTS, ARCHITECTURE)
    )
    given: Mapping[str, Any] = {name: value for name, value in changed.items() if value is not None}
    settings = ExperimentSettings.from_flat({**facts.get("settings", {}), **given, "train_seeds": seeds})
    command = TrialCommand(facts["space"], (), data, data_dir, evaluator)
    reference = replace(SpaceReference.parse(facts["space"]), arguments=dict(facts["arguments"]))
    if folder.exists():
        raise UsageError(f"-o: {str(folder)!r} exists already and is not overwritten; give another folder")
    runs, trained = [], None
    for seed in range(seeds):
        pl.seed_everything(seed)
        space = reference.build()
        network = network_of(space, sample_of(space, architecture))
        if from_weights:
            # Without the layers that were pruned, whose outputs nobody uses.
            network.load_state_dict(load_file(path / WEIGHTS), strict=False)
        output = folder / f"seed-{seed}"
        made = evaluator_of(command, network, settings, settings.train_epochs, seed, output)
        if evaluator is None:
            name = type(network).__name__
            check_scores(output_of(network, example, name), name, made.datamodule.num_classes)
        made.trainer.callbacks.append(Progress(settings.metric, output / TENSORBOARD))
        with our_reports_only():
            trained = train(network, made, architecture, reference, settings.train_values(), seed, output)
        test = result_on_test_part(made, settings.metric)
        runs.append(TrainedRun(output.name, seed, trained.validation, test))
    name = facts["space"].partition(":")[2]
    record = Network(
        name, architecture, settings.train_values(), runs=tuple(runs), validation_size=validation_size(made),
        **trained.sizes,
    )  # fmt: skip
    begun = "its weights" if from_weights else "new weights"
    reason = f"The network of {path}, trained again from {begun}."
    choice = replace(choose([record], settings.metric, settings.optimize_mode), reason=reason)
    source = folder / choice.run.trial_id / BUNDLE
    with TemporaryDirectory() as work:
        return write_export(choice, [record], settings, data, source, (folder / "export",), Path(work))

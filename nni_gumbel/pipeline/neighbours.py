"""What the neighbours of the exported network reach: with its trained weights where they fit, or retrained."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
from safetensors.torch import load_file

from nni_gumbel.complexity.params import count_parameters
from nni_gumbel.errors import first_line
from nni_gumbel.pipeline.evaluator import evaluator_of, score_on, some_examples, validation_size
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.reporting import our_reports_only, validation_metric
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE
from nni_gumbel.pipeline.trial import exported_evaluator
from nni_gumbel.results.bundle import WEIGHTS
from nni_gumbel.results.neighbours import Neighbour, Neighbours, neighbours_of, take_weights
from nni_gumbel.results.perturbation import count_examples
from nni_gumbel.results.pruning import prune
from nni_gumbel.results.report import chosen_value
from nni_gumbel.results.space import network_of, sample_of

logger = logging.getLogger(__name__)


def keep_neighbours(records: Records, output: Path) -> None:
    """Measure the neighbours of the network that is exported, and keep the record.

    With ``stability: full`` each is trained as the network was, with the seed of the weights that are exported.
    Otherwise those that the trained weights fit are measured on at most 512 examples of the validation part.

    Args:
        records: of the experiment.
        output: the export trial's output directory.
    """
    chosen, run, metric = records.choice.network, records.choice.run, records.metric
    settings = ExperimentSettings.from_flat(chosen.settings)
    retrained = records.plan.settings.stability == "full"
    weights = load_file(records.outputs / run.trial_id / BUNDLE / WEIGHTS)
    space = records.command.reference.build()
    architecture, found = sample_of(space, chosen.architecture), []
    command = replace(records.command, loggers=())  # a person's loggers show the trials of the plan
    with our_reports_only():
        evaluator, example = exported_evaluator(records, output)
        batches = some_examples(evaluator, "cheap")
        value = run.validation if retrained else score_on(evaluator, metric, batches)
        examples = validation_size(evaluator) if retrained else count_examples(batches)
        for label, choice in neighbours_of(space, architecture):
            reached = parameters = None
            try:
                pl.seed_everything(run.seed, verbose=False)
                other = network_of(space, {**architecture, label: choice})
                pruned = prune(other, *example.args, **example.kwargs)
                parameters = count_parameters(pruned)
                if retrained:
                    own = evaluator_of(command, other, settings, settings.train_epochs, run.seed, output)
                    own.evaluate(other)
                    reached = validation_metric(own.trainer, metric)
                elif take_weights(pruned, weights):
                    evaluator.module.set_model(pruned)
                    reached = score_on(evaluator, metric, batches)
            # Whatever the network of a choice raises that nobody has chosen before: the others are measured.
            except Exception as error:
                logger.warning("neighbour %s=%s is not measured: %s", label, choice, first_line(error))
            words = chosen_value(choice)
            found.append(Neighbour(label=label, choice=words, parameters=parameters, value=reached))
            # Trainings take long, and nobody knows when the trial is stopped.
            Neighbours(
                name=chosen.name, retrained=retrained, examples=examples, value=value, found=tuple(found)
            ).write(output)

"""A rehearsal of a search: a few forward passes, in which most mistakes of a space show.

The doctor does it before an experiment starts, a trial before the first step of its search, on what the evaluator's
own training step calls the network with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.data import DOWNLOADED, build_data
from nni_gumbel.errors import UsageError, first_line, user_code
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.results.example import Example, in_eval
from nni_gumbel.results.space import SpaceReference, network_of
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.diagnosis import first_culprit
from nni_gumbel.search.objective import build_prior
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.state import unchanged_randomness
from nni_gumbel.search.steps import inputs_of, misfit, muted, training_step
from nni_gumbel.supernet.cell import check_loose_ends
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax

# As many examples as show what depends on the size of a batch.
EXAMPLES = 2


class BeforeTheSearch(pl.Callback):
    """Does something with an example of what the evaluator calls the supernet with, before the first step.

    The evaluator is set up by then, and its training step unpacks a batch as it will in the search; the call of the
    network does not take place.

    Args:
        evaluator: of the search, as :func:`~nni_gumbel.search.data.take_over` made it.
        do: is given the example, on the device of the search.

    Attributes:
        example: as soon as it is known.
    """

    def __init__(self, evaluator: Lightning, do: Callable[[Example], None]) -> None:
        self._evaluator, self._do = evaluator, do
        self.example: Example | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, data = pl_module.training_module, self._evaluator.datamodule
        loaders = (self._evaluator.train_dataloaders if data is None else data.train_dataloader()).iterables
        loader = loaders["val"]  # the data that the structure learns on
        while isinstance(loader, (list, tuple)):
            loader = loader[0]
        with unchanged_randomness([]):
            batch = trainer.precision_plugin.convert_input({"val": next(iter(loader))})
        batch = trainer.strategy.batch_to_device(batch)["val"]
        fails = "--evaluator: its training_step fails on the first batch"
        with muted(module), user_code(fails, "correct it, or name another"):
            inputs = inputs_of(module.model, lambda: training_step(module, batch, 0))
        self.example = Example(*inputs).first(EXAMPLES)
        self._do(self.example)


def output_of(network: nn.Module, example: Example, name: object) -> Any:
    """What a network returns in evaluation mode; it is left as it was.

    Args:
        network: also a supernet.
        example: of what it takes.
        name: what a person called it.

    Raises:
        UsageError: it fails.
    """
    try:
        with in_eval(network), torch.no_grad():
            return example(network)
    except UsageError:
        raise
    except Exception as error:  # whatever a person's forward raises
        raise UsageError(
            misfit(network, error)
            or f"--space: {name} fails on inputs of shape {example.shapes}: {first_line(error)}; "
            "correct it, or give it arguments that fit (key=value after --space)"
        ) from error


def rehearse(
    space: ModelSpace,
    distribution: Distribution,
    reference: SpaceReference,
    example: Example,
    classes: int | None,
) -> None:
    """Run a space on real inputs: does it take them, and does it fit the classes?

    Args:
        space: the supernet of a space; left as it is.
        distribution: of its networks; the current sample becomes the noise-free mixture.
        reference: what a person called it.
        example: a batch of what it takes.
        classes: how many outputs an example needs; ``None`` if that is not known.

    Raises:
        UsageError: it fails, no network of it can be built, its candidates do not fit together, its outputs are not
            finite, or it has another number of them.
    """
    with torch.no_grad():
        distribution.use_probabilities()
    output = output_of(space, example, reference)
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        culprit = first_culprit(space, lambda: example(space))
        raise UsageError(
            f"--space: {reference} gives numbers that are not finite; {culprit or 'look for a division by zero'}; "
            "mend or remove it"
        )
    distribution.joint_sample.tell_unread()
    check_loose_ends(space, distribution, lambda: example(space))
    network_of(space, distribution.mode())  # as a network that is found will be built, to be trained
    if classes is not None:
        check_scores(output, reference, classes)


def check_scores(output: Any, name: object, classes: int | None = None) -> int:
    """See that a network returns class scores, ``(examples, classes)``; how many classes.

    Args:
        output: of the network.
        name: what a person called it.
        classes: as many are needed; ``None`` for any number.

    Raises:
        UsageError: it does not.
    """
    is_tensor = isinstance(output, Tensor)
    if is_tensor and output.dim() == 2 and output.shape[1] == (classes or output.shape[1]):
        return output.shape[1]
    found = f"{tuple(output.shape[1:])} an example" if is_tensor else f"a {type(output).__name__}"
    needed = f", the data has {classes} classes" if classes else ""
    remedy = f", e.g. num_classes={classes} after --space" if classes else ""
    raise UsageError(
        f"--space: {name} gives {found}{needed}; return one tensor of class scores{remedy}, or name an --evaluator of "
        "your own"
    )


def rehearsed(command: TrialCommand, searches: Sequence[SearchSettings]) -> str:
    """What can be told of the searches of an experiment before it starts, in a line.

    The space is built, relaxed, tried on the data if that is at hand, and its networks are priced. Nothing is measured
    or downloaded, and no code of one's own but the space and the cost runs: what depends on a latency is left to the
    first search, and so are multiply-adds where there is no example.

    Args:
        command: of the trials.
        searches: the settings of each combination.

    Raises:
        UsageError: the space or the data cannot be had, a search cannot begin with them, no network meets a budget, a
            cost cannot be found, or a prior does not fit.
    """
    space = command.reference.build()
    choices, distribution, own = len(space.simplify()), relax(space), command.own_cost()
    example = None
    if command.data in DOWNLOADED:  # which may not be here yet
        example = Example((torch.zeros(EXAMPLES, *DOWNLOADED[command.data]),))
    elif command.data_is_at_hand:
        data = build_data(command.data, data_dir=command.data_dir, batch_size=EXAMPLES, seed=0)
        example = Example(next(iter(data.val_dataloader()))[:1]).first(EXAMPLES)
        classes = None if command.evaluator else data.num_classes
        rehearse(space, distribution, command.reference, example, classes)
    # Of searches that are priced alike, one is enough.
    alike = {(each.max_params, each.max_flops, each.cost, each.prior): each for each in searches}
    for settings in alike.values():
        cost = "params" if settings.cost == "latency" else settings.cost
        known = settings.model_copy(update={"max_latency_ms": None, "cost": cost})
        costs = SearchCosts(space, distribution, known, own)
        if example is not None:
            costs.complete(example.args, example.kwargs)
        if costs.is_complete or settings.prior != "cost":
            build_prior(settings.prior, distribution, costs)
    unknown = ("max_latency_ms",) if example is not None else ("max_flops", "max_latency_ms")
    later = [name for name in unknown if any(getattr(each, name) is not None for each in searches)]
    later += [] if command.data_is_at_hand else ["whether the space takes the data"]
    but = f", but for {' and '.join(later)}, which the first search tells" if later else ""
    return f"{command.space}, {choices} choices, each can be relaxed; every budget can be met{but}"

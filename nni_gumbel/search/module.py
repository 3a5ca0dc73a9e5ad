"""The Lightning module of a search: what the structure does in front of every weight step.

The *weight step* is Lightning's own, as in a plain training of the evaluator: it trains the weights on a training
batch, under a joint sample of all choices. In front of it, in ``training_step``, stands what the structure learns from
a *validation* batch, with dropout off:

* a *judgement* measures the losses of single networks, in the stages and finalists of the default course, which
  :mod:`~nni_gumbel.search.tournament` follows; the joint sample is a single network, too;
* with ``stages: 0`` a *structure step* draws a joint sample, measures the evaluator's loss, adds what the structure
  costs and how undecided it is, and moves the logits along the gradient. Temperature and entropy weight follow the
  progress of the search, step by step.

The noise-free mixture is validated; in a stage the most probable network, and behind the stages the one that is trained
alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import progress_of, temperature_at
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.course import check_duration, total_batches
from nni_gumbel.search.diagnosis import FiniteChecks, loss_error
from nni_gumbel.search.logits import LogitsUpdate
from nni_gumbel.search.nni_arguments import Penalty
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.state import (
    continue_randomness,
    draw_own_samples,
    mean_over_ranks,
    of_all_ranks,
    random_state,
)
from nni_gumbel.search.steps import dropout_off, loss_of, muted, training_step
from nni_gumbel.search.tournament import Tournament
from nni_gumbel.search.wrapping import WrappingModule
from nni_gumbel.supernet.cell import check_loose_ends
from nni_gumbel.supernet.distribution import Distribution

# A search has decided if what it chose has at least this mean probability.
_DECIDED = 0.95
# What a search that is resumed must have as the one that it goes on from.
_FIXED = ("stages", "finalists", "max_params", "max_flops", "max_latency_ms", "cost_weight")
_logger = logging.getLogger(__name__)


class GumbelSearchModule(WrappingModule):
    """Searches structure and weights together.

    Args:
        training_module: the evaluator's module; its model is the supernet.
        distribution: the logits of the supernet's choices.
        costs: of the structure; completed with the first batch.
        settings: how to search.
        penalty: a further term of the structure's loss.

    Raises:
        UsageError: the evaluator's module draws batches or updates weights itself.
    """

    def __init__(
        self,
        training_module: LightningModule,
        distribution: Distribution,
        costs: SearchCosts,
        settings: SearchSettings,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__(training_module, settings.gradient_clip_val)
        self.distribution, self.costs, self.settings = distribution, costs, settings
        self._fixed = {**{name: getattr(settings, name) for name in _FIXED}, "penalty": penalty is not None}
        self.objective = StructureObjective(distribution, costs, settings, penalty)
        self._checks = FiniteChecks()
        self._update = LogitsUpdate(distribution.logits, self._logits_optimizer(), self._checks)
        self._begun = -1  # the latest step that has begun
        self._total_steps = 1  # known when the training starts
        self._tournament: Tournament | None = None  # made when the length of the search is known
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until the first step

    def _logits_optimizer(self) -> torch.optim.Optimizer:
        """Adam, with the betas of DARTS (arXiv 1806.09055, appendix A.1.1)."""
        return torch.optim.Adam(
            list(self.distribution.logits.values()), lr=self.settings.arc_learning_rate, betas=(0.5, 0.999),
            foreach=True,  # the same numbers as one by one, for many small tensors in a fraction of the time
        )  # fmt: skip

    # -- progress ------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        """The number of the current batch, or of the last one, over all epochs."""
        return self.trainer.fit_loop.total_batch_idx

    @property
    def _warms_up(self) -> bool:
        return self.trainer.current_epoch < self.settings.warmup_epochs

    @property
    def progress(self) -> float:
        """Fraction of the search done, 0 at its first step and 1 at its last; survives a checkpoint."""
        return progress_of(self._step, self._total_steps)

    @property
    def temperature(self) -> float:
        """The temperature of the current step."""
        s = self.settings
        progress = self.progress if self._tournament is None else self._tournament.progress
        return temperature_at(progress, s.temperature_start, s.temperature_end, s.temperature_schedule)

    # -- hooks around the training ---------------------------------------------------------------

    def on_train_start(self) -> None:
        settings, trainer = self.settings, self.trainer
        check_duration(trainer, settings.warmup_epochs)
        self._total_steps = total_batches(trainer)
        draw_own_samples(trainer)
        if settings.stages and any(law.outcomes > 1 for law in self.distribution.laws.values()):
            warm_up = settings.warmup_epochs and int(settings.warmup_epochs * trainer.num_training_batches)
            self._tournament = Tournament(
                self, self.objective, settings, warm_up, self._total_steps - warm_up
            )
        if self._loaded is not None:  # now that the logits are on their device
            self._update.optimizer.load_state_dict(self._loaded["update"])
            if self._tournament is not None:
                steps = (f"{number} steps" for number in (self._loaded["steps"], self._total_steps))
                _check_same("search_epochs (or max_epochs)", *steps)
                self._tournament.load_state_dict(self._loaded["tournament"])
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        if self._loaded is not None:
            continue_randomness(self.trainer, self._loaded["randomness"])
        super().on_train_epoch_start()

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if self._tournament is not None and not self._warms_up:
            self._tournament.advance(self._step)
        self.training_module.on_train_batch_end(outputs, batch["train"], *args, **kwargs)

    def on_after_backward(self) -> None:
        self._checks.read()
        super().on_after_backward()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self._tournament is None:  # which sees to the schedules of its trainings
            self.training_module.lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_start(self) -> None:
        if self._tournament is None or self._warms_up:
            with torch.no_grad():
                self.distribution.use_probabilities()
        else:
            self.distribution.use_architecture(self._tournament.likely)
        self.training_module.on_validation_epoch_start()

    def on_train_epoch_end(self) -> None:
        of_penalty = {f"penalty/{name}": value for name, value in self.objective.details.items()}
        self.log_dict({**self.structure_summary(), **of_penalty})
        super().on_train_epoch_end()

    def on_train_end(self) -> None:
        self._checks.read()
        if self._tournament is not None:
            self._tournament.finish()
        decided = self.structure_summary()["chosen_probability"]
        if self.trainer.is_global_zero and decided < _DECIDED:
            _logger.warning(
                "the search ends undecided: what it chose has a mean probability of %.2f; "
                "raise search_epochs (or max_epochs), entropy_weight_end or arc_learning_rate", decided,
            )  # fmt: skip
        super().on_train_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gumbel_search"] = {
            "update": self._update.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "randomness": of_all_ranks(random_state(self.trainer.train_dataloader), self.trainer),
            "tournament": None if self._tournament is None else self._tournament.state_dict(),
            "fixed": self._fixed,
            "steps": self._total_steps,
        }
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint["gumbel_search"]
        for name, value in self._fixed.items():
            _check_same(name, self._loaded["fixed"][name], value)
        self.objective.load_state_dict(self._loaded["objective"])  # of a search that is over, too
        self.training_module.on_load_checkpoint(checkpoint)

    # -- the steps -----------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        together = self.trainer.accumulate_grad_batches
        if self._begun != self._step:
            self._begin_step(batch, batch_idx)
            self._begun, self._loaded = self._step, None
        elif together > 1:  # an optimiser asks for the loss again, as SAM and LBFGS do
            raise UsageError(
                f"accumulate_grad_batches: {together} batches belong together, and "
                f"{type(self.trainer.optimizers[0]).__name__} asks for the loss of all of them several times in a "
                "step; leave accumulate_grad_batches at 1, or give another optimiser"
            )
        return self._run(batch["train"], batch_idx, "weight step")[0]

    def _begin_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """What the structure does in front of a weight step, and the joint sample of that."""
        if self._begun < 0:
            self._prepare(batch["train"], batch_idx)
        tournament = None if self._warms_up else self._tournament
        if tournament is not None:
            tournament.enter(self._step)
            if tournament.judges(self._step):
                tournament.judge(self.losses_of(tournament.judged(), batch["val"], batch_idx))
        elif not self._warms_up:
            self._structure_step(batch["val"], batch_idx)
        every = self.settings.log_prob_every_n_step
        if self.loggers and every and self._step % every == 0:
            self.log_probs(self.export_probs())
        if tournament is not None:
            self.distribution.use_architecture(tournament.network(self._step))
        else:
            with torch.no_grad():
                self._draw()

    def _prepare(self, batch: Any, batch_idx: int) -> None:
        """What has to be done before the first step, also of a search that is resumed."""

        def run() -> Any:
            with muted(self.training_module):
                return self._run(batch, batch_idx, "first pass")

        if self._step == 0:
            check_loose_ends(self.model, self.distribution, run)
        known = self.costs.is_complete
        self.objective.prepare(run)
        if not known and self.trainer.world_size > 1:  # a time is measured differently by each process
            self.costs.load_state_dict(of_all_ranks(self.costs.state_dict(), self.trainer)[0])

    def _structure_step(self, batch: Any, batch_idx: int) -> None:
        self._draw()
        loss = self._judged_loss(batch, batch_idx, "structure step")
        gradient = self._update.gradient(self.objective(loss, self.progress), self.trainer)
        self._checks.read()
        self._update.step(gradient, self._step, self.trainer)
        self.objective.follow(self.progress, 1 / self._total_steps)

    def losses_of(self, networks: Sequence[Sample], batch: Any, batch_idx: int) -> list[float]:
        """The losses of single networks, with the weights of the supernet, on one batch.

        Args:
            networks: NNI samples that name every label.
            batch: of the part that the structure learns from.
            batch_idx: its number in the epoch.
        """
        losses = []
        with torch.no_grad():
            for network in networks:
                self.distribution.use_architecture(network)
                losses.append(self._judged_loss(batch, batch_idx, "judgement"))
        self._checks.read()
        # Each process has batches of its own, and all decide the same.
        return mean_over_ranks(torch.stack(losses).float(), self.trainer).tolist()

    def _draw(self) -> None:
        """Draw the joint sample of a step of all candidates, equally likely in a warm-up."""
        if self.settings.estimator == "probabilities":
            # During a warm-up they are uniform: no structure step has moved the logits from 0 yet.
            self.distribution.use_probabilities()
        else:
            self.distribution.sample(self.temperature, self.settings.estimator, self._warms_up)

    def _judged_loss(self, batch: Any, batch_idx: int, step: str) -> Tensor:
        """The loss of the current sample, with dropout off: what it is good for shows in the weights."""
        with dropout_off(self.training_module), muted(self.training_module):
            return self._run(batch, batch_idx, step)[1]

    def _run(self, batch: Any, batch_idx: int, step: str) -> tuple[Any, Tensor]:
        """What the evaluator returns for a batch under the current sample, and the loss in it."""
        module, where = self.training_module, f"{step} {self._step}"
        result = training_step(module, batch, batch_idx)
        loss = loss_of(result)
        self._checks.add(loss, lambda: loss_error(loss, where, batch, module, batch_idx))
        return result, loss

    # -- what is reported ----------------------------------------------------------------------

    def structure_summary(self) -> dict[str, float]:
        """The state of the structure in numbers, without sampling noise: ``objective.summary``, and the temperature."""
        return {"temperature": self.temperature, **self.objective.summary(self.export())}

    def export(self) -> Sample:
        """The network found: an NNI sample with the labels that it uses; within the budgets, if there are any."""
        found = None if self._tournament is None else self._tournament.found
        return self.objective.best() if found is None else dict(found)

    def finalists(self) -> list[Sample]:
        """The networks that were trained alone, the best first."""
        return [] if self._tournament is None else self._tournament.finals.ranked()

    @property
    def judged(self) -> list[tuple[Sample, float]]:
        """Networks that were judged in the stages, with shared weights, and what each reached relative to its stage."""
        if self._tournament is None:
            return []
        return list(zip(self._tournament.population.judged, self._tournament.population.objectives))

    def export_probs(self) -> Sample:
        """Per label, the probability of each candidate, without noise."""
        with torch.no_grad():
            # On a GPU every read waits for it: all labels are read together.
            values = iter(torch.cat([*self.distribution.probs().values()]).tolist())
        variables = self.distribution.variables.items()
        return {
            label: {str(value): next(values) for value in variable.values} for label, variable in variables
        }


def _check_same(name: str, saved: Any, own: Any) -> None:
    if saved != own:
        raise UsageError(
            f"{name}: the checkpoint is of a search with {saved}, this one has {own}; give it the settings of the "
            "checkpoint, or start anew without it"
        )

"""The Lightning module of a search: structure steps and weight steps.

The structure step draws one joint sample, measures the evaluator's loss on a *validation* batch, adds
what the structure costs and how undecided it is, and takes the gradient in the logits. The weight step draws another
sample and trains the weights on a *training* batch, exactly as the evaluator says.

By default a search has a course (:mod:`~nni_gumbel.search.course`):

1. In a round all candidates are trained by weight steps, from the weights that the search began with
   (:mod:`~nni_gumbel.search.restart`). From a quarter of the round on, a structure step stands before each of them,
   whose gradient is collected and moves nothing. At the end of the round the candidates are rejected for which the
   gradients speak least (:mod:`~nni_gumbel.search.evidence`).
2. In a stage the weights are trained for single networks, drawn from the candidates left, one a step. In the last
   quarter of the stage several of them are judged by their losses on validation batches. The logits follow, and the
   temperature falls from one stage to the next (:mod:`~nni_gumbel.search.population`).
3. A finalist is a network that is trained alone, and judged in the last quarter of its training. Which network comes
   next, and which one is found, follows from all that was judged (:mod:`~nni_gumbel.search.finals`). The network
   found is trained in the rest of the search.

:mod:`~nni_gumbel.search.tournament` knows where in its course a search is. With ``stages: 0`` there is no course: a
structure step stands before every weight step after the warm-up, its gradient moves the logits, and temperature and
entropy weight follow the progress of the search, step by step.

The structure is judged on validation batches with dropout off, as the network will be used. The noise-free mixture is
validated; in a stage the most probable network, and behind the stages the one that is trained alone.

What the steps are made of stands in files of its own: :mod:`~nni_gumbel.search.objective`,
:mod:`~nni_gumbel.search.structure`, :mod:`~nni_gumbel.search.weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import progress_of, temperature_at
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.course import segments, warn_if_short
from nni_gumbel.search.diagnosis import LossCheck, loss_of
from nni_gumbel.search.distributed import draw_own_samples, mean_over_ranks, of_all_ranks
from nni_gumbel.search.dropout import dropout_off
from nni_gumbel.search.duration import check_duration, total_batches
from nni_gumbel.search.logs import Log, logging_with, mute, unchanged, under_structure
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.penalty import Penalty
from nni_gumbel.search.randomness import continue_randomness, randomness_of_ranks
from nni_gumbel.search.selection import warn_if_undecided
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.steps import training_step
from nni_gumbel.search.structure import LogitsUpdate
from nni_gumbel.search.tournament import Tournament
from nni_gumbel.search.weights import (
    check_weight_optimisation,
    clip_weights,
    refuse_second_pass,
    scale_of_backward,
    scales_losses,
    update_weights,
)
from nni_gumbel.search.wrapping import WrappingModule
from nni_gumbel.supernet.cell import check_loose_ends
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import used_part


def check_estimator(distribution: Distribution, settings: SearchSettings) -> None:
    """Refuse settings whose estimator is not derived for a choice of the space.

    Raises:
        UsageError: names the preset, if it brought the estimator, and the choice.
    """
    if settings.estimator == "probabilities":
        return
    try:
        distribution.check_estimator(settings.estimator)
    except UsageError as error:
        if settings.preset == "none":
            raise
        raise UsageError(f"preset: {settings.preset!r} does not fit the space: {error}") from error


class GumbelSearchModule(WrappingModule):
    """Searches structure and weights together.

    Args:
        training_module: the evaluator's module; its model is the supernet.
        distribution: the logits of the supernet's choices.
        costs: of the structure; completed with the first batch.
        settings: how to search.
        penalty: a further term of the structure's loss, in NNI's form.

    Raises:
        UsageError: the estimator is not derived for a choice of the space.
    """

    def __init__(
        self,
        training_module: LightningModule,
        distribution: Distribution,
        costs: SearchCosts,
        settings: SearchSettings,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__(training_module)
        check_estimator(distribution, settings)
        self.distribution = distribution
        self.costs = costs
        self.settings = settings
        self.objective = StructureObjective(distribution, costs, settings, penalty)
        self._checks: list[LossCheck] = []  # of passes whose gradients are not used yet
        self._step = 0
        self._total_steps = 1  # known when the training starts
        self._update = LogitsUpdate(distribution.logits, settings.logits_clip_val)
        self._randomness: list[dict[str, Any]] | None = None  # of a checkpoint, until the first step
        self._tournament: Tournament | None = None  # made when the length of the search is known
        self._loaded: dict[str, Any] | None = None  # its state in a checkpoint, until then

    # -- progress ------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Fraction of the search done, 0 at its first step and 1 at its last; survives a checkpoint."""
        return progress_of(self._step, self._total_steps)

    @property
    def temperature(self) -> float:
        """The temperature of the current step."""
        if self._tournament is not None:
            return self._tournament.temperature
        return self._temperature_at(self.progress)

    def _temperature_at(self, progress: float) -> float:
        s = self.settings
        return temperature_at(progress, s.temperature_start, s.temperature_end, s.temperature_schedule)

    # -- hooks around the training ---------------------------------------------------------------

    def on_train_start(self) -> None:
        trainer = self.trainer
        check_duration(trainer, self.settings.warmup_epochs)
        check_weight_optimisation(self.training_module, trainer)
        self._total_steps = total_batches(trainer)
        if scales_losses(trainer):
            self._update.expect_half_precision()
        draw_own_samples(trainer)
        self._tournament = self._prepared_tournament()
        self._load_tournament()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        if self._randomness is not None:
            continue_randomness(self.trainer, self._randomness)
        super().on_train_epoch_start()

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.structure_summary())
        super().on_train_epoch_end()

    def on_train_end(self) -> None:
        self._check_losses()
        if self._tournament is not None:
            self._tournament.finish()
        if self.trainer.is_global_zero:
            warn_if_undecided(self.structure_summary()["chosen_probability"])
        super().on_train_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gumbel_search"] = {
            "step": self._step,
            "update": self._update.state_dict(),
            "objective": self.objective.state_dict(),
            "randomness": randomness_of_ranks(self.trainer),
            "tournament": None if self._tournament is None else self._tournament.state_dict(),
        }
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["gumbel_search"]
        self._step, self._randomness = saved["step"], saved["randomness"]
        self._update.load_state_dict(saved["update"])
        self.objective.load_state_dict(saved["objective"])
        self._loaded = saved["tournament"]
        super().on_load_checkpoint(checkpoint)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._check_losses()
        super().on_before_optimizer_step(optimizer)
        clip_weights(self.training_module, self.trainer, optimizer, self.settings.gradient_clip_val)

    def on_validation_epoch_start(self) -> None:
        """Validate the noise-free mixture; behind the rounds a single network."""
        network = None if self._tournament is None else self._tournament.likely
        with torch.no_grad():
            if network is None:
                self.distribution.use_probabilities()
            else:
                self.distribution.use_architecture(network)
        super().on_validation_epoch_start()

    # -- the steps -----------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        if self._step == 0:
            check_loose_ends(
                self.model,
                self.distribution,
                lambda: self._run(batch["train"], batch_idx, "first pass", mute),
            )
        self._prepare(batch["train"], batch_idx)
        warms_up = self.trainer.current_epoch < self.settings.warmup_epochs
        if self._tournament is not None and not warms_up and self._tournament.begins(self._step):
            self._check_losses()  # before anything follows from them
            self._tournament.enter(self._step)
        temperature = self.temperature
        if warms_up:
            result = self._weight_step(batch["train"], batch_idx, temperature, uniform=True)
        elif self._tournament is not None and not self._tournament.gathers(self._step):
            result = self._weight_step(batch["train"], batch_idx, temperature)
            if self._tournament.judges(self._step):
                self._judge(batch, batch_idx)
        elif self.settings.level == "single":
            result = self._joint_step(batch["train"], batch_idx, temperature)
        else:
            self._structure_step(batch, batch_idx, temperature)
            result = self._weight_step(batch["train"], batch_idx, temperature)
        every = self.settings.log_prob_every_n_step
        if self.loggers and every and self._step % every == 0:
            self.log_probs(self.export_probs())
        self._step, self._randomness = self._step + 1, None
        return result

    def _prepared_tournament(self) -> Tournament | None:
        settings, trainer = self.settings, self.trainer
        if not settings.stages or all(law.outcomes == 1 for law in self.distribution.laws.values()):
            return None
        epochs = settings.warmup_epochs
        warm_up = epochs and int(epochs * trainer.num_training_batches)
        wanted = (settings.rounds, settings.stages, settings.finalists)
        course = segments(self._total_steps - warm_up, *wanted)
        if trainer.is_global_zero:
            warn_if_short(course, *wanted)
        return Tournament(
            self, self.distribution, course, warm_up,
            likeliest=lambda: self.objective.likeliest(self.model), best=self.export, allowed=self._allowed,
            objective=self.objective.of_network, temperature=self._temperature_at,
        )  # fmt: skip

    def _load_tournament(self) -> None:
        """Go on with the tournament of a checkpoint."""
        loaded, self._loaded = self._loaded, None
        if self._randomness is not None and (loaded is None) != (self._tournament is None):
            raise UsageError(
                f"stages: the checkpoint is of a search {'without' if loaded is None else 'with'} stages, this one has "
                f"{self.settings.stages}; give it the settings of the checkpoint, or start anew without it"
            )
        if loaded is not None:
            self._tournament.load_state_dict(loaded)

    def _allowed(self, sample: Sample) -> Sample | None:
        """The labels that a network uses; ``None`` if it may not be found."""
        used = used_part(self.model, sample)
        return used if self.objective.allows(used) else None

    def _judge(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The losses of several networks on one batch, where the structure has its data."""
        judged, losses = batch.get("val", batch["train"]), []
        with torch.no_grad():
            for network in self._tournament.judged():
                self.distribution.use_architecture(network)
                losses.append(self._judged_loss(judged, batch_idx, "judgement"))
        self._check_losses()
        # Each process has batches of its own, and all decide the same.
        means = mean_over_ranks(torch.stack(losses).detach().float(), self.trainer)
        self._tournament.judge(means.tolist())

    def _structure_step(self, batch: dict[str, Any], batch_idx: int, temperature: float) -> None:
        for _ in range(self.settings.samples_per_step):
            self._draw(temperature)
            loss = self._judged_loss(batch["val"], batch_idx, "structure step")
            gradients = self._update.gradients(self._objective(loss))
            self._check_losses()
            self._update.add(gradients)
        self._move_logits(batch_idx)

    def _weight_step(self, batch: Any, batch_idx: int, temperature: float, uniform: bool = False) -> Any:
        tournament = self._tournament
        network = None if tournament is None or uniform else tournament.network(self._step)
        with torch.no_grad():
            if network is None:
                self._draw(temperature, uniform)
            else:
                self.distribution.use_architecture(network)
        result = update_weights(
            self, lambda: self._run(batch, batch_idx, "weight step"), batch_idx, schedules=tournament is None
        )
        if tournament is not None and not uniform:
            tournament.advance(self._step)
        self._check_losses()  # no optimiser has stepped, where several batches belong together
        return result

    def _joint_step(self, batch: Any, batch_idx: int, temperature: float) -> Any:
        """Structure and weights learn from one pass through the network and one back, on one batch."""
        self._draw(temperature)
        parts: list[Any] = []

        def forward() -> tuple[Any, Tensor]:
            if parts:
                refuse_second_pass(self)
            result, loss = self._run(batch, batch_idx, "joint step")
            # d objective / d logits = the part beside the loss + (d objective / d loss) (d loss / d logits)
            value = loss.detach().requires_grad_()
            objective = self._objective(value)
            beside = self._update.gradients(objective, retain_graph=True)
            parts.extend((beside, *torch.autograd.grad(objective, value)))
            return result, loss

        with self._update.gradients_of_backward(scale_of_backward(self.trainer)) as through_loss:
            result = update_weights(self, forward, batch_idx, schedules=self._tournament is None)
        if self._tournament is not None:
            self._tournament.advance(self._step)
        beside, factor = parts
        self._check_losses()
        self._update.add([b + factor * g for b, g in zip(beside, through_loss)])
        self._move_logits(batch_idx)
        return result

    # -- what the steps are made of ---------------------------------------------------------------

    def _prepare(self, batch: Any, batch_idx: int) -> None:
        """What has to be done before the first step, also of a search that is resumed."""
        known = self.costs.is_complete
        self.objective.prepare(self.model, lambda: self._run(batch, batch_idx, "first pass", mute))
        if not known and self.trainer.world_size > 1:  # a time is measured differently by each process
            self.costs.load_state_dict(of_all_ranks(self.costs.state_dict(), self.trainer)[0])

    def _draw(self, temperature: float, uniform: bool = False) -> None:
        """Draw the joint sample of a step of all candidates."""
        if self.settings.estimator == "probabilities":
            # During a warm-up they are uniform: no structure step has moved the logits from 0 yet.
            self.distribution.use_probabilities()
        else:
            self.distribution.sample(temperature, self.settings.estimator, uniform)

    def _run(
        self, batch: Any, batch_idx: int, step: str, log: Callable[[Log], Log] = unchanged
    ) -> tuple[Any, Tensor]:
        """What the evaluator returns for a batch under the current sample, and the loss in it."""
        module = self.training_module
        with logging_with(module, log):
            result = training_step(module, batch, batch_idx)
        loss = loss_of(result)
        self._checks.append(LossCheck(loss, f"{step} {self._step}", batch, module, batch_idx))
        return result, loss

    def _check_losses(self) -> None:
        """Refuse losses that are not finite, before anything moves along their gradients."""
        self._update.check()
        checks, self._checks = self._checks, []
        for check in checks:
            check()

    def _judged_loss(self, batch: Any, batch_idx: int, step: str) -> Tensor:
        """The loss of the current sample, with dropout off: what it is good for shows in the weights."""
        with dropout_off(self.training_module):
            return self._run(batch, batch_idx, step, under_structure(self.trainer))[1]

    def _objective(self, loss: Tensor) -> Tensor:
        objective, details = self.objective(loss, self.progress)
        if details:
            self.log_dict({f"penalty/{name}": value for name, value in details.items()})
        return objective

    def _move_logits(self, batch_idx: int) -> None:
        """Step, unless more batches belong to the step."""
        tournament, together = self._tournament, self.settings.batches_per_step
        ends = tournament is not None and tournament.begins(self._step + 1)
        if (batch_idx + 1) % together == 0 or self.trainer.is_last_batch or ends:
            gather = None if tournament is None else tournament.evidence.add
            self._update.step(self.trainer, self._step, gather)
            self.objective.follow(self.progress, self.settings.batches_per_step / self._total_steps)

    # -- what is reported ----------------------------------------------------------------------

    def structure_summary(self) -> dict[str, float]:
        """The state of the structure in numbers, without sampling noise.

        ``temperature``, and those of :meth:`StructureObjective.summary
        <nni_gumbel.search.objective.StructureObjective.summary>`.
        """
        return {"temperature": self.temperature, **self.objective.summary(self.export())}

    def export(self) -> Sample:
        """The network found: an NNI sample with the labels that it uses; within the budgets, if there are any."""
        found = None if self._tournament is None else self._tournament.found
        return self.objective.best(self.model) if found is None else dict(found)

    def finalists(self) -> list[Sample]:
        """The networks that were trained alone, the best first."""
        return [] if self._tournament is None else self._tournament.finals.ranked()

    def export_probs(self) -> Sample:
        """Per label, the probability of each candidate, without noise."""
        variables = self.distribution.variables
        with torch.no_grad():
            probabilities = self.distribution.probs()
            # On a GPU every read waits for it: all labels are read together.
            values = iter(torch.cat([*probabilities.values()]).tolist())
        return {
            label: {str(value): next(values) for value in variables[label].values} for label in probabilities
        }

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the logits, with the betas of DARTS (arXiv 1806.09055, appendix A.1.1)."""
        return torch.optim.Adam(
            list(self.distribution.logits.values()), lr=self.settings.arc_learning_rate, betas=(0.5, 0.999),
            weight_decay=self.settings.logits_weight_decay,
            foreach=True,  # the same numbers as one by one, for many small tensors in a fraction of the time
        )  # fmt: skip

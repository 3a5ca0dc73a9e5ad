"""The Lightning module of a search: a structure step and a weight step for every pair of batches.

The structure step draws one joint sample, measures the evaluator's loss on a *validation* batch, adds
what the structure costs and how undecided it is, and moves the logits. The weight step draws another
sample and trains the weights on a *training* batch, exactly as the evaluator says. Temperature and
entropy weight follow the progress of the search, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from torch import Tensor

from nni_gumbel.complexity.cost import ExpectedParameters
from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import linear, progress_of, temperature_at
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.architecture import used_part
from nni_gumbel.supernet.distribution import Distribution


class GumbelSearchModule(BaseOneShotLightningModule):
    """Searches structure and weights together.

    Args:
        training_module: the evaluator's module; its model is the supernet.
        distribution: the logits of the supernet's choices.
        expected_parameters: the cost of the structure.
        settings: how to search.
    """

    def __init__(
        self,
        training_module: LightningModule,
        distribution: Distribution,
        expected_parameters: ExpectedParameters,
        settings: SearchSettings,
    ) -> None:
        super().__init__(training_module)
        self.distribution = distribution
        self.expected_parameters = expected_parameters
        self.settings = settings
        self._step = 0
        self._total_steps = 1  # known when the training starts

    # -- progress ------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Fraction of the search done, 0 at its first step and 1 at its last; survives a checkpoint."""
        return progress_of(self._step, self._total_steps)

    @property
    def temperature(self) -> float:
        """The temperature of the current step."""
        s = self.settings
        return temperature_at(self.progress, s.temperature_start, s.temperature_end, s.temperature_schedule)

    @property
    def entropy_weight(self) -> float:
        """The weight of the structure's entropy at the current step."""
        return linear(self.settings.entropy_weight_start, self.settings.entropy_weight_end, self.progress)

    def on_train_start(self) -> None:
        trainer = self.trainer
        if trainer.max_epochs is not None and 0 < trainer.max_epochs <= self.settings.warmup_epochs:
            raise UsageError(
                f"warmup_epochs: {self.settings.warmup_epochs} leaves no epoch of {trainer.max_epochs} in which "
                "the structure learns; give less, or more epochs"
            )
        # Lightning marks such a scheduler only where it steps it itself.
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if any(isinstance(config.scheduler, plateau) for config in trainer.lr_scheduler_configs):
            raise UsageError(
                "lr_scheduler: ReduceLROnPlateau cannot follow a search, whose loss changes with the temperature; "
                "give a scheduler that follows steps or epochs"
            )
        batches = trainer.num_training_batches
        limits = [batches * trainer.max_epochs] if trainer.max_epochs and trainer.max_epochs > 0 else []
        if trainer.max_steps > 0:
            # Lightning counts both optimisers' steps: one a batch during the warm-up, two after it.
            warmup = min(trainer.max_steps, batches * self.settings.warmup_epochs)
            limits.append(warmup + math.ceil((trainer.max_steps - warmup) / 2))
        if not limits or math.isinf(min(limits)):
            raise UsageError(
                "max_epochs: a search needs an end for its temperature; give the Trainer max_epochs"
            )
        self._total_steps = int(min(limits))
        super().on_train_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gumbel_search_step"] = self._step
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._step = checkpoint["gumbel_search_step"]
        self.training_module.on_load_checkpoint(checkpoint)

    # -- the two steps -------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        temperature = self.temperature
        if self.trainer.current_epoch >= self.settings.warmup_epochs:
            self._structure_step(batch["val"], batch_idx, temperature)
        result = self._weight_step(batch["train"], batch_idx, temperature)
        self.log_dict(self.structure_summary(), on_step=False, on_epoch=True)
        self.advance_lr_schedulers(batch_idx)
        self._step += 1
        return result

    def _structure_step(self, batch: Any, batch_idx: int, temperature: float) -> None:
        self.distribution.sample(temperature)
        with self._logging_under("structure/"):
            loss = _loss_of(self.training_module.training_step(batch, batch_idx))
        objective = loss + self._structure_penalty()
        _check_finite(objective, "structure step", self._step)
        optimizer = self.architecture_optimizers()
        optimizer.zero_grad()
        # Only the logits need a gradient here: that of the weights would be a third of the work.
        self.manual_backward(objective, inputs=list(self.distribution.logits.values()))
        optimizer.step()

    def _structure_penalty(self) -> Tensor:
        cost = self.expected_parameters(self.distribution.probs()) / max(
            self.expected_parameters.largest, 1.0
        )
        return self.settings.cost_weight * cost + self.entropy_weight * self.distribution.entropy()

    def _weight_step(self, batch: Any, batch_idx: int, temperature: float) -> Any:
        with torch.no_grad():
            self.distribution.sample(temperature)
        result = self.training_module.training_step(batch, batch_idx)
        loss = _loss_of(result)
        _check_finite(loss, "weight step", self._step)
        # NNI and Lightning say "no limit" with None.
        self.advance_optimization(loss, batch_idx, self.settings.gradient_clip_val or None, "norm")
        return result

    def on_validation_epoch_start(self) -> None:
        """Validate the noise-free mixture."""
        self.distribution.use_probabilities()
        self.training_module.on_validation_epoch_start()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_end(self) -> None:
        self.training_module.on_validation_epoch_end()

    # -- what is reported ----------------------------------------------------------------------

    def structure_summary(self) -> dict[str, float]:
        """The state of the structure in numbers; without sampling noise.

        ``temperature``, ``entropy`` (mean over labels, 1 is uniform), ``expected_params`` and
        ``max_probability`` (mean over labels of the largest probability).
        """
        with torch.no_grad():
            probabilities = self.distribution.probs()
            return {
                "temperature": self.temperature,
                "entropy": float(self.distribution.entropy()),
                "expected_params": float(self.expected_parameters(probabilities)),
                "max_probability": float(torch.stack([p.max() for p in probabilities.values()]).mean()),
            }

    def export(self) -> Sample:
        """The most probable network: an NNI sample with the labels that it uses."""
        return used_part(self.model, self.distribution.mode())

    def export_probs(self) -> Sample:
        """Per label, the probability of each candidate: ``softmax(logits)``, without noise."""
        return {
            label: dict(zip(map(str, self.distribution.variables[label].values), p.detach().tolist()))
            for label, p in self.distribution.probs().items()
        }

    # -- optimisers ----------------------------------------------------------------------------

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the logits, with the betas of DARTS (arXiv 1806.09055, appendix A.1.1)."""
        return torch.optim.Adam(
            list(self.distribution.logits.values()), lr=self.settings.arc_learning_rate, betas=(0.5, 0.999)
        )

    @contextmanager
    def _logging_under(self, prefix: str) -> Iterator[None]:
        """Log what the evaluator logs under a prefix, so that numbers of the two steps do not mix.

        A torchmetrics object that is logged itself still accumulates over both: it is one object.
        """
        plain: Callable[..., None] = self.training_module.log

        def log(name: str, value: Any, prog_bar: bool = False, *args: Any, **kwargs: Any) -> None:
            plain(prefix + name, value, False, *args, **kwargs)

        self.training_module.log = log
        try:
            yield
        finally:
            self.training_module.log = plain


def _loss_of(result: Any) -> Tensor:
    return result["loss"] if isinstance(result, dict) else result


def _check_finite(loss: Tensor, where: str, step: int) -> None:
    if not torch.isfinite(loss.detach()).all():
        raise UsageError(
            f"loss: {float(loss.detach()):g} in the {where} {step} is not finite; lower learning_rate, "
            "or look for a candidate that divides by zero or grows without bound"
        )

"""NNI's wrapper around an evaluator's module, with what it leaves out.

``BaseOneShotLightningModule`` passes most of Lightning's hooks on to the evaluator's module. Here it also
validates, hands the evaluator's hooks a training batch instead of a pair, keeps the Trainer's options that
Lightning refuses under manual optimisation, lets ``ddp`` know about the logits, and logs probabilities
without a metric for each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule

from nni_gumbel.search.batches import pass_on_batch_hooks
from nni_gumbel.search.distributed import mean_over_ranks, prepare_ddp
from nni_gumbel.search.weights import TrainerOptions


class WrappingModule(BaseOneShotLightningModule):
    """Looks like a module to Lightning, and like Lightning to the evaluator's module inside.

    Args:
        training_module: the evaluator's module.
    """

    def __init__(self, training_module: LightningModule) -> None:
        super().__init__(training_module)
        self._options: TrainerOptions | None = None
        pass_on_batch_hooks(training_module, self)

    def configure_callbacks(self) -> Any:
        # The last hook before Lightning refuses some of the Trainer's options; `setup` puts them back.
        self._options = TrainerOptions.hide(self.trainer)
        self.training_module.trainer = self.trainer
        return self.training_module.configure_callbacks()

    def setup(self, stage: str | None = None) -> None:
        self._options.show(self.trainer)
        prepare_ddp(self, self.trainer)
        super().setup(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_load_checkpoint(checkpoint)

    def on_train_batch_start(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.training_module.on_train_batch_start(batch["train"], *args, **kwargs)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.training_module.on_train_batch_end(outputs, batch["train"], *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.training_module.on_before_optimizer_step(optimizer)

    def on_validation_epoch_start(self) -> None:
        self.training_module.on_validation_epoch_start()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.training_module.on_validation_batch_start(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.training_module.on_validation_batch_end(*args, **kwargs)

    def on_validation_epoch_end(self) -> None:
        self.training_module.on_validation_epoch_end()

    def on_fit_end(self) -> None:
        # A finished search that was resumed has trained nothing, and NNI's evaluators have no metric to report.
        if self.trainer.callback_metrics:
            super().on_fit_end()

    def log_late(self, values: dict[str, float]) -> None:
        """Log after the training, when Lightning's ``log`` does not any more; means over all processes."""
        for name, value in values.items():
            mean = mean_over_ranks(torch.tensor(value, device=self.device), self.trainer)
            self.trainer.callback_metrics[name] = mean
            for logger in self.loggers:
                logger.log_metrics({name: float(mean)}, step=self.trainer.global_step)

    def log_probs(self, probs: Sample) -> None:
        """Write probabilities to the loggers, under NNI's names, and nowhere else: they are many."""
        named = {f"prob/{label}/{value}": p for label, ps in probs.items() for value, p in ps.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.trainer.global_step)

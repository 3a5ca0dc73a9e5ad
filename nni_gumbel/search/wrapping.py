"""NNI's wrapper around an evaluator's module, with what it leaves out.

``BaseOneShotLightningModule`` passes some of Lightning's hooks on to the evaluator's module. Here all of them
reach it, with the signatures that it gives them, so that it lives as in a plain training. The wrapper also hands
the evaluator's hooks a training batch instead of a pair, keeps the Trainer's options that Lightning refuses under
manual optimisation, lets ``ddp`` know about the logits, and logs probabilities without a metric for each of them.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from pytorch_lightning.core.hooks import ModelHooks
from pytorch_lightning.utilities.model_helpers import is_overridden

from nni_gumbel.search.batches import pass_on_batch_hooks
from nni_gumbel.search.distributed import prepare_ddp
from nni_gumbel.search.steps import check_steps, validation_step
from nni_gumbel.search.weights import TrainerOptions

# Hooks that Lightning may call on the evaluator's module as they are.
_HOOKS = (
    *(name for name in vars(ModelHooks) if not name.startswith("_")),
    *("prepare_data", "backward", "test_dataloader", "test_step", "predict_dataloader", "predict_step"),
)


class WrappingModule(BaseOneShotLightningModule):
    """Looks like a module to Lightning, and like Lightning to the evaluator's module inside.

    Args:
        training_module: the evaluator's module.

    Raises:
        UsageError: its training step draws batches itself.
    """

    def __init__(self, training_module: LightningModule) -> None:
        super().__init__(training_module)
        self._options: TrainerOptions | None = None
        check_steps(training_module)
        pass_on_batch_hooks(training_module, self)
        for name in _HOOKS:
            if is_overridden(name, training_module, pl.LightningModule) and not self._has_own(name):
                setattr(self, name, getattr(training_module, name))
        if is_overridden("validation_step", training_module, pl.LightningModule):
            self.validation_step = validation_step(training_module)

    def _has_own(self, hook: str) -> bool:
        """Whether a hook does something for the search, and then calls that of the evaluator's module."""
        bases = type(self).__mro__[: type(self).__mro__.index(BaseOneShotLightningModule)]
        return any(hook in vars(base) for base in bases)

    def configure_callbacks(self) -> Any:
        # The last hook before Lightning refuses some of the Trainer's options; `setup` puts them back.
        self._options = TrainerOptions.hide(self.trainer)
        self.training_module.trainer = self.trainer
        return self.training_module.configure_callbacks()

    def setup(self, stage: str | None = None) -> None:
        self._options.show(self.trainer)
        prepare_ddp(self, self.trainer)
        super().setup(stage)

    def teardown(self, stage: str | None = None) -> None:
        super().teardown(stage)
        # NNI's `setup` has put the log of the search in its place, and the module may be trained again.
        del self.training_module.log

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_load_checkpoint(checkpoint)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.training_module.on_before_optimizer_step(optimizer)

    def on_validation_epoch_start(self) -> None:
        self.training_module.on_validation_epoch_start()

    def on_train_batch_start(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.training_module.on_train_batch_start(batch["train"], *args, **kwargs)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.training_module.on_train_batch_end(outputs, batch["train"], *args, **kwargs)

    def on_fit_end(self) -> None:
        # A finished search that was resumed has trained nothing, and NNI's evaluators have no metric to report.
        if self.trainer.callback_metrics:
            super().on_fit_end()

    def log_probs(self, probs: Sample) -> None:
        """Write probabilities to the loggers, under NNI's names, and nowhere else: they are many."""
        named = {f"prob/{label}/{value}": p for label, ps in probs.items() for value, p in ps.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.trainer.global_step)

"""NNI's wrapper around an evaluator's module, with what it leaves out.

``BaseOneShotLightningModule`` passes some of Lightning's hooks on to the evaluator's module. Here all of them reach it,
with the signatures that it gives them, so that it lives as in a plain training. Lightning optimises the weights, as it
does there; hooks around a batch get the training batch of a pair.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from nni.mutable import Sample
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.core.hooks import ModelHooks
from pytorch_lightning.utilities.model_helpers import is_overridden

from nni_gumbel.errors import UsageError
from nni_gumbel.search.data import pass_on_batch_hooks
from nni_gumbel.search.state import prepare_ddp
from nni_gumbel.search.steps import check_module, validation_step

# Hooks that Lightning may call on the evaluator's module as they are.
_HOOKS = (
    *(name for name in vars(ModelHooks) if not name.startswith("_")),
    *("prepare_data", "backward", "test_dataloader", "test_step", "predict_dataloader", "predict_step"),
    *("optimizer_step", "optimizer_zero_grad"),
)


class WrappingModule(BaseOneShotLightningModule):
    """Looks like a module to Lightning, and like Lightning to the evaluator's module inside.

    A hook that is overridden here or in a subclass is not passed on: it calls that of ``training_module`` itself.

    Args:
        training_module: the evaluator's module; refused if it draws batches or updates its weights itself.
        clip_val: largest norm of the weights' gradient where the Trainer has no limit; 0 is none.
    """

    automatic_optimization = True  # NNI's base class has it off

    def __init__(self, training_module: LightningModule, clip_val: float) -> None:
        super().__init__(training_module)
        check_module(training_module)
        self._clip_val = clip_val
        pass_on_batch_hooks(training_module, self)
        classes = type(self).__mro__
        own = {name for kind in classes[: classes.index(BaseOneShotLightningModule)] for name in vars(kind)}
        for name in _HOOKS:
            if is_overridden(name, training_module, pl.LightningModule) and name not in own:
                setattr(self, name, getattr(training_module, name))
        if is_overridden("validation_step", training_module, pl.LightningModule):
            self.validation_step = validation_step(training_module)

    def configure_callbacks(self) -> Any:
        self.training_module.trainer = self.trainer
        return self.training_module.configure_callbacks()

    def setup(self, stage: str | None = None) -> None:
        prepare_ddp(self, self.trainer)
        super().setup(stage)

    def teardown(self, stage: str | None = None) -> None:
        super().teardown(stage)
        # NNI's `setup` has put the log of the search in its place, and the module may be trained again.
        del self.training_module.log

    def on_train_start(self) -> None:
        """Refuse what cannot follow a search: a scheduler that follows the loss, and averages of weights."""
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if any(isinstance(config.scheduler, plateau) for config in self.trainer.lr_scheduler_configs):
            raise UsageError(
                "lr_scheduler: ReduceLROnPlateau cannot follow a search, whose loss changes with the temperature; "
                "give a scheduler that follows steps or epochs"
            )
        if any(isinstance(callback, StochasticWeightAveraging) for callback in self.trainer.callbacks):
            raise UsageError(
                "callbacks: StochasticWeightAveraging would average the weights of different networks; leave it out"
            )
        super().on_train_start()

    def on_train_batch_start(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.training_module.on_train_batch_start(batch["train"], *args, **kwargs)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:  # fmt: skip
        limit = self._clip_val if gradient_clip_val is None else gradient_clip_val
        self.training_module.configure_gradient_clipping(
            optimizer, limit or None, gradient_clip_algorithm or "norm"
        )

    def on_fit_end(self) -> None:
        # A finished search that was resumed has trained nothing, and NNI's evaluators have no metric to report.
        if self.trainer.callback_metrics:
            super().on_fit_end()

    def log_probs(self, probs: Sample) -> None:
        """Write probabilities to the loggers, under NNI's names, and nowhere else: they are many."""
        named = {f"prob/{label}/{value}": p for label, ps in probs.items() for value, p in ps.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.trainer.global_step)

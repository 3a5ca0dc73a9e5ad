"""Under which names an evaluator's own numbers are logged, so that those of different steps do not mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer

Log = Callable[..., None]


@contextmanager
def logging_with(module: LightningModule, change: Callable[[Log], Log]) -> Iterator[None]:
    """Replace a module's ``log`` (and so its ``log_dict``) by a changed one.

    A torchmetrics object that is logged itself still accumulates over all steps: it is one object.
    """
    plain: Log = module.log
    module.log = change(plain)
    try:
        yield
    finally:
        module.log = plain


def unchanged(log: Log) -> Log:
    """Log as the evaluator says."""
    return log


def under_structure(trainer: Trainer) -> Callable[[Log], Log]:
    """Log under ``structure/``, and not in the progress bar.

    A number that only its step is told of, is logged in the steps in which the Trainer's loggers take numbers: in the
    others it would be overwritten unseen, and to log costs more time than small networks take.

    Args:
        trainer: of the search.
    """

    def change(log: Log) -> Log:
        # Which steps these are, with accumulated gradients too, Lightning tells nobody but itself.
        seen = trainer.is_last_batch or trainer._logger_connector.should_update_logs

        def renamed(name: str, value: Any, prog_bar: bool = False, *args: Any, **kwargs: Any) -> None:
            if seen or args or kwargs.get("on_epoch"):
                log("structure/" + name, value, False, *args, **kwargs)

        return renamed

    return change


def mute(log: Log) -> Log:
    """Log nothing."""
    return lambda *args, **kwargs: None

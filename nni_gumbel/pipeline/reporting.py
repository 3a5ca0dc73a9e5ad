"""What a running trial tells people: numbers for NNI's portal, curves for TensorBoard.

NNI's own evaluators report to the portal as well, a bare number without context. While one of them
runs inside a trial, only our reports pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from torch.utils.tensorboard import SummaryWriter

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.host import HostCopy


class Metrics(dict):
    """A report of ours; ``default`` is the number that the portal plots."""


class _OurReportsOnly(TrialCommandChannel):
    def __init__(self, channel: TrialCommandChannel) -> None:
        self._channel = channel
        self._intermediate_results = 0

    def receive_parameter(self) -> Any:
        return self._channel.receive_parameter()

    def send_metric(self, *, value: Any, type: str, sequence: int, **message: Any) -> None:
        if not isinstance(value, Metrics):
            return
        if type == "PERIODICAL":
            # NNI has counted those left out, too, and its portal shows a blank page where one is missing.
            sequence = self._intermediate_results
            self._intermediate_results += 1
        self._channel.send_metric(value=dict(value), type=type, sequence=sequence, **message)


@contextmanager
def our_reports_only() -> Iterator[None]:
    """Keep what an evaluator reports by itself away from the portal."""
    channel = get_default_trial_command_channel()
    set_default_trial_command_channel(_OurReportsOnly(channel))
    try:
        yield
    finally:
        set_default_trial_command_channel(channel)


class Progress(pl.Callback):
    """Reports every epoch of a run to the portal and to TensorBoard.

    Args:
        metric: name of the validation metric, without ``val_``.
        directory: where the TensorBoard events go.
        of_search: also temperature, entropy and expected cost, and to TensorBoard every label's probabilities.
    """

    def __init__(self, metric: str, directory: Path, *, of_search: bool = False) -> None:
        self.metric, self.of_search = metric, of_search
        self._writer = SummaryWriter(str(directory))
        self._losses: list[float] = []
        self._pending: tuple[HostCopy, int] | None = None  # a loss and its step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._read_pending()  # that of the step before: a GPU would have to be waited for
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._pending = HostCopy(torch.as_tensor(loss)), trainer.global_step

    def _read_pending(self) -> None:
        if self._pending is None:
            return
        (copy, step), self._pending = self._pending, None
        loss = float(copy.read())
        if not math.isfinite(loss):
            raise UsageError(
                f"loss: {loss:g} at step {step} is not finite; lower learning_rate, "
                "or look for a layer that divides by zero or grows without bound"
            )
        self._losses.append(loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_pending()
        numbers = {"train_loss": sum(self._losses) / max(len(self._losses), 1)}
        self._losses.clear()
        curves = {}
        if self.of_search:
            numbers |= pl_module.structure_summary()
            for label, probabilities in pl_module.export_probs().items():
                curves |= {f"probability/{label}/{name}": value for name, value in probabilities.items()}
        default = logged_metric(trainer, "val", self.metric)
        if default is not None:  # an evaluator need not validate in every epoch
            nni.report_intermediate_result(Metrics(default=default, **numbers))
            curves[f"val_{self.metric}"] = default
        for name, value in {**numbers, **curves}.items():
            self._writer.add_scalar(name, value, trainer.current_epoch)
        self._writer.flush()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """The losses of the epoch so far, for a run that goes on within it."""
        self._read_pending()
        return {"losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = list(state_dict["losses"])


def logged_metric(trainer: pl.Trainer, part: str, metric: str) -> float | None:
    """The last value of a metric that the evaluator logged; ``None`` if it logged none.

    Args:
        trainer: after an epoch, or after a test.
        part: ``val`` or ``test``.
        metric: its name, without the part's prefix.
    """
    for name in (f"{part}_{metric}", f"{part}/{metric}"):
        if name in trainer.callback_metrics:
            return float(trainer.callback_metrics[name])
    return None


def check_logged(trainer: pl.Trainer, metric: str) -> float:
    """The last value of a validation metric.

    Raises:
        UsageError: the evaluator has logged no such metric.
    """
    value = logged_metric(trainer, "val", metric)
    if value is None:
        names = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
        there = ", ".join(names) or "nothing of that kind"
        raise UsageError(
            f"metric: the evaluator logs no val_{metric}, it logs {there}; set metric to one of them (without `val_`)"
        )
    return value


def validation_metric(trainer: pl.Trainer, metric: str) -> float:
    """The metric that networks are compared by, after a run.

    Raises:
        UsageError: the evaluator logs no such metric, or it is not finite.
        KeyboardInterrupt: the run was interrupted, and Lightning returned as if it had come to its end.
    """
    if trainer.interrupted:
        raise KeyboardInterrupt
    value = check_logged(trainer, metric)
    if not math.isfinite(value):
        raise UsageError(f"metric: val_{metric} is {value}; lower learning_rate, or correct the evaluator")
    return value

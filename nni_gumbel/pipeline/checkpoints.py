"""Checkpoints of a run, where the next trial of the same task finds them.

They lie beside the output directories of the trials, under the identity of the task: NNI may start a trial again, or
the tuner may hand the task to another one. A run is saved at the end of every epoch but the last; the two latest
checkpoints are kept, because a machine that fails while it writes may leave the latest one damaged.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.callbacks import ModelCheckpoint

from nni_gumbel.errors import first_line
from nni_gumbel.pipeline.remote import Artifacts
from nni_gumbel.search.state import continue_randomness, of_all_ranks, random_state

CHECKPOINTS = "checkpoints"
_KEPT = 2
_RANDOMNESS = "nni_gumbel_randomness"

_logger = logging.getLogger(__name__)


@contextmanager
def resumable(evaluator: Lightning, folder: Path, artifacts: Artifacts | None = None) -> Iterator[None]:
    """Within this context the evaluator's run goes on from its latest checkpoint, and is saved after every epoch.

    The checkpoints are removed at the end, unless an error or a signal is the end: what was done is done.

    Args:
        evaluator: about to run.
        folder: of the checkpoints, of this task alone.
        artifacts: have a copy of them, for other hosts.
    """
    name = f"{CHECKPOINTS}/{folder.name}"
    if artifacts is not None:
        artifacts.get(name, folder)
    latest = latest_checkpoint(folder)
    if latest is not None:
        _logger.warning("this trial goes on from %s", latest.name)
        evaluator.fit_kwargs["ckpt_path"] = str(latest)
    copy = None if artifacts is None else lambda: artifacts.mirror(folder, name)
    evaluator.trainer.callbacks.append(_EveryEpoch(folder, copy))
    yield
    shutil.rmtree(folder, ignore_errors=True)
    if artifacts is not None:
        artifacts.remove(name)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read, with a warning for each that cannot; ``None`` if there is none."""
    # By their epochs: copies from another host are newer than what is in them.
    for path in sorted(folder.glob("epoch=*.ckpt"), key=lambda file: int(file.stem[6:]), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is cut off fails anywhere in torch's reader
            _logger.warning("%s cannot be read (%s), so the one before is taken", path, first_line(error))
        else:
            return path
    return None


class _EveryEpoch(ModelCheckpoint):
    """Saves a run, with its random numbers, at the end of every epoch but the last."""

    def __init__(self, folder: Path, copy: Callable[[], None] | None) -> None:
        super().__init__(
            folder, filename="{epoch}", monitor="epoch", mode="max", save_top_k=_KEPT, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        self._copy = copy
        self._loaded: list[dict[str, Any]] | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Of a run that is over nothing would be left to do, and its validation would be missing.
        if trainer.current_epoch + 1 != trainer.max_epochs:
            super().on_train_epoch_end(trainer, pl_module)
            if self._copy is not None and trainer.is_global_zero:
                self._copy()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_RANDOMNESS] = of_all_ranks(random_state(trainer.train_dataloader), trainer)
        # Hyper-parameters, of NNI's modules classes among them, would need code to be run when they are read. A run
        # that goes on is built by the same code, and does not look at them.
        for part in (pl_module, trainer.datamodule):
            checkpoint.pop(getattr(part, "CHECKPOINT_HYPER_PARAMS_KEY", ""), None)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint[_RANDOMNESS]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._loaded is not None:
            continue_randomness(trainer, self._loaded)
            self._loaded = None

"""Checkpoints of a run, where the next trial of the same task finds them.

They lie beside the output directories of the trials, under the identity of the task: NNI may start a trial again, or
the tuner may hand the task to another one. A run is saved at the end of every epoch but the last, and after the batch
in which SIGTERM or SIGINT comes (not in a validation: its epoch is repeated). The latest checkpoints are kept, not one
alone, because a machine that fails while it writes may leave the latest one damaged. With artifacts, other hosts have
them, too.

Lightning goes on within an epoch with the counters of the batch, but with the first batches of another order. Here the
random state with which an epoch's batches were drawn is saved, too: they are drawn again, and those that were trained
are left out.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.data import sized_len
from pytorch_lightning.utilities.exceptions import SIGTERMException

from nni_gumbel.errors import first_line
from nni_gumbel.pipeline.remote import Artifacts
from nni_gumbel.search.state import continue_randomness, of_all_ranks, random_state, restore_random_state

CHECKPOINTS = "checkpoints"
_KEPT = 2
_RANDOMNESS, _DRAWN = "nni_gumbel_randomness", "nni_gumbel_drawn"
_NAME = re.compile(r"epoch=(\d+)(-batch=(\d+))?")

_Drawn = dict[str, tuple[int, dict[str, Any]]]

_logger = logging.getLogger(__name__)


@contextmanager
def resumable(evaluator: Lightning, folder: Path, artifacts: Artifacts | None = None) -> Iterator[None]:
    """Within this context the evaluator's run goes on from its latest checkpoint, and is saved as the module says.

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
        _logger.warning("the run goes on from %s", latest.name)
        evaluator.fit_kwargs["ckpt_path"] = str(latest)
    copy = None if artifacts is None else lambda: artifacts.mirror(folder, name)
    evaluator.trainer.callbacks.append(_Saves(folder, copy))
    yield
    shutil.rmtree(folder, ignore_errors=True)
    if artifacts is not None:
        artifacts.remove(name)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read, with a warning for each that cannot; ``None`` if there is none."""
    # By their names: copies from another host are newer than what is in them.
    for path in sorted(folder.glob("epoch=*.ckpt"), key=_progress, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is cut off fails anywhere in torch's reader
            _logger.warning("%s cannot be read (%s), so the one before is taken", path, first_line(error))
        else:
            return path
    return None


def _progress(file: Path) -> tuple[int, int]:
    """Epochs that are done, and batches of the next one."""
    epoch, within, batches = _NAME.fullmatch(file.stem).groups()
    return (int(epoch), int(batches)) if within else (int(epoch) + 1, 0)


class _Saves(ModelCheckpoint):
    """Saves a run, with its random numbers, at the end of every epoch but the last, and when a signal ends it."""

    def __init__(self, folder: Path, copy: Callable[[], None] | None) -> None:
        super().__init__(
            folder, filename="{epoch}", monitor="epoch", mode="max", save_top_k=_KEPT, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        self._copy = copy
        self._loaded: list[dict[str, Any]] | None = None
        # The random state before an epoch's iterator was made, and before each of its loaders began latest.
        self._drawn: _Drawn | None = None
        # Of a checkpoint within an epoch, with the state at the signal.
        self._within: tuple[_Drawn, dict[str, Any]] | None = None
        self._is_interrupted = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _as_sigterm)  # Lightning puts the old handler back at the end
        # After all hooks of an epoch's start, and right before a batch is drawn; Lightning has no hooks there.
        loop = trainer.fit_loop.epoch_loop
        begin = loop.on_run_start

        def on_run_start(fetcher: Any) -> None:
            if self._within is None:
                self._drawn = {"iterator": (0, random_state(trainer.train_dataloader))}
            else:
                self._draw_again(trainer, fetcher, loop.batch_progress.current.ready)
            begin(fetcher)
            begin_fetch = fetcher._start_profiler

            def before_fetch() -> None:
                # Of several loaders a shorter one begins again when it is through.
                for length in map(sized_len, fetcher.combined_loader.flattened):
                    if fetcher.fetched == 0 or length and fetcher.fetched % length == 0:
                        self._drawn[str(length)] = fetcher.fetched, random_state(trainer.train_dataloader)
                begin_fetch()

            fetcher._start_profiler = before_fetch

        loop.on_run_start = on_run_start

    def _draw_again(self, trainer: pl.Trainer, fetcher: Any, count: int) -> None:
        """Draw the batches of an epoch that were trained before the signal, as they were drawn then."""
        (self._drawn, at_the_signal), self._within = self._within, None
        if trainer.current_epoch > 0:  # that of the first one is made earlier, also in a run that is whole
            restore_random_state(self._drawn["iterator"][1], trainer.train_dataloader)
            iter(fetcher)
        states = {number: state for name, (number, state) in self._drawn.items() if name != "iterator"}
        for number in range(count):
            if number in states:
                restore_random_state(states[number], trainer.train_dataloader)
            next(fetcher)
        fetcher.fetched = 0  # Lightning adds the count
        restore_random_state(at_the_signal, trainer.train_dataloader)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Of a run that is over nothing would be left to do, and its validation would be missing.
        is_over = trainer.should_stop or trainer.global_step == trainer.max_steps
        if trainer.current_epoch + 1 != trainer.max_epochs and not is_over:
            super().on_train_epoch_end(trainer, pl_module)
            if self._copy is not None and trainer.is_global_zero:
                self._copy()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # Lightning looks for a signal between two batches, in a validation, and behind an epoch, when its checkpoint is
        # there.
        loop = trainer.fit_loop.epoch_loop
        if not isinstance(exception, SIGTERMException) or not trainer.training or loop._is_training_done:
            return
        # Gradients that wait for those of more batches are in no checkpoint; a loader without a length that begins
        # again tells nobody when; before Lightning 2.5.1 a run that goes on within an epoch begins it anew.
        lengths = [sized_len(loader) for loader in trainer.fit_loop._combined_loader.flattened]
        is_lost = (
            loop._should_accumulate() or trainer.world_size > 1 or (len(lengths) > 1 and None in lengths)
        )
        if is_lost or not hasattr(trainer.fit_loop, "restarted_mid_epoch"):
            return
        self._is_interrupted = True
        before = set(Path(self.dirpath).glob("*-batch=*.ckpt"))
        batch = loop.batch_progress.current.completed
        fresh = Path(self.dirpath, f"epoch={trainer.current_epoch}-batch={batch}.ckpt")
        trainer.save_checkpoint(fresh)
        for path in before - {fresh}:
            path.unlink()
        if self._copy is not None:
            self._copy()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_RANDOMNESS] = of_all_ranks(random_state(trainer.train_dataloader), trainer)
        if self._is_interrupted:
            checkpoint[_DRAWN] = self._drawn
        # Hyper-parameters, of NNI's modules classes among them, would need code to be run when they are read. A run
        # that goes on is built by the same code, and does not look at them.
        for part in (pl_module, trainer.datamodule):
            checkpoint.pop(getattr(part, "CHECKPOINT_HYPER_PARAMS_KEY", ""), None)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if _DRAWN in checkpoint:
            self._within = checkpoint[_DRAWN], checkpoint[_RANDOMNESS][0]
        else:
            self._loaded = checkpoint[_RANDOMNESS]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._loaded is not None:
            continue_randomness(trainer, self._loaded)
            self._loaded = None


def _as_sigterm(*_: Any) -> None:
    """Let Lightning end the run behind the batch, as it does after SIGTERM; the next one ends it at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGTERM)

"""Which checkpoint a search is resumed from.

The state of a search is in Lightning's checkpoints, written by a ``ModelCheckpoint`` callback; what is kept here, in
the state of NNI's experiment, is only where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer


def checkpoints_of(trainer: Trainer, resumed_from: str | None) -> dict[str, Any]:
    """A state that leads to the last checkpoint of a search, now and if the search is killed later.

    Args:
        trainer: of the search; not started, running or done.
        resumed_from: the checkpoint that the search itself goes on from.

    Returns:
        ``ckpt_path``, the last checkpoint so far. Before the first one is written also ``folder``, where it will be,
        and ``older``, the names of the files that are there already. Empty without a callback.
    """
    callback = trainer.checkpoint_callback
    path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    if path:
        return {"ckpt_path": path}
    state = {"ckpt_path": resumed_from} if resumed_from else {}
    folder = getattr(callback, "dirpath", None)
    if folder:
        state |= {"folder": str(folder), "older": [file.name for file in _checkpoints_in(folder)]}
    return state


def last_checkpoint(state: Mapping[str, Any]) -> str | None:
    """The newest checkpoint that a state leads to; ``None`` if it leads to none."""
    new = [file for file in _checkpoints_in(state.get("folder")) if file.name not in state["older"]]
    if new:
        return str(max(new, key=lambda file: file.stat().st_mtime_ns))
    return state.get("ckpt_path")


def _checkpoints_in(folder: str | Path | None) -> list[Path]:
    return sorted(Path(folder).glob("*.ckpt")) if folder else []

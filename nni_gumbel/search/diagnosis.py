"""Where a number that is not finite came from: one extra pass over the batch that gave it.

Nothing is watched during a search; only when a loss is not finite is the batch run once more, under the
same joint sample, with a hook on every module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.host import HostCopy
from nni_gumbel.search.steps import logging_with, mute, training_step


class LossCheck:
    """Whether a loss is finite: on a CPU seen at once, on a GPU when it is asked for.

    A step asks when its backward pass is queued, and before it changes anything: the device is then busy while the host
    waits for the loss, and all is as it was when the loss was computed.

    Args:
        loss: of a batch, at the current sample.
        where: the step, for the message.
        batch: what the loss was computed from.
        module: the evaluator's module, whose model is the supernet.
        batch_idx: number of the batch in its epoch.

    Raises:
        UsageError: it is not finite; the candidate that brought it about is named.
    """

    def __init__(self, loss: Tensor, where: str, batch: Any, module: LightningModule, batch_idx: int) -> None:
        self._loss = HostCopy(loss)
        self._where, self._batch, self._module, self._batch_idx = where, batch, module, batch_idx
        if not loss.is_cuda:
            self()

    def __call__(self) -> None:
        loss = self._loss.read()
        if torch.isfinite(loss).all():
            return
        remedy = "lower learning_rate, or look for a candidate that divides by zero or grows without bound"
        if _not_finite(self._batch) is not None:
            remedy = "the batch itself holds numbers that are not finite; check the data"
        else:
            module = self._module
            with logging_with(module, mute):
                culprit = first_culprit(
                    module.model, lambda: training_step(module, self._batch, self._batch_idx)
                )
            if culprit is not None:
                remedy = f"{culprit}; mend or remove it, or lower learning_rate"
        raise UsageError(f"loss: {float(loss):g} in the {self._where} is not finite; {remedy}")


def first_culprit(space: nn.Module, run: Callable[[], Any]) -> str | None:
    """What first made a number that is not finite out of finite ones, in words: a candidate, else a module."""
    found: dict[str, str] = {}

    def watch(module: nn.Module, kind: str, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            number = _not_finite(output)
            if number is not None and kind not in found and _not_finite((args, kwargs)) is None:
                found[kind] = f"{name} returned {number:g}"

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = [
        watch(module[name], "candidate", f"candidate {str(name)!r} of choice {module.label!r}")
        for module in space.modules()
        if isinstance(module, LayerChoice)
        for name in module.names
    ]
    hooks += [
        watch(module, "module", f"{type(module).__name__} at {path!r}")
        for path, module in space.named_modules()
        if path
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found.get("candidate") or found.get("module")


def _not_finite(values: Any) -> float | None:
    """The first number in nested tensors that is not finite; ``None`` if all are."""
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            wrong = tensor.detach()[~torch.isfinite(tensor.detach())]
            if len(wrong):
                return float(wrong[0])
    return None

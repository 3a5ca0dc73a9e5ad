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
from nni_gumbel.search.logs import logging_with, mute


def finite_loss(result: Any, where: str, batch: Any, module: LightningModule, batch_idx: int) -> Tensor:
    """The loss in what an evaluator's ``training_step`` returned.

    Args:
        result: the loss, or a dict with it under ``loss``.
        where: the step, for the message.
        batch: what the loss was computed from.
        module: the evaluator's module, whose model is the supernet, at the sample that gave the loss.
        batch_idx: number of the batch in its epoch.

    Raises:
        UsageError: there is no loss, or it is not finite: then the candidate that brought it about is named.
    """
    loss = result.get("loss") if isinstance(result, dict) else result
    if not isinstance(loss, Tensor):
        raise UsageError(
            f"training_step: it returned no loss but {type(result).__name__}; return a loss for every batch, "
            "or a dict with it under 'loss'"
        )
    if torch.isfinite(loss.detach()).all():
        return loss
    if _not_finite(batch) is not None:
        remedy = "the batch itself holds numbers that are not finite; check the data"
    else:
        with logging_with(module, mute):
            culprit = first_culprit(module.model, lambda: module.training_step(batch, batch_idx))
        remedy = (
            "lower learning_rate, or look for a candidate that divides by zero or grows without bound"
            if culprit is None
            else f"{culprit}; mend or remove it, or lower learning_rate"
        )
    raise UsageError(f"loss: {float(loss.detach()):g} in the {where} is not finite; {remedy}")


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

"""Numbers that must be finite, and where one that is not came from.

Nothing is watched during a search. Only when a loss is not finite is its batch run once more, under the same joint
sample, with a hook on every module.
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
from nni_gumbel.search.steps import muted, training_step


class FiniteChecks:
    """Numbers that must be finite: on a CPU looked at at once, on a GPU when it is asked for.

    A step asks when its backward pass is queued: the device is then busy while the host waits for the numbers.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[HostCopy, Callable[[], UsageError]]] = []

    def add(self, number: Tensor, error: Callable[[], UsageError]) -> None:
        """Have a tensor looked at; ``error`` tells what is wrong if it is not finite."""
        self._pending.append((HostCopy(number), error))
        if not number.is_cuda:
            self.read()

    def read(self) -> None:
        """Raise the error of the first number that is not finite, of all that were added."""
        pending, self._pending = self._pending, []
        for number, error in pending:
            if not torch.isfinite(number.read()).all():
                raise error()


def loss_error(loss: Tensor, where: str, batch: Any, module: LightningModule, batch_idx: int) -> UsageError:
    """What is wrong with a loss that is not finite, at the current sample: the batch, or a candidate.

    ``where`` names the step. The module is the evaluator's; its model is the supernet.
    """
    remedy = "lower learning_rate, or look for a candidate that divides by zero or grows without bound"
    if _not_finite(batch) is not None:
        remedy = "the batch itself holds numbers that are not finite; check the data"
    else:
        with muted(module):
            culprit = first_culprit(module.model, lambda: training_step(module, batch, batch_idx))
        if culprit is not None:
            remedy = f"{culprit}; mend or remove it, or lower learning_rate"
    return UsageError(f"loss: {float(loss):g} in the {where} is not finite; {remedy}")


def first_culprit(space: nn.Module, run: Callable[[], Any]) -> str | None:
    """What first made a number that is not finite out of finite ones, in words: a candidate, else a module."""
    names = {
        module: ("module", f"{type(module).__name__} at {path!r}") for path, module in space.named_modules()
    }
    del names[space]
    for choice in space.modules():
        if isinstance(choice, LayerChoice):
            for name in choice.names:
                names[choice[name]] = "candidate", f"candidate {str(name)!r} of choice {choice.label!r}"
    found: dict[str, str] = {}

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        kind, name = names[module]
        number = _not_finite(output)
        if number is not None and kind not in found and _not_finite((args, kwargs)) is None:
            found[kind] = f"{name} returned {number:g}"

    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in names]
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

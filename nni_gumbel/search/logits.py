"""The step of the logits, which Lightning does not make.

Their gradient is taken with respect to them alone - that of the weights would be a third of the work - and so never
passes the machinery that belongs to the weights: the reducer of ``ddp``, the gradient scaler of fp16, the count of
steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.search.diagnosis import FiniteChecks
from nni_gumbel.search.state import mean_over_ranks

# So many steps of fp16 in a row may overflow: enough for a scale of 2^16 to fall to 1.
_MOST_LEFT_OUT = 16


class LogitsUpdate:
    """Moves the logits along the gradient of an objective.

    The objective is scaled as the losses of the weights are: in fp16 much, for gradients would vanish. Where it
    overflows, so will the loss of the weights, which lowers the scale: the step is left out.

    Attributes:
        optimizer: of the logits; its state is what a resumed search must know.
    """

    def __init__(
        self, logits: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, checks: FiniteChecks
    ) -> None:
        self._logits, self.optimizer, self._checks = dict(logits), optimizer, checks
        self._left_out = 0  # steps in a row

    def gradient(self, objective: Tensor, trainer: Trainer) -> Tensor:
        """The gradient of a scalar in the logits, label after label; 0 where it does not depend on them."""
        scaler = _scaler(trainer)
        scale = (1.0 if scaler is None else scaler.get_scale()) / trainer.accumulate_grad_batches
        logits = list(self._logits.values())
        return torch.cat(torch.autograd.grad(objective * scale, logits, materialize_grads=True)) / scale

    def step(self, gradient: Tensor, number: int, trainer: Trainer) -> None:
        """Move the logits along the mean over all processes of a gradient from :meth:`gradient`.

        ``number`` is that of the step, for the message. A gradient that is not finite is refused; in fp16, one of many
        steps in a row.
        """
        gradient = mean_over_ranks(gradient, trainer)
        norm = gradient.norm()
        if _scaler(trainer) is not None and self._left_out < _MOST_LEFT_OUT and not torch.isfinite(norm):
            self._left_out += 1
            return
        self._left_out = 0
        parts = dict(zip(self._logits, gradient.split([len(logits) for logits in self._logits.values()])))
        self._checks.add(norm, lambda: _gradient_error(parts, number))
        for label, logits in self._logits.items():
            logits.grad = parts[label]
        self.optimizer.step()
        self.optimizer.zero_grad()


def _scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _gradient_error(parts: Mapping[str, Tensor], number: int) -> UsageError:
    label = next(label for label, part in parts.items() if not torch.isfinite(part).all())
    return UsageError(
        f"choice {label!r}: the gradient of its logits in the structure step {number} is not finite; look for a "
        "candidate whose derivative is infinite (a root or a division at 0), or raise temperature_end"
    )

"""The update of the logits: gradients of several samples and batches averaged, then one step.

The logits are updated beside Lightning, not through it: their gradient is taken with respect to them alone - that of
the weights would be a third of the work - and so never passes the machinery that belongs to the weights (the reducer of
``ddp``, the gradient scaler of fp16, the count of steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.host import HostCopy
from nni_gumbel.search.state import mean_over_ranks

# So many steps of fp16 in a row may overflow: enough for a scale of 2^16 to fall to 1.
_MOST_LEFT_OUT = 16


class LogitsUpdate:
    """Collects gradients of the logits and applies their mean.

    Args:
        logits: per label, float32.
        optimizer: of the logits.
        clip_val: largest norm of the mean gradient of all logits together; 0 is no limit.

    Attributes:
        optimizer: as given.
        scale: what the losses of the weights are multiplied by before their backward pass: in fp16 much, for gradients
            would vanish. Those of the structure are, too, and a step whose gradient is not finite is left out then.
    """

    def __init__(
        self, logits: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, clip_val: float = 0.0
    ) -> None:
        self._logits, self.optimizer, self._clip_val = dict(logits), optimizer, clip_val
        self.scale: Tensor | float = 1.0
        self._sums: list[Tensor] | None = None
        self._count = 0
        self._unchecked: tuple[HostCopy, Tensor, int] | None = None
        self._left_out = 0  # steps in a row

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know: also a mean that is not complete yet."""
        return {"optimizer": self.optimizer.state_dict(), "sums": self._sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with :meth:`state_dict`, when the logits are on their device."""
        self.optimizer.load_state_dict(state["optimizer"])
        sums, device = state["sums"], next(iter(self._logits.values())).device
        self._sums = None if sums is None else [each.to(device) for each in sums]
        self._count = state["count"]

    def follow_scale(self, trainer: Trainer) -> None:
        """Take over the scale of the Trainer's losses; to be called in each step."""
        self.scale = 1 / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self.scale = scaler.scale(torch.tensor(self.scale, device=trainer.strategy.root_device))

    def gradients(self, objective: Tensor, retain_graph: bool = False) -> list[Tensor]:
        """The gradient of a scalar with respect to each label's logits; zeros where it does not depend on them."""
        gradients = torch.autograd.grad(
            objective * self.scale, list(self._logits.values()), retain_graph=retain_graph, materialize_grads=True
        )  # fmt: skip
        return [gradient / self.scale for gradient in gradients]

    def left_by_backward(self) -> list[Tensor]:
        """Take over the gradients that the backward pass of the weights has left at the logits."""
        found = []
        for logits in self._logits.values():
            gradient, logits.grad = logits.grad, None
            found.append(torch.zeros_like(logits) if gradient is None else gradient / self.scale)
        return found

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add one sample's gradient to the mean."""
        self._sums = list(gradients) if self._sums is None else [s + g for s, g in zip(self._sums, gradients)]
        self._count += 1

    def step(self, trainer: Trainer, step: int) -> None:
        """Move the logits along the mean of what was added, over all processes, and begin a new mean.

        Args:
            trainer: of the search.
            step: number of the step, for the message.

        Raises:
            UsageError: the gradient is not finite; in fp16, in many steps in a row.
        """
        flat = torch.cat([total.flatten() for total in self._sums]) / self._count
        flat = mean_over_ranks(flat, trainer)
        self._sums, self._count = None, 0
        norm = flat.norm()
        is_scaled = isinstance(self.scale, Tensor)
        if is_scaled and self._left_out < _MOST_LEFT_OUT and not torch.isfinite(norm):
            self._left_out += (
                1  # the scaled loss overflowed: so will that of the weights, which lowers the scale
            )
            return
        self._left_out, self._unchecked = 0, (HostCopy(norm), flat, step)
        if is_scaled or not norm.is_cuda:  # else, on a GPU, the answer is waited for later
            self.check()
        if self._clip_val:
            flat = flat * (self._clip_val / norm.clamp_min(1e-12)).clamp_max(1)
        for logits, gradient in zip(self._logits.values(), self._by_label(flat)):
            logits.grad = gradient.to(logits.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def check(self) -> None:
        """See that the latest mean gradient was finite; to be asked before anything follows from the step.

        Raises:
            UsageError: it was not.
        """
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is None or torch.isfinite(unchecked[0].read()):
            return
        _, flat, step = unchecked
        finite = (bool(torch.isfinite(part).all()) for part in self._by_label(flat))
        label = next(label for label, is_finite in zip(self._logits, finite) if not is_finite)
        raise UsageError(
            f"choice {label!r}: the gradient of its logits in the structure step {step} is not finite; "
            "look for a candidate whose derivative is infinite (a root or a division at 0), "
            "or raise temperature_end"
        )

    def _by_label(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([len(logits) for logits in self._logits.values()])

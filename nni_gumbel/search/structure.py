"""The update of the logits: gradients of several samples and batches averaged, then one step.

The logits are updated beside Lightning, not through it: their gradient is taken with respect to them
alone - that of the weights would be a third of the work - and so never passes the machinery that belongs
to the weights (the reducer of ``ddp``, the gradient scaler of fp16, the count of steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.host import HostCopy
from nni_gumbel.search.distributed import mean_over_ranks

# As torch.amp.GradScaler has them.
_FIRST_LOSS_SCALE = 2.0**16
_STEPS_BEFORE_GROWTH = 2000


def is_of_structure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser is that of the logits; NNI's base module marks it."""
    return getattr(optimizer, "is_arch_optimizer", False)


class LogitsUpdate:
    """Collects gradients of the logits and applies their mean.

    Args:
        logits: per label, float32.
        clip_val: largest norm of the mean gradient of all logits together; 0 is no limit.

    Attributes:
        loss_scale: what an objective is multiplied by before its gradient is taken, and the gradient
            divided by afterwards. 1, but in fp16 larger: gradients would vanish. Halved when a gradient
            was not finite, doubled again after many that were.
    """

    def __init__(self, logits: Mapping[str, nn.Parameter], clip_val: float = 0.0) -> None:
        self._logits, self._clip_val = dict(logits), clip_val
        self.loss_scale, self._finite_steps = 1.0, 0
        self._sums: list[Tensor] | None = None
        self._count = 0
        self._unchecked: tuple[HostCopy, Tensor, int] | None = None

    def expect_half_precision(self) -> None:
        """Scale losses, as gradients of a network in fp16 need it; once is enough."""
        if self.loss_scale == 1:
            self.loss_scale = _FIRST_LOSS_SCALE

    def state_dict(self) -> dict[str, float]:
        """What a resumed search must know; means are complete at the end of an epoch."""
        return {"loss_scale": self.loss_scale, "finite_steps": self._finite_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from :meth:`state_dict`."""
        self.loss_scale, self._finite_steps = state["loss_scale"], state["finite_steps"]

    def gradients(self, objective: Tensor, retain_graph: bool = False) -> list[Tensor]:
        """The gradient of a scalar with respect to each label's logits; zeros where it does not depend on them."""
        scale = self.loss_scale
        gradients = torch.autograd.grad(
            objective if scale == 1 else objective * scale, list(self._logits.values()),
            retain_graph=retain_graph, materialize_grads=True,
        )  # fmt: skip
        return list(gradients) if scale == 1 else [gradient / scale for gradient in gradients]

    @contextmanager
    def gradients_of_backward(self, scale: float) -> Iterator[list[Tensor]]:
        """Take over the gradients that a backward pass inside leaves at the logits; empty until it ends.

        Args:
            scale: what the loss of that pass is multiplied by.
        """
        gradients: list[Tensor] = []
        yield gradients
        for logits in self._logits.values():
            gradients.append(torch.zeros_like(logits) if logits.grad is None else logits.grad / scale)
            logits.grad = None

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add one sample's gradient to the mean."""
        self._sums = list(gradients) if self._sums is None else [s + g for s, g in zip(self._sums, gradients)]
        self._count += 1

    def step(
        self, trainer: Trainer, step: int, use: Callable[[Sequence[Tensor]], None] | None = None
    ) -> None:
        """Take the mean of what was added, over all processes, and begin a new mean.

        Args:
            trainer: with the optimiser of the logits.
            step: number of the step, for the message.
            use: what is done with the mean, by label; left out, the optimiser moves the logits along it.

        Raises:
            UsageError: the gradient is not finite.
        """
        flat = torch.cat([total.flatten() for total in self._sums]) / self._count
        flat = mean_over_ranks(flat, trainer)
        self._sums, self._count = None, 0
        norm = flat.norm()
        self._unchecked = (HostCopy(norm), flat, step)
        # On a GPU the answer is waited for later, unless the step may have to be left out.
        if (self.loss_scale > 1 or not norm.is_cuda) and not self.check():
            return
        self._finite_steps += 1
        if self._finite_steps % _STEPS_BEFORE_GROWTH == 0 and 1 < self.loss_scale < _FIRST_LOSS_SCALE:
            self.loss_scale *= 2
        if self._clip_val:
            flat = flat * (self._clip_val / norm.clamp_min(1e-12)).clamp_max(1)
        if use is not None:
            use(self._by_label(flat))
            return
        for logits, gradient in zip(self._logits.values(), self._by_label(flat)):
            logits.grad = gradient.to(logits.dtype)
        optimizer = next(o for o in trainer.optimizers if is_of_structure(o))
        optimizer.step()
        optimizer.zero_grad()

    def check(self) -> bool:
        """Whether the latest mean gradient was finite; to be asked before anything follows from the step.

        Raises:
            UsageError: it was not, and no scaled loss is the reason.
        """
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is None or torch.isfinite(unchecked[0].read()):
            return True
        self._leave_out_or_refuse(*unchecked[1:])
        return False

    def _leave_out_or_refuse(self, flat: Tensor, step: int) -> None:
        if self.loss_scale > 1:
            # The scaled loss overflowed in fp16: this step is left out, as GradScaler does.
            self.loss_scale, self._finite_steps = self.loss_scale / 2, 0
            return
        finite = (bool(torch.isfinite(part).all()) for part in self._by_label(flat))
        label = next(label for label, is_finite in zip(self._logits, finite) if not is_finite)
        raise UsageError(
            f"choice {label!r}: the gradient of its logits in the structure step {step} is not finite; "
            "look for a candidate whose derivative is infinite (a root or a division at 0), "
            "or raise temperature_end"
        )

    def _by_label(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([len(logits) for logits in self._logits.values()])

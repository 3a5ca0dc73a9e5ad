"""One candidate of ``n``: the law of layer choices and of single inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nni_gumbel.relaxation.gumbel import gumbel_noise, perturbed_given_top, relaxed_categorical
from nni_gumbel.relaxation.law import Law, check_temperature


@final
@dataclass(frozen=True)
class Categorical(Law):
    """``P(candidate i) = softmax(theta)_i``; outcomes and draws are one-hot ``(..., n)``.

    The relaxed sample is the Gumbel-softmax (Jang, Gu, Poole, arXiv 1611.01144).
    """

    least = most = 1

    @property
    def outcomes(self) -> int:
        """``n``."""
        return self.size

    def sets(self) -> Iterator[tuple[int, ...]]:
        """The candidates, one by one."""
        return ((index,) for index in range(self.size))

    def log_partition(self, logits: Tensor) -> Tensor:
        """``log sum_i exp(theta_i)``."""
        return torch.logsumexp(logits.double(), -1).to(logits.dtype)

    def probs(self, logits: Tensor) -> Tensor:
        """``softmax(theta)``."""
        return torch.softmax(logits.double(), -1).to(logits.dtype)

    def outcome_probs(self, logits: Tensor) -> Tensor:
        """:meth:`probs`."""
        return self.probs(logits)

    def mode(self, logits: Tensor) -> Tensor:
        """One-hot at the largest logit, the first of several."""
        return _one_hot(logits.detach().argmax(-1), logits)

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One-hot at ``argmax(theta + g)``, ``g`` Gumbel noise."""
        theta = logits.detach().double()
        return _one_hot((theta + gumbel_noise(theta, generator)).argmax(-1), logits)

    def soft(
        self, logits: Tensor, outcome: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """``softmax((theta + g) / temperature)``, ``g`` Gumbel noise whose largest sum is that of the outcome."""
        check_temperature(temperature)
        perturbed = perturbed_given_top(logits, outcome, 1, generator)
        return torch.softmax(perturbed / temperature, -1).to(logits.dtype)

    def relaxed(self, logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """Drawn at once, not by way of an outcome: :func:`~nni_gumbel.relaxation.gumbel.relaxed_categorical`."""
        return relaxed_categorical(logits, temperature, generator)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, index.unsqueeze(-1), 1)

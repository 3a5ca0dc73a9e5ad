"""One candidate of ``n``: the law of layer choices and of single inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from nni_gumbel.relaxation.gumbel import gumbel_noise, perturbed_given_top, relaxed_categorical
from nni_gumbel.relaxation.law import Law, check_temperature


@final
@dataclass(frozen=True)
class Categorical(Law):
    """``P(candidate i) = softmax(theta)_i``; outcomes and draws are one-hot ``(..., n)``.

    The relaxed sample is the Gumbel-softmax (Jang, Gu, Poole, arXiv 1611.01144): drawn at once by
    :meth:`relaxed`, or by :meth:`draw` and then :meth:`soft`, which gives the same law.
    """

    estimators: ClassVar[tuple[str, ...]] = (
        "soft",
        "straight-through",
        "straight-through-gumbel",
        "reinmax",
        "gumbel-rao",
    )
    hard_soft: ClassVar[str] = "straight-through-gumbel"
    is_softmax: ClassVar[bool] = True

    @property
    def least(self) -> int:
        """``1``."""
        return 1

    @property
    def most(self) -> int:
        """``1``."""
        return 1

    @property
    def outcomes(self) -> int:
        """``n``."""
        return self.size

    def sets(self) -> Iterator[tuple[int, ...]]:
        """The candidates, one by one."""
        return ((index,) for index in range(self.size))

    def index_of(self, members: tuple[int, ...]) -> int:
        """The candidate."""
        return members[0]

    def members_of(self, index: int) -> tuple[int, ...]:
        """The candidate, alone."""
        return (index,)

    def log_partition(self, logits: Tensor) -> Tensor:
        """``(...)``, ``log sum_i exp(theta_i)``; differentiable."""
        return torch.logsumexp(logits.double(), -1).to(logits.dtype)

    def probs(self, logits: Tensor) -> Tensor:
        """``(..., n)``, ``softmax(theta)``; differentiable."""
        return torch.softmax(logits.double(), -1).to(logits.dtype)

    def outcome_probs(self, logits: Tensor) -> Tensor:
        """``(..., n)``, :meth:`probs`."""
        return self.probs(logits)

    def mode(self, logits: Tensor) -> Tensor:
        """``(..., n)``, one-hot at the largest logit, the first of several; no gradient."""
        return _one_hot(logits.detach().argmax(-1), logits)

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(..., n)``, one-hot at ``argmax(theta + g)``, ``g`` Gumbel noise; no gradient."""
        theta = logits.detach().double()
        return _one_hot((theta + gumbel_noise(theta, generator)).argmax(-1), logits)

    def exact(self, logits: Tensor) -> Tensor:
        """``(..., n)``, :meth:`probs`."""
        return self.probs(logits)

    def soft(
        self, logits: Tensor, outcome: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """``(..., n)``, ``softmax(z / temperature)`` with ``z`` the perturbed logits given their argmax.

        See :meth:`Law.soft` and :func:`~nni_gumbel.relaxation.gumbel.perturbed_given_top`.
        """
        check_temperature(temperature)
        perturbed = perturbed_given_top(logits, outcome, 1, generator)
        return torch.softmax(perturbed / temperature, -1).to(logits.dtype)

    def relaxed(self, logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """``(..., n)``, :func:`~nni_gumbel.relaxation.gumbel.relaxed_categorical`: draws once, not twice."""
        return relaxed_categorical(logits, temperature, generator)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, index.unsqueeze(-1), 1)

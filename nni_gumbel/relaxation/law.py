"""What a random structure variable is: the contract that every law of a choice fulfils.

A choice among ``n`` candidates has 0/1 outcome vectors ``s`` as its values: one-hot, ``k`` ones, or any
but the empty set. Over its outcomes each law is the exponential family with the candidates' logits as
natural parameters,

    ``P(s) = exp(theta . s - A(theta))``,   ``A(theta) = log sum_s exp(theta . s)``,

so marginals are ``dA/dtheta`` and the entropy is ``A - theta . marginals``. The laws differ in their set of
outcomes alone: :class:`~nni_gumbel.relaxation.categorical.Categorical`,
:class:`~nni_gumbel.relaxation.subset.KSubset`, :class:`~nni_gumbel.relaxation.gates.OpenSubset`. What follows from that
is said by the laws themselves: nobody asks which law one is.

Conventions of every method: ``logits`` is ``(..., n)``, of any float dtype, finite; leading dimensions are
a batch of independent variables. The maths is done in float64, the result has the dtype of the logits.
*Draw-shaped* is the shape in which a supernet reads a draw: ``(..., n)`` weights of the candidates, but
``(..., k, n)`` slots for a k-subset.

Source: Wainwright, Jordan, Graphical Models, Exponential Families, and Variational Inference (2008),
section 3.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nni_gumbel.errors import UsageError


@dataclass(frozen=True)
class Law(ABC):
    """The law of a random set of candidates; see the module for what all laws share.

    Args:
        size: ``n >= 1``, the number of candidates.

    Raises:
        UsageError: there is no candidate.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size: {self.size} candidates cannot be chosen from; give at least 1")

    @property
    @abstractmethod
    def least(self) -> int:
        """How many candidates an outcome has at least."""

    @property
    @abstractmethod
    def most(self) -> int:
        """How many candidates an outcome has at most."""

    @property
    @abstractmethod
    def outcomes(self) -> int:
        """The number of outcomes, whose logarithm is the largest entropy."""

    @abstractmethod
    def sets(self) -> Iterator[tuple[int, ...]]:
        """Every outcome once, as the indices that are 1, ascending: the order in which tables list them."""

    @abstractmethod
    def log_partition(self, logits: Tensor) -> Tensor:
        """``(...)``, ``A(theta) = log sum_s exp(theta . s)``; differentiable."""

    @abstractmethod
    def probs(self, logits: Tensor) -> Tensor:
        """``(..., n)``, exact marginals ``P(candidate i is in the outcome)``; differentiable."""

    @abstractmethod
    def mode(self, logits: Tensor) -> Tensor:
        """``(..., n)`` of 0 and 1: the most probable outcome, ties to the lowest indices; no gradient."""

    @abstractmethod
    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(..., n)`` of 0 and 1: an outcome drawn exactly from the law; no gradient."""

    @abstractmethod
    def soft(
        self, logits: Tensor, outcome: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw-shaped: a relaxed sample that rounds to an outcome; differentiable.

        It tends to the outcome as the temperature tends to 0, and to even weights as it grows.

        Args:
            logits: ``(..., n)``.
            outcome: ``(..., n)`` of 0 and 1, in the support of the law (not checked).
            temperature: > 0, dimensionless.
            generator: source of randomness; the global one if omitted.

        Raises:
            UsageError: ``temperature`` is not a positive number.
        """

    def relaxed(self, logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw-shaped: :meth:`soft` of a :meth:`draw`; rounded it follows the law at every temperature."""
        return self.soft(logits, self.draw(logits, generator), temperature, generator)

    def exact(self, logits: Tensor) -> Tensor:
        """Draw-shaped: the expectation of :meth:`hard` under the law, without noise; differentiable."""
        return self.probs(logits)

    def index_of(self, members: tuple[int, ...]) -> int:
        """The position of an outcome in :meth:`sets`; lists them once."""
        return _places(self)[members]

    def hard(self, outcome: Tensor) -> Tensor:
        """Draw-shaped: an outcome ``(..., n)`` as a draw."""
        return outcome

    def log_prob(self, logits: Tensor, outcome: Tensor) -> Tensor:
        """``(...)``, ``theta . s - A(theta)``, ``s`` in the support of the law (not checked); differentiable."""
        theta = logits.double()
        return ((theta * outcome).sum(-1) - self.log_partition(theta)).to(logits.dtype)

    def outcome_probs(self, logits: Tensor) -> Tensor:
        """``(..., outcomes)``, the probability of each of :meth:`sets`; differentiable."""
        return self.log_prob(logits.unsqueeze(-2), _members(self, logits.device)).exp()

    def entropy(self, logits: Tensor) -> Tensor:
        """``(...)`` nats in [0, log outcomes], ``A(theta) - theta . probs(theta)``; differentiable."""
        theta = logits.double()
        entropy = self.log_partition(theta) - (theta * self.probs(theta)).sum(-1)
        # The difference of two large numbers may leave -1e-13 where the law is all but certain.
        return entropy.clamp_min(0).to(logits.dtype)


@functools.lru_cache(maxsize=64)
def _places(law: Law) -> dict[tuple[int, ...], int]:
    return {members: place for place, members in enumerate(law.sets())}


@functools.lru_cache(maxsize=64)
def _members(law: Law, device: torch.device) -> Tensor:
    """``(outcomes, n)`` of 0 and 1, float64: which candidates are in each outcome."""
    with torch.inference_mode(False):  # autograd would refuse a kept tensor that was made in it
        members = torch.zeros(law.outcomes, law.size, dtype=torch.float64)
        for row, indices in enumerate(law.sets()):
            members[row, list(indices)] = 1
        return members.to(device)


def check_temperature(temperature: float) -> None:
    """A ``UsageError`` where a temperature is not a positive finite number."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature: {temperature} is not positive and finite; give a number above 0")

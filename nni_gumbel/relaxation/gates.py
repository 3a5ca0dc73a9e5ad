"""Any candidates of ``n``: the law of an input choice without a number.

Each candidate has a gate that is open with probability ``sigmoid(theta_i)``, independent of the others. An optional
input, the only one of its choice, is there or not. Among several, the whole is conditioned on at least one open gate,
since NNI's frozen module has no output for the empty set. What makes the conditioning easy is to sort outcomes by their
*first* open gate ``i``: the gates before it are closed, those after it free, so
``Z = sum_i exp(theta_i) prod_{j > i} (1 + exp(theta_j))``.

Source: the gates' relaxation is the binary Concrete variable of Maddison, Mnih, Teh (arXiv 1611.00712);
that its noise can be drawn after the outcome is from Tucker et al. (arXiv 1703.07370, REBAR).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.gumbel import gumbel_noise
from nni_gumbel.relaxation.law import Law, check_temperature


@final
@dataclass(frozen=True)
class OpenSubset(Law):
    """``P(s) = exp(sum_{i in s} theta_i) / Z`` over all sets of candidates, or all but the empty one.

    Outcomes and draws are ``(..., n)``: the gate of each candidate, in [0, 1]; no need to sum to anything.

    Args:
        size: ``n >= 1``, the number of candidates.
        least: how many are chosen at least, 0 or 1.

    Raises:
        UsageError: ``least`` is neither.
    """

    least: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least not in (0, 1):
            raise UsageError(f"least: {self.least} open gates cannot be asked for; give 0 or 1")

    @property
    def most(self) -> int:
        """``n``."""
        return self.size

    @property
    def outcomes(self) -> int:
        """``2^n``, or one less without the empty set."""
        return 2**self.size - self.least

    def sets(self) -> Iterator[tuple[int, ...]]:
        """The empty set if it is one, the sets of one candidate, of two, … each in lexicographic order."""
        sizes = range(self.least, self.size + 1)
        return (members for size in sizes for members in itertools.combinations(range(self.size), size))

    def log_partition(self, logits: Tensor) -> Tensor:
        """``log(prod_i (1 + exp(theta_i)) - least)``."""
        theta = logits.double()
        log_sum = torch.logsumexp(_first_open(theta), -1) if self.least else _softplus(theta).sum(-1)
        return log_sum.to(logits.dtype)

    def probs(self, logits: Tensor) -> Tensor:
        """``sigmoid(theta_i)``, divided by P(at least one is open) if one has to be."""
        theta = logits.double()
        if not self.least:
            return torch.sigmoid(theta).to(logits.dtype)
        log_any = self.log_partition(theta) - _softplus(theta).sum(-1)
        return (logsigmoid(theta) - log_any.unsqueeze(-1)).exp().clamp_max(1).to(logits.dtype)

    def mode(self, logits: Tensor) -> Tensor:
        """All positive logits, and the first largest one if one has to be."""
        outcome = (logits.detach() > 0).to(logits.dtype)
        return outcome.scatter_(-1, logits.argmax(-1, keepdim=True), 1) if self.least else outcome

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The first open gate, then those after it.

        ``P(first = i) ~ exp(theta_i) prod_{j > i} (1 + exp(theta_j))``.
        """
        theta = logits.detach().double()
        if not self.least:
            return (_uniform(theta, generator) < torch.sigmoid(theta)).to(logits.dtype)
        scores = _first_open(theta)
        first = (scores + gumbel_noise(scores, generator)).argmax(-1, keepdim=True)
        candidates = torch.arange(self.size, device=theta.device)
        free = _uniform(theta, generator) < torch.sigmoid(theta)
        return ((candidates == first) | (free & (candidates > first))).to(logits.dtype)

    def soft(
        self, logits: Tensor, outcome: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Gates ``sigmoid(z_i / temperature)``, at least 1/2 where open, at most where closed.

        ``z_i = theta_i + noise_i``, the noise standard logistic given that ``z_i > 0`` where ``outcome`` is
        1 and ``z_i < 0`` elsewhere, held constant in derivatives. By inversion, with ``v ~ Uniform(0, 1)``:
        open ``z = softplus(theta + log v) - log(1 - v)``; closed the negative of that at ``-theta``.
        """
        check_temperature(temperature)
        theta = logits.double()
        sign = 2.0 * outcome.to(torch.float64) - 1.0
        # Away from 0, where z would be exactly 0 and the gate neither open nor closed.
        uniform = _uniform(torch.broadcast_tensors(theta, sign)[0], generator).clamp_min_(2.0**-53)
        size = _softplus(sign * theta.detach() + uniform.log()) - torch.log1p(-uniform)
        # The difference is exactly 0, so the sign survives; it carries the derivative.
        perturbed = sign * size + (theta - theta.detach())
        return torch.sigmoid(perturbed / temperature).to(logits.dtype)


def _first_open(theta: Tensor) -> Tensor:
    """``(..., n)``, log-weight of all outcomes whose first open gate is ``i``."""
    free = _softplus(theta)
    return theta + free.sum(-1, keepdim=True) - free.cumsum(-1)


def _softplus(x: Tensor) -> Tensor:
    # torch's own drops the exponential above 20, which leaves an error of 2e-9.
    return -logsigmoid(-x)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)

"""Estimators of the gradient of an expected loss with respect to the logits of a choice.

Sought is the gradient of ``E f(s)``, ``s ~ law(theta)``. Every estimator returns a draw that takes the place
of ``s``: its value goes into the forward pass, its derivative into the backward pass. With t the temperature:

=======================  ======  =====  ===============  =========  =========  ====
estimator                choice  value  bias             t = 1      t = 0.2    cost
=======================  ======  =====  ===============  =========  =========  ====
soft                     1 of n  soft   falls with t     0.35 0.49  0.04 2.14  1.0
soft                     k of n  soft   not 0 at any t   0.27 0.43  0.13 2.21  6
soft                     any     soft   falls, not to 0  0.46 0.38  0.18 1.81  2.1
straight-through-gumbel  1 of n  hard   not 0 at any t   0.23 0.77  0.16 2.78  2.5
straight-through-gumbel  k of n  hard   not 0 at any t   0.21 0.53  0.16 2.33  6
straight-through-gumbel  any     hard   not 0 at any t   0.28 1.26  0.24 3.44  2.1
=======================  ======  =====  ===============  =========  =========  ====

- The pairs of figures are bias and spread on one example: norm of the bias, and square root of the summed
  variances of the entries, both relative to the norm of the exact gradient; ``theta = (1, 0, -1, 0.5)``,
  ``f(w) = -log(sum w_i r_i / sum w_i)`` with ``r = (0.3, 0.8, 0.95, 0.5)``, the cross-entropy of an average
  of predictions; k = 2. Measured on 10^5 draws against enumeration; a test repeats it.
- Cost is the time of a draw and its backward pass on a CPU core, n = 5, relative to ``soft`` (1.0 is a
  quarter of a millisecond). Beside it all are alike: for a gradient each candidate is evaluated once.
- ``soft`` (Jang et al., 1611.01144; Maddison et al., 1611.00712): the relaxed sample, unbiased for its own expected
  loss, which is not the loss of a network. Its variance grows, in the end like 1 / t. For a subset even that is
  approximate: how the conditioning of the noise depends on ``theta`` is left out.
- ``straight-through-gumbel`` (Jang et al., section 2.2; GDAS, Dong, Yang, 1910.04465): the value of a hard draw, the
  derivative of a relaxed one that rounds to it. ``f`` is linearised at the hard draw, the draw relaxed: bias of both
  kinds. Its variance grows likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.law import Law, check_temperature

ESTIMATORS = ("soft", "straight-through-gumbel")


def estimate(
    law: Law, logits: Tensor, temperature: float, estimator: str = "soft", generator: torch.Generator | None = None
) -> Tensor:  # fmt: skip
    """Draw from ``law`` so that derivatives with respect to ``logits`` are estimated as named.

    Args:
        law: of the choice.
        logits: ``(..., n)``, float.
        temperature: > 0, dimensionless.
        estimator: one of :data:`ESTIMATORS`, see the table of the module.
        generator: source of randomness; the global one if omitted.

    Returns:
        Draw-shaped (see :mod:`~nni_gumbel.relaxation.law`), dtype of the logits. All but ``soft`` have
        the value of an exact hard draw, 0 and 1; without gradients recorded, all but ``soft`` are that
        draw and nothing else.

    Raises:
        UsageError: the estimator is unknown; the temperature is not positive.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"estimator: {estimator!r} is unknown; give one of {', '.join(ESTIMATORS)}")
    check_temperature(temperature)
    if estimator == "soft":
        return law.relaxed(logits, temperature, generator)
    outcome = law.draw(logits, generator)
    hard = law.hard(outcome)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return hard
    surrogate = law.soft(logits, outcome, temperature, generator)
    # In this order: the difference is exactly 0, so the value is exactly 0 or 1.
    return hard + (surrogate - surrogate.detach())

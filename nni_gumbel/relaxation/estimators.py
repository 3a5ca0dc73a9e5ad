"""Estimators of the gradient of an expected loss with respect to the logits of a choice.

Sought is the gradient of ``E f(s)``, ``s ~ law(theta)``. Every estimator returns a draw that takes the place
of ``s``: its value goes into the forward pass, its derivative into the backward pass. Those with a hard
value return ``hard(s) + surrogate - stop_gradient(surrogate)``: the derivative of ``surrogate`` at ``theta``,
times that of ``f`` at the hard draw. With t the temperature:

=======================  ======  =====  =================  ======================  =========  =========  ====
estimator                choice  value  derivative         bias                    t = 1      t = 0.2    cost
=======================  ======  =====  =================  ======================  =========  =========  ====
soft                     1 of n  soft   of the value       falls with t            0.35 0.49  0.04 2.14  1.0
soft                     k of n  soft   of the value       not 0 at any t          0.27 0.43  0.13 2.21  6
soft                     any     soft   of the value       falls, not to 0         0.46 0.38  0.18 1.81  2.1
straight-through         1 of n  hard   exact marginals    0 for linear f          0.25 0.44  0.25 0.44  1.2
straight-through         k of n  hard   exact marginals    0 for linear f          0.09 0.24  0.09 0.24  5
straight-through         any     hard   exact marginals    0 for linear f          0.39 1.42  0.39 1.42  3
straight-through-gumbel  1 of n  hard   a soft draw        not 0 at any t          0.23 0.77  0.16 2.78  2.5
=======================  ======  =====  =================  ======================  =========  =========  ====

- The pairs of figures are bias and spread on one example: norm of the bias, and square root of the summed
  variances of the entries, both relative to the norm of the exact gradient; ``theta = (1, 0, -1, 0.5)``,
  ``f(w) = -log(sum w_i r_i / sum w_i)`` with ``r = (0.3, 0.8, 0.95, 0.5)``, the cross-entropy of an average
  of predictions; k = 2. Measured on 10^5 draws against enumeration; a test repeats it.
- Cost is the time of a draw and its backward pass on a CPU core, n = 5, relative to ``soft`` (1.0 is a
  quarter of a millisecond). Beside it all are alike: for a gradient each candidate is evaluated once.
- ``soft`` (Jang et al., 1611.01144; Maddison et al., 1611.00712): unbiased for the expected loss of the
  relaxed sample, which is not the loss of a network. Its variance grows, in the end like 1 / t. For a
  subset even that is approximate: how the conditioning of the noise depends on ``theta`` is left out.
- ``straight-through`` (Bengio et al., 1308.3432; for k-subsets Ahmed et al., 2210.01941): first-order in
  ``f``; the temperature does not enter.
- ``straight-through-gumbel`` (Jang et al., section 2.2; GDAS, Dong, Yang, 1910.04465): ``f`` is linearised at
  the hard draw, the draw relaxed: bias of both kinds. Its variance grows likewise.

The last one is derived for one candidate of n alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gumbel import perturbed_given_top
from nni_gumbel.relaxation.law import Law, check_temperature

ESTIMATORS = Categorical.estimators
"""All of them; for other laws than that of one candidate of n only some are derived."""


def estimate(
    law: Law, logits: Tensor, temperature: float, estimator: str = "soft", generator: torch.Generator | None = None
) -> Tensor:  # fmt: skip
    """Draw from ``law`` so that derivatives with respect to ``logits`` are estimated as named.

    Args:
        law: of the choice.
        logits: ``(..., n)``, float.
        temperature: > 0, dimensionless; does not enter ``straight-through``.
        estimator: one of :data:`ESTIMATORS`, see the table of the module.
        generator: source of randomness; the global one if omitted.

    Returns:
        Draw-shaped (see :mod:`~nni_gumbel.relaxation.law`), dtype of the logits. All but ``soft`` have
        the value of an exact hard draw, 0 and 1; without gradients recorded, all but ``soft`` are that
        draw and nothing else.

    Raises:
        UsageError: the estimator is unknown or not derived for this law; the temperature is not positive.
    """
    check_supported(law, estimator)
    check_temperature(temperature)
    if estimator == "soft":
        return law.relaxed(logits, temperature, generator)
    outcome = law.draw(logits, generator)
    hard = law.hard(outcome)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return hard
    if estimator == "straight-through":
        surrogate = law.exact(logits)
    else:
        perturbed = perturbed_given_top(logits, outcome, 1, generator)
        surrogate = torch.softmax(perturbed / temperature, -1).to(logits.dtype)
    # In this order: the difference is exactly 0, so the value is exactly 0 or 1.
    return hard + (surrogate - surrogate.detach())


def check_supported(law: Law, estimator: str, label: str | None = None) -> None:
    """Refuse an estimator that does not exist or is not derived for a law.

    Args:
        law: of the choice.
        estimator: a name.
        label: of the choice, for the message.

    Raises:
        UsageError: unknown, or not derived for this law.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"estimator: {estimator!r} is unknown; give one of {', '.join(ESTIMATORS)}")
    if estimator not in law.estimators:
        choice = "a choice" if label is None else f"choice {label!r}"
        raise UsageError(
            f"estimator: {estimator!r} is not derived for subsets, which {choice} draws; "
            f"give one of {', '.join(law.estimators)}"
        )

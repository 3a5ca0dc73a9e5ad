"""The weights that make a search meet its budgets: multipliers that the search itself finds.

A constraint is a number ``g`` that must not be above 0; for a budget ``g = E[cost] / budget - 1``. The objective gets
the augmented Lagrangian of each,

    ``psi(g) = (max(0, lambda + rho g)^2 - lambda^2) / (2 rho)``,

whose gradient is ``max(0, lambda + rho g)`` times that of ``g``: nothing while the constraint is far from binding,
and the pressure it takes where it binds. After every structure step the multiplier follows the violation,
``lambda <- max(0, lambda + pace rho g dt)`` with ``dt`` the part of the search that the step is. A violation that
does not get smaller doubles ``rho``, so that the pressure reaches the scale of any loss; no weight is to be tuned.

Sources: Rockafellar, The multiplier method of Hestenes and Powell applied to convex programming, Journal of
Optimization Theory and Applications 12 (1973), equation 5; when ``rho`` grows: Birgin, Martínez, Practical Augmented
Lagrangian Methods for Constrained Optimization (2014), algorithm 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nni_gumbel.errors import UsageError

# The constraint that limits the slack of a budget, so that it is spent. The others have the names of settings.
SLACK = "slack"
# A violation of 10 % that lasts for the whole search brings a multiplier to 1, the scale of a cross-entropy.
_PACE = 10.0
# rho is looked at after every so large a part of the search, and grows if the violation is not below 90 % of that of
# the last time and above what is no violation to speak of.
_PERIOD = 0.05
_ENOUGH_PROGRESS = 0.9
_TOLERANCE = 0.05


class Multipliers:
    """One multiplier for each constraint; the only place that changes them.

    Attributes:
        weights: ``lambda`` by constraint, at least 0.
        stiffness: ``rho`` by constraint.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.weights = dict.fromkeys(names, 0.0)
        self.stiffness = dict.fromkeys(names, 1.0)
        self._violations = dict.fromkeys(names, float("inf"))  # at the beginning of the current period
        self._since = 0.0

    def term(self, violations: Mapping[str, Tensor]) -> Tensor | float:
        """Scalar: what the constraints add to the objective; differentiable in their ``g``.

        Args:
            violations: ``g`` by constraint, scalar; above 0 where it is violated.
        """
        total: Tensor | float = 0.0
        for name, g in violations.items():
            weight, rho = self.weights[name], self.stiffness[name]
            total = total + ((weight + rho * g).clamp_min(0).square() - weight**2) / (2 * rho)
        return total

    def follow(self, violations: Mapping[str, float], share: float) -> None:
        """Move every multiplier after a structure step.

        Args:
            violations: ``g`` by constraint, after the step.
            share: the part of the search that the step was, in (0, 1].
        """
        for name, g in violations.items():
            moved = self.weights[name] + _PACE * share * self.stiffness[name] * g
            self.weights[name] = max(0.0, moved)
        self._since += share
        if self._since >= _PERIOD:
            self._since = 0.0
            for name, g in violations.items():
                if g > _TOLERANCE and g > _ENOUGH_PROGRESS * self._violations[name]:
                    self.stiffness[name] *= 2
            self._violations = {name: max(g, 0.0) for name, g in violations.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {
            "weights": dict(self.weights),
            "stiffness": dict(self.stiffness),
            "violations": dict(self._violations),
            "since": self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            UsageError: the state is of a search with other budgets.
        """
        saved = state["weights"]
        if saved.keys() != self.weights.keys():
            differing = sorted((saved.keys() ^ self.weights.keys()) - {SLACK})
            raise UsageError(
                f"{', '.join(differing) or 'cost_weight'}: the checkpoint is of a search with {_in_words(saved)}, this "
                f"one has {_in_words(self.weights)}; give it the settings of the checkpoint, or start anew without it"
            )
        self.weights, self.stiffness = dict(state["weights"]), dict(state["stiffness"])
        self._violations, self._since = dict(state["violations"]), state["since"]


def _in_words(weights: Mapping[str, float]) -> str:
    """The budgets that constraints are of, and whether they are to be spent."""
    budgets = [name for name in weights if name != SLACK]
    if not budgets:
        return "no budget"
    return f"{' and '.join(budgets)} {'without' if SLACK in weights else 'beside'} a cost weight or penalty"

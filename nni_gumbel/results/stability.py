"""Stability: how much of what a network reaches is left when its inputs or its weights are disturbed.

This file holds the records and the one number that networks are compared by; it needs no torch. What is disturbed, and
how, is in :mod:`~nni_gumbel.results.perturbation`. A training keeps the record in its output directory (validation
part), and so does an export (test part).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from nni_gumbel.results.record import Record


class Curve(BaseModel):
    """The metric of a network under one disturbance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    unit: str  # of the strengths
    strengths: tuple[float, ...]  # increasing; the first is 0, the undisturbed network
    values: tuple[float | None, ...]  # the metric at each; None where it is not finite


class Stability(Record):
    """What is left of a network's metric under several disturbances.

    Args:
        metric: its name.
        minimize: whether a smaller metric is better.
        chance: the metric of guessing, 1 / classes for an accuracy; 0 for every other metric.
        examples: number of examples that it was measured on.
        curves: each begins with the undisturbed network.
        left_out: what was not measured, with the reason; empty if nothing was left out.
        calibration_error: expected difference between confidence and accuracy (15 bins), 0 to 1; ``None`` for other
            tasks than classification.
        predictions: the class of each example that the undisturbed network predicts; empty for other tasks.
        seconds: that it took.
    """

    FILE: ClassVar[str] = "stability.json"

    metric: str
    minimize: bool
    chance: float
    examples: int
    curves: tuple[Curve, ...]
    left_out: str = ""
    calibration_error: float | None = None
    predictions: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def index(self) -> float | None:
        """The stability of the network in one number: the mean normalised area under its curves.

        ``index = 1/C sum_c 1/S_c integral_0^S_c q_c(s) ds``, by the trapezoidal rule, with the share of the metric
        that is left at strength ``s`` of disturbance ``c``, limited to [0, 1]:

        * ``q(s) = (m(s) - b) / (m(0) - b)`` for a metric that is maximised, with ``b = 1 / classes`` for an accuracy
          and 0 otherwise: 1 is the undisturbed network and 0 guessing, with any number of classes;
        * ``q(s) = m(0) / m(s)`` for one that is minimised.

        A metric that is not finite counts 0.

        Returns:
            0 to 1; ``None`` where no share can be told: an undisturbed metric that is no better than guessing, or, if
            it is minimised, below 0.
        """
        areas = [self._area(curve) for curve in self.curves]
        return None if not areas or None in areas else sum(areas) / len(areas)

    def _area(self, curve: Curve) -> float | None:
        first, *_ = curve.values
        if first is None or (first < 0 if self.minimize else first <= self.chance):
            return None

        def share(value: float | None) -> float:
            if value is None:
                return 0.0
            if not self.minimize:
                return min(max((value - self.chance) / (first - self.chance), 0.0), 1.0)
            return 1.0 if value <= first else max(first / value, 0.0)

        shares = [share(value) for value in curve.values]
        steps = zip(curve.strengths, curve.strengths[1:], shares, shares[1:])
        return sum((b - a) * (p + q) / 2 for a, b, p, q in steps) / (curve.strengths[-1] - curve.strengths[0])


def curve_of(name: str, unit: str, strengths: Sequence[float], values: Sequence[float]) -> Curve:
    """A curve, of values that need not be finite."""
    known = tuple(float(value) if math.isfinite(value) else None for value in values)
    return Curve(name=name, unit=unit, strengths=tuple(strengths), values=known)

"""The arguments of NNI's ``DARTS`` and ``GumbelDARTS``, told as settings of this search; and their ``penalty``.

A script that used NNI's strategies changes its import and nothing else: what NNI takes under a name, in any of the
types that it takes, means here what NNI's documentation says about it.

NNI documents the penalty as the *expectation* of a profiler's result over the distribution of networks, set against a
baseline. Its own code reads that expectation from detached numbers, so that nothing of it reaches the logits. Here it
is a differentiable function of the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nni.nas.oneshot.pytorch.differentiable import LinearTemperatureScheduler
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.profiler.pytorch.flops import FlopsParamsCounterConfig, FlopsProfiler, NumParamsProfiler
from torch import Tensor

from nni_gumbel.errors import UsageError

_TEMPERATURE_SETTINGS = ("temperature_start", "temperature_end", "temperature_schedule")
_PENALTY_WORDS = {
    "nonlinear": ("linear", "positive", "negative", "absolute"),
    "aggregate": ("add", "mul"),
}
_WORDS = {NumParamsProfiler: "params", FlopsProfiler: "flops"}


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`~nni_gumbel.search.settings.SearchSettings` for arguments of either strategy.

    Args:
        arguments: settings by their own names, and of NNI's: ``temperature`` (a number; a pair; a dict with ``init``
            and ``min``; a ``LinearTemperatureScheduler``), ``gradient_clip_val`` (``None`` is no limit),
            ``arc_learning_rate``, ``log_prob_every_n_step``, ``warmup_epochs``.

    Raises:
        UsageError: ``temperature`` is none of these, or given together with a setting that says the same.
    """
    settings = dict(arguments)
    if "gradient_clip_val" in settings and settings["gradient_clip_val"] is None:
        settings["gradient_clip_val"] = 0.0
    temperature = settings.pop("temperature", None)
    if temperature is not None:
        given = [name for name in _TEMPERATURE_SETTINGS if name in settings]
        if given:
            raise UsageError(
                f"temperature: given together with {given[0]}, which says the same; give one of the two"
            )
        start, end = _ends(temperature)
        settings |= zip(_TEMPERATURE_SETTINGS, (float(start), float(end), "linear"))
    return settings


def _ends(temperature: Any) -> tuple[float, float]:
    if type(temperature) is LinearTemperatureScheduler:
        ends = [temperature.init, temperature.min]
    elif isinstance(temperature, Mapping) and temperature.keys() == {"init", "min"}:
        ends = [temperature["init"], temperature["min"]]
    else:
        ends = list(temperature) if isinstance(temperature, (tuple, list)) else [temperature, temperature]
    if len(ends) != 2 or not all(map(_is_number, ends)) or not ends[0] >= ends[1] > 0:
        raise UsageError(
            f"temperature: {temperature!r} is no temperature that falls and stays above 0; give a number, a pair "
            "(first, last), a dict with init and min, or NNI's LinearTemperatureScheduler"
        )
    return ends[0], ends[1]


class Penalty(ExpectationProfilerPenalty):
    """NNI's penalty, ``aggregate(loss, nonlinear(E[cost] / baseline - 1))``, of an expected cost that is given.

    Called with the loss and the expected cost, scalars, and differentiable in both.

    Attributes:
        word: the cost, ``params`` or ``flops``, as it is counted here. NNI's own expression for the parameters has 0
            for a ``LayerNorm`` and counts a shared module twice.
    """

    word: str

    def profile(self, sample: Tensor) -> Tensor:
        """The expected cost itself, in the place of NNI's distribution of samples."""
        return sample


def described_penalty(given: Any) -> Penalty | None:
    """What was given as ``penalty``, in any of NNI's forms.

    Args:
        given: ``None``; a dict with ``profiler``, ``baseline`` and, if wanted, ``scale``, ``nonlinear``,
            ``aggregate``; or an ``ExpectationProfilerPenalty``. ``profiler`` is NNI's ``NumParamsProfiler`` or
            ``FlopsProfiler``, or the word ``params`` or ``flops``.

    Raises:
        UsageError: a field is missing, unknown or out of its range.
    """
    if given is None:
        return None
    fields = ("profiler", "baseline", "scale", "nonlinear", "aggregate")
    if isinstance(given, ExpectationProfilerPenalty):
        given = {name: getattr(given, name) for name in fields}
    if not isinstance(given, dict):
        raise UsageError(
            f"penalty: {type(given).__name__} has no expectation over networks; "
            "give a dict with profiler and baseline, or an ExpectationProfilerPenalty"
        )
    wrong = [f"{key} is unknown" for key in given if key not in fields]
    wrong += [f"{key} is missing" for key in fields[:2] if key not in given]
    if wrong:
        raise UsageError(
            f"penalty: {', '.join(wrong)}; give profiler and baseline, and if wanted {', '.join(fields[2:])}"
        )
    penalty = Penalty(**given)
    if not _is_number(penalty.baseline) or penalty.baseline <= 0:
        raise UsageError(f"penalty: baseline is {penalty.baseline!r}; give a number greater than 0")
    if not _is_number(penalty.scale):
        raise UsageError(f"penalty: scale is {penalty.scale!r}; give a number")
    for name, words in _PENALTY_WORDS.items():
        if getattr(penalty, name) not in words:
            raise UsageError(f"penalty: {name} is {getattr(penalty, name)!r}; give one of {', '.join(words)}")
    profiler = penalty.profiler
    word = _WORDS.get(type(profiler), profiler)
    if word not in _WORDS.values():
        told = repr(profiler) if isinstance(profiler, str) else type(profiler).__name__
        raise UsageError(
            f"penalty: profiler {told} counts neither parameters nor FLOPs; give params or flops, or in the place of "
            "the penalty a cost of your own and a cost_weight"
        )
    if not isinstance(profiler, str) and profiler.profiler.config != FlopsParamsCounterConfig():
        raise UsageError(
            f"penalty: profiler {type(profiler).__name__} counts by options of its own, which the counts of this "
            f"package do not have; give {word}"
        )
    penalty.word = word
    return penalty


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

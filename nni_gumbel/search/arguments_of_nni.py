"""The arguments of NNI's ``DARTS`` and ``GumbelDARTS``, told as settings of this search.

A script that used NNI's strategies changes its import and nothing else: what NNI takes under a name, in any of
the types that it takes, means here what NNI's documentation says about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nni.nas.oneshot.pytorch.differentiable import LinearTemperatureScheduler

from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.search.settings import SCHEDULES, SearchSettings

_TEMPERATURE_SETTINGS = ("temperature_start", "temperature_end", "temperature_schedule")
_TEMPERATURE_FORMS = (
    "give a number, a pair (first, last), a dict with init and min, NNI's LinearTemperatureScheduler, "
    f"or one of {', '.join(SCHEDULES)}"
)


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`~nni_gumbel.search.settings.SearchSettings` for arguments of either strategy.

    Args:
        arguments: settings by their own names, and of NNI's: ``temperature`` (a number; a pair; a dict with ``init``,
            ``min`` and, if wanted, ``schedule``; a ``LinearTemperatureScheduler``; or the word of a schedule),
            ``gradient_clip_val`` (``None`` is no limit), ``arc_learning_rate``, ``log_prob_every_n_step``,
            ``warmup_epochs``.

    Raises:
        UsageError: a name is unknown, or ``temperature`` is none of these or given together with a setting that
            says the same.
    """
    known = [*SearchSettings.model_fields, "temperature", "penalty", "mutation_hooks"]
    for name in arguments:
        if name not in known:
            raise UsageError(f"{name}: there is no such setting{nearest(name, known)}")
    settings = {name: value for name, value in arguments.items() if name != "temperature"}
    if "gradient_clip_val" in settings and settings["gradient_clip_val"] is None:
        settings["gradient_clip_val"] = 0.0
    if arguments.get("temperature") is not None:
        given = [name for name in _TEMPERATURE_SETTINGS if name in settings]
        if given:
            raise UsageError(
                f"temperature: given together with {given[0]}, which says the same; give one of the two"
            )
        settings.update(_temperature_settings(arguments["temperature"]))
    return settings


def _temperature_settings(temperature: Any) -> dict[str, Any]:
    """``temperature_start``, ``temperature_end`` and ``temperature_schedule``, as far as they are told."""
    if isinstance(temperature, str):
        if temperature not in SCHEDULES:
            raise UsageError(f"temperature: {temperature!r} is no schedule; {_TEMPERATURE_FORMS}")
        return {"temperature_schedule": temperature}
    schedule = None
    if isinstance(temperature, LinearTemperatureScheduler):
        if type(temperature).step is not LinearTemperatureScheduler.step:
            raise UsageError(
                f"temperature: {type(temperature).__name__} has a step of its own, per epoch, while the temperature "
                f"falls with every step here; {_TEMPERATURE_FORMS}"
            )
        start, end = temperature.init, temperature.min
    elif isinstance(temperature, Mapping):
        if not {"init", "min"} <= set(temperature) <= {"init", "min", "schedule"}:
            raise UsageError(
                f"temperature: a dict with {', '.join(map(str, temperature)) or 'nothing'}; {_TEMPERATURE_FORMS}"
            )
        start, end, schedule = temperature["init"], temperature["min"], temperature.get("schedule")
    elif isinstance(temperature, (tuple, list)) and len(temperature) == 2:
        start, end = temperature
    else:
        start = end = temperature
    for value in (start, end):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"temperature: {temperature!r} is no temperature; {_TEMPERATURE_FORMS}")
        if value <= 0:
            raise UsageError(
                f"temperature: {value:g} is not above 0, and no gradient passes at 0; give e.g. 0.1 as the last one"
            )
    if start < end:
        raise UsageError(f"temperature: it would rise from {start:g} to {end:g}; give the higher one first")
    constant = start == end and schedule is None
    return {
        "temperature_start": float(start),
        "temperature_end": float(end),
        "temperature_schedule": "constant" if constant else schedule or "linear",
    }

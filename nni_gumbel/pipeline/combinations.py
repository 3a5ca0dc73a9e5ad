"""Which settings are varied: the combinations of YAML's `searchSpace`.

A search space in NNI's own syntax names settings. `choice`, `randint` and `quniform` have finitely
many values and are enumerated, every combination once, in the order written. The other types have
not: they, or a space that is too large, need `samples: N`, which draws N different combinations
with the sampler of NNI's random tuner.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.pipeline.settings import VARIED_NAMES, ExperimentSettings

# Every combination is at least one search; nobody means more than this many.
MOST_COMBINATIONS = 1000


def combinations(
    search_space: Mapping[str, Any] | None, settings: ExperimentSettings
) -> list[dict[str, Any]]:
    """List the combinations of a search space.

    Args:
        search_space: ``{name: {"_type": …, "_value": …}}`` as NNI hands it over; empty for none.
        settings: `samples` and `seed` say whether and how combinations are drawn; each combination is
            checked on top of them.

    Returns:
        Distinct combinations, each ``{name: value}``; ``[{}]`` for an empty space.

    Raises:
        UsageError: a name is not a setting that can be varied, a specification is malformed or
            cannot be enumerated, or a combination is not allowed.
    """
    if not search_space:
        return [{}]
    if not isinstance(search_space, Mapping):
        raise UsageError(
            f"searchSpace: {search_space!r} is not a mapping; give names of settings with _type and _value"
        )
    for name, spec in search_space.items():
        if name not in VARIED_NAMES:
            raise UsageError(
                f"searchSpace.{name}: this is no setting that can be varied{nearest(name, VARIED_NAMES)}"
            )
        if not isinstance(spec, Mapping) or not isinstance(spec.get("_value"), list) or "_type" not in spec:
            raise UsageError(
                f"searchSpace.{name}: {spec!r} is no specification; give _type and _value (a list)"
            )
        if spec["_type"] == "choice" and not spec["_value"]:
            raise UsageError(f"searchSpace.{name}: [] has no value to choose from; give at least one")
    found = _drawn(search_space, settings) if settings.samples else _enumerated(search_space)
    for combination in found:
        try:
            settings.with_values(combination)
        except UsageError as error:
            raise UsageError(f"searchSpace: {error}") from None
    return found


def _enumerated(search_space: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = {name: _values(name, spec["_type"], spec["_value"]) for name, spec in search_space.items()}
    count = math.prod(len(each) for each in values.values())
    if count > MOST_COMBINATIONS:
        raise UsageError(
            f"searchSpace: {count} combinations are more than {MOST_COMBINATIONS}; "
            "shorten it, or set `samples: N` in tuner.classArgs to draw N of them"
        )
    return list(_distinct(dict(zip(values, row)) for row in itertools.product(*values.values())))


def _values(name: str, kind: str, value: list[Any]) -> list[Any] | range:
    """All values that NNI's samplers can give for one variable."""
    if kind == "choice":
        return value
    if kind not in ("randint", "quniform"):
        raise UsageError(
            f"searchSpace.{name}: the type {kind!r} cannot be enumerated; use choice, randint or quniform, "
            "or set `samples: N` in tuner.classArgs to draw N combinations"
        )
    length = {"randint": 2, "quniform": 3}[kind]
    numeric = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in value)
    if numeric and kind == "randint":
        # NNI: integers, the upper bound excluded; fractional bounds are rounded up.
        value = [math.ceil(each) for each in value]
    if len(value) != length or not numeric or value[0] >= value[1] or value[2:] and value[2] <= 0:
        form = {
            "randint": "[lower, upper] with whole numbers, lower < upper",
            "quniform": "[low, high, step] with low < high",
        }[kind]
        raise UsageError(f"searchSpace.{name}: {value!r} is no _value of {kind}; give {form}")
    if kind == "randint":
        return range(*value)
    # NNI: round(uniform(low, high) / step) * step, clipped to the bounds.
    low, high, step = value
    steps = range(round(low / step), round(high / step) + 1)
    if len(steps) > MOST_COMBINATIONS:
        return steps  # too many, which the count of all combinations tells in the right words
    return [_plain(min(max(index * step, low), high)) for index in steps]


def _drawn(search_space: Mapping[str, Any], settings: ExperimentSettings) -> list[dict[str, Any]]:
    # NNI and numpy take a second to import, and only a drawn space needs them.
    import numpy as np
    from nni.algorithms.hpo.random_tuner import suggest
    from nni.common.hpo_utils import deformat_parameters, format_search_space

    generator = np.random.default_rng(settings.seed)

    def draws() -> Iterator[dict[str, Any]]:
        space = format_search_space(search_space)
        # A small space may have fewer than N combinations: the number of draws is bounded, too.
        for _ in range(50 * settings.samples):
            draw = deformat_parameters(suggest(generator, space), space)
            yield {name: _plain(value) for name, value in draw.items()}

    try:
        return list(itertools.islice(_distinct(draws()), settings.samples))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"searchSpace: NNI cannot sample it ({error}); see NNI's documentation of _value"
        ) from None


def _plain(value: Any) -> Any:
    """A float that is a whole number as an int, and without the noise of the last digits.

    NNI's quniform gives floats, also for settings that count.
    """
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    value = float(f"{value:.12g}")
    return int(value) if value.is_integer() else value


def _distinct(found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen = set()
    for combination in found:
        text = json.dumps({name: _plain(value) for name, value in combination.items()}, default=repr)
        if text not in seen:
            seen.add(text)
            yield combination

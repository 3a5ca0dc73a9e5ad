"""The settings of a search: one frozen dataclass, its defaults and its ranges.

Every setting carries its documentation and its range in the field itself (:func:`setting`), so
that the check, the message and the table of ``examples/SETTINGS.md`` are made from one place. Imports
nothing heavy: the tuner, which must connect to NNI within ten seconds, reads settings too.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.search.presets import PRESETS

SCHEDULES = ("constant", "linear", "exponential", "cosine", "target-entropy")
# Those of relaxation.estimators, and the noise-free probabilities themselves.
ESTIMATORS = (
    "soft", "straight-through", "straight-through-gumbel", "reinmax", "gumbel-rao", "probabilities",
)  # fmt: skip
_ENDS = ("temperature_start", "temperature_end")
LEVELS = ("bilevel", "single", "unrolled")
EXECUTIONS = ("merged", "plain", "sampled")
STRUCTURE_CANDIDATES = ("all", "two", "sampled")
COSTS = ("params", "flops", "latency")
BUDGETS = ("max_params", "max_flops", "max_latency_ms")
PRIORS = ("uniform", "cost")
_PRIOR_WORDS = "uniform, cost, or a mapping label: {candidate: probability}"

# Which settings belong together, and how.
COUPLINGS = {
    "metric": "a metric that is better when smaller, as a loss is, needs `optimize_mode: minimize`",
    "seeds": "searches and trainings are seeded from `seed` upwards; the seeds of random networks come after these",
    "epochs": "`search_epochs` is greater than `warmup_epochs`",
    "preset": "a preset fills in these settings where you give none",
    "course": "`rounds` and `finalists` are both above 0 or both 0; a search too short for all of them has fewer, and "
    "the log says so",
    "temperature": "`temperature_start` is at least `temperature_end`; with schedule `constant` they are equal, and "
    "one of them is enough",
    "step": "`structure_candidates` other than `all` need execution `sampled`; `two` needs estimator `soft`; `sampled` "
    "needs an estimator that draws. Level `single` needs `samples_per_step: 1` and, with execution `sampled`, "
    "structure_candidates `sampled`",
    "cost": "with a budget (`max_…`) `cost_weight` is 0 unless you give it; with `cost_weight: 0` no `cost` is priced",
    "prior": "a `prior` needs a `kl_weight` above 0; the prior `cost` is made from the setting `cost`",
}


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    optional: type | None = None,
    words: str = "any",
    basic: bool = False,
    coupled: str = "",
) -> Any:
    """Declare a setting as a dataclass field.

    Args:
        default: its default; its type is the type that values must have (an int is a float, too).
        doc: one line for the table of settings.
        minimum: smallest allowed value.
        above: values must be greater than this.
        maximum: largest allowed value.
        choices: the allowed words.
        optional: ``None`` is allowed, and is the default; the type of the other values.
        words: what is allowed, where that is neither a range nor one of a few words.
        basic: a first experiment may want to change it; the others are for experts.
        coupled: words of :data:`COUPLINGS`, separated by spaces. Settings with the same word belong together: what
            one of them may be, or does, depends on the others.
    """
    metadata = {
        "doc": doc, "minimum": minimum, "above": above, "maximum": maximum,
        "choices": choices, "optional": optional, "words": words, "basic": basic, "coupled": coupled,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def range_of(metadata: Any) -> str:
    """The allowed values of a setting in words, for messages and for the table of settings."""
    if metadata["choices"]:
        return "one of " + ", ".join(metadata["choices"])
    bounds = [
        ("at least ", metadata["minimum"]),
        ("greater than ", metadata["above"]),
        ("at most ", metadata["maximum"]),
    ]
    words = " and ".join(f"{word}{bound:g}" for word, bound in bounds if bound is not None)
    return words + (", or left out" if metadata["optional"] else "") or metadata["words"]


def check_settings(settings: Any) -> None:
    """Check type and range of every field declared with :func:`setting`.

    Raises:
        UsageError: names the first wrong field, its value and what is allowed.
    """
    for spec in fields(settings):
        if "doc" not in spec.metadata:
            continue
        value = getattr(settings, spec.name)
        kind = spec.metadata["optional"] or type(spec.default)
        if value is None and spec.metadata["optional"]:
            continue
        numeric = kind is not str
        fits_type = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits_type:
            name = {int: "a whole number", float: "a number", str: "a word"}[kind]
            if kind is float and _is_number(value):
                # YAML 1.1 reads 1e-3 as text: it wants a dot and a sign.
                plain = f"{float(value):.12f}".rstrip("0")
                raise UsageError(f"{spec.name}: YAML reads {value} as text; write {plain} instead")
            raise UsageError(f"{spec.name}: {value!r} is not {name}; give {name}, {range_of(spec.metadata)}")
        minimum, above, maximum = (spec.metadata[key] for key in ("minimum", "above", "maximum"))
        outside = (
            (spec.metadata["choices"] is not None and value not in spec.metadata["choices"])
            or (numeric and not math.isfinite(value))
            or (minimum is not None and value < minimum)
            or (above is not None and value <= above)
            or (maximum is not None and value > maximum)
        )
        if outside:
            raise UsageError(f"{spec.name}: {value!r} is out of range; give {range_of(spec.metadata)}")


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True, init=False)
class SearchSettings:
    """How structure and weights are optimised together.

    Args:
        **given: the settings that differ from their defaults; a ``preset`` fills in the others.

    Raises:
        UsageError: a name is unknown, or a value has the wrong type or is out of its range.
    """

    preset: str = setting(
        "none",
        "known method that fills in its values where you give none",
        choices=tuple(PRESETS),
        basic=True,
        coupled="preset",
    )
    estimator: str = setting(
        "soft", "how a sample is drawn and its gradient taken; `probabilities` is without noise",
        choices=ESTIMATORS, coupled="preset step",
    )  # fmt: skip
    level: str = setting(
        "bilevel", "structure learns on validation data, on the training data (`single`), or through an "
        "unrolled step of the weights (`unrolled`: second order, judged with dropout off)", choices=LEVELS,
        coupled="step",
    )  # fmt: skip
    execution: str = setting(
        "merged", "what runs in a step: all candidates, linear ones of a choice as one operation (`merged`) or each by "
        "itself (`plain`); or in the weight step one drawn network alone (`sampled`)", choices=EXECUTIONS,
        coupled="step",
    )  # fmt: skip
    structure_candidates: str = setting(
        "all", "with execution `sampled`, the candidates of each choice that the structure step compares: all, a drawn "
        "pair, or the drawn one alone", choices=STRUCTURE_CANDIDATES, coupled="step",
    )  # fmt: skip
    rounds: int = setting(
        2, "short trainings of all candidates, behind each of which the worst are rejected; 0, and no `finalists`: the "
        "logits follow their gradient at every step", minimum=0, coupled="preset course",
    )  # fmt: skip
    finalists: int = setting(
        20, "networks of the candidates left that are trained alone and compared; 0 where there are no `rounds`",
        minimum=0, basic=True, coupled="preset course",
    )  # fmt: skip
    temperature_start: float = setting(
        1.0, "temperature of the first step", above=0, coupled="preset temperature"
    )
    temperature_end: float = setting(
        0.2, "temperature of the last step, reached exactly", above=0, coupled="preset temperature"
    )
    temperature_schedule: str = setting(
        "exponential",
        "how the temperature falls, step by step",
        choices=SCHEDULES,
        coupled="preset temperature",
    )
    warmup_epochs: int = setting(
        0,
        "first epochs in which only weights learn, candidates equally likely",
        minimum=0,
        basic=True,
        coupled="epochs",
    )
    arc_learning_rate: float = setting(0.05, "learning rate of the logits (Adam)", above=0)
    logits_weight_decay: float = setting(0.0, "weight decay of the logits", minimum=0)
    logits_clip_val: float = setting(0.0, "largest norm of the logits' gradient; 0 is no limit", minimum=0)
    samples_per_step: int = setting(
        1, "samples whose gradients a structure step averages", minimum=1, coupled="step"
    )
    batches_per_step: int = setting(
        1, "batches whose gradients a structure step averages; it comes once in so many", minimum=1
    )
    cost: str = setting(
        "params",
        "what `cost_weight` prices: parameters, multiply-adds, or milliseconds of a table",
        choices=COSTS,
        basic=True,
        coupled="cost prior",
    )
    cost_weight: float = setting(
        0.3, "weight of the expected `cost`, relative to the largest network's; with a budget 0, if left out",
        minimum=0, basic=True, coupled="cost",
    )  # fmt: skip
    max_params: int | None = setting(
        None,
        "budget: the network found never has more parameters",
        minimum=1,
        optional=int,
        basic=True,
        coupled="cost",
    )
    max_flops: int | None = setting(
        None,
        "budget: it never has more multiply-adds for one example",
        minimum=1,
        optional=int,
        basic=True,
        coupled="cost",
    )
    max_latency_ms: float | None = setting(
        None, "budget: a forward pass of one example never takes longer, by the table of its candidates",
        above=0, optional=float, basic=True, coupled="cost",
    )  # fmt: skip
    entropy_weight_start: float = setting(
        0.0, "weight of the structure's mean entropy at the first step; below 0 explores", coupled="preset"
    )
    entropy_weight_end: float = setting(0.0, "the same at the last step; above 0 commits", coupled="preset")
    kl_weight: float = setting(
        0.0,
        "weight of the structure's mean divergence from `prior`, KL relative to the largest entropy; explores",
        minimum=0,
        coupled="prior",
    )
    prior: str = setting(
        "uniform", "distribution that `kl_weight` pulls the structure towards; `cost` is proportional to exp(-cost)",
        words=_PRIOR_WORDS, coupled="prior",
    )  # fmt: skip
    gradient_clip_val: float = setting(
        5.0, "largest norm of the weights' gradient, unless the Trainer has a limit; 0 is no limit", minimum=0
    )
    validation_fraction: float = setting(
        0.5, "part of the training data that becomes validation data if there is none", above=0, maximum=0.9
    )
    gap_every: int = setting(
        0, "epochs between two measurements of the discretisation gap, each two more validations; 0 is never",
        minimum=0,
    )  # fmt: skip
    log_prob_every_n_step: int = setting(
        10, "steps between two records of every probability in the Trainer's loggers, 0 is never", minimum=0
    )

    def __init__(self, **given: Any) -> None:
        defaults = {spec.name: spec.default for spec in fields(self)}
        for name in given:
            if name not in defaults:
                raise UsageError(f"{name}: there is no such setting{nearest(name, defaults)}")
        preset = given.get("preset", "none")
        # A wrong word must reach its check; a list cannot be looked up.
        filled = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        values = {**defaults, **filled, **given}
        if values["temperature_schedule"] == "constant":
            told = [{**filled, **given}[name] for name in _ENDS if name in {**filled, **given}]
            values |= {name: (told or [1.0])[0] for name in _ENDS if name not in {**filled, **given}}
        if "cost_weight" not in given and any(values[name] is not None for name in BUDGETS):
            values["cost_weight"] = 0.0  # the budget says what the structure may cost
        values["prior"] = prior_text(values["prior"])
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_settings(self)
        if self.temperature_start < self.temperature_end:
            raise UsageError(
                f"temperature_start: {self.temperature_start:g} is below temperature_end "
                f"({self.temperature_end:g}); the temperature falls, so give at least {self.temperature_end:g}"
            )
        if self.temperature_schedule == "constant" and self.temperature_start != self.temperature_end:
            raise UsageError(
                "temperature_schedule: 'constant' needs temperature_start = temperature_end, "
                f"got {self.temperature_start:g} and {self.temperature_end:g}"
            )
        if bool(self.rounds) != bool(self.finalists):
            raise UsageError(
                f"finalists: {self.finalists} and rounds: {self.rounds} do not go together; give both above 0, or "
                "rounds: 0 and finalists: 0 for logits that follow their gradient at every step"
            )
        if self.level == "single" and self.samples_per_step > 1:
            raise UsageError(
                f"samples_per_step: {self.samples_per_step} samples have no place in the joint step of "
                "level 'single'; give 1, or level 'bilevel'"
            )
        self._check_execution()

    def _check_execution(self) -> None:
        candidates = self.structure_candidates
        if candidates != "all" and self.execution != "sampled":
            raise UsageError(
                f"structure_candidates: {candidates!r} has no place in execution {self.execution!r}, in which all "
                "candidates run; give execution 'sampled', or structure_candidates 'all'"
            )
        if candidates == "two" and self.estimator != "soft":
            raise UsageError(
                "structure_candidates: 'two' mixes a pair of candidates, which estimator "
                f"{self.estimator!r} does not; give estimator 'soft', or structure_candidates 'all'"
            )
        if candidates == "sampled" and self.estimator == "probabilities":
            raise UsageError(
                "structure_candidates: 'sampled' is a draw, and estimator 'probabilities' draws nothing; "
                "give another estimator, or structure_candidates 'all'"
            )
        if self.execution == "sampled" and self.level == "single" and candidates != "sampled":
            raise UsageError(
                f"structure_candidates: at level 'single' structure and weights share one pass, in which {candidates} "
                "candidates cannot run while only one network does; give 'sampled', or level 'bilevel'"
            )


def without_effect(settings: SearchSettings, own_cost: bool) -> list[str]:
    """One line for each setting that is given and plays no part, for its weight is 0.

    Args:
        settings: of a search.
        own_cost: whether a person's own cost stands in the place of the setting `cost`.
    """
    lines = []
    limited = any(getattr(settings, name) is not None for name in BUDGETS)
    by_prior = settings.prior == "cost" and settings.kl_weight
    # Without a budget a weight of 0 is one that was given: the cost is then to be reported alone.
    if (own_cost or settings.cost != "params") and limited and not settings.cost_weight and not by_prior:
        what = "the function" if own_cost else repr(settings.cost)
        lines.append(
            f"cost: {what} has no effect on the search, for cost_weight is 0, as it is with a budget unless it is "
            "given; give a cost_weight above 0, or leave cost out"
        )
    if settings.prior != "uniform" and not settings.kl_weight:
        what = repr(settings.prior) if settings.prior in PRIORS else "that by label"
        lines.append(
            f"prior: {what} has no effect on the search, for kl_weight is 0; give a kl_weight above 0, or leave "
            "prior out"
        )
    return lines


def prior_text(prior: Any) -> Any:
    """A prior by label as its JSON text, which passes through a trial's parameters like any word.

    Args:
        prior: a word; a mapping label -> {candidate: probability}; or the text of one. The probabilities of a
            label are taken relative to their sum, and candidates that are left out have probability 0.

    Returns:
        The word, or the text, always the same for the same mapping; what is neither as it is.

    Raises:
        UsageError: an unknown word, or no such mapping.
    """
    if isinstance(prior, str) and prior not in PRIORS:
        try:
            prior = json.loads(prior)
        except ValueError:
            raise UsageError(f"prior: {prior!r} is unknown; give {_PRIOR_WORDS}") from None
    elif not isinstance(prior, Mapping):
        return prior
    if not isinstance(prior, Mapping) or not prior:
        raise UsageError(f"prior: {prior!r} is no mapping; give {_PRIOR_WORDS}")
    for label, weights in prior.items():
        if not isinstance(weights, Mapping):
            raise UsageError(f"prior: {label!r} has {weights!r}; give a mapping candidate: probability")
        for candidate, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not 0 <= weight < math.inf:
                raise UsageError(
                    f"prior: {label!r} gives candidate {candidate!r} {weight!r}; give a probability, at least 0"
                )
        if not sum(weights.values()) > 0:
            raise UsageError(
                f"prior: {label!r} has no candidate with a probability above 0; give at least one"
            )
    plain = {
        str(label): {str(candidate): float(weight) for candidate, weight in weights.items()}
        for label, weights in prior.items()
    }
    return json.dumps(plain, sort_keys=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, else all of them."""
    known = list(known)
    found = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"

"""The settings of a search: their defaults, their ranges, how they depend on each other, and presets.

A preset is a known method of the field, so that methods can be compared with one word changed. It sets what *defines*
the method: how a sample is drawn and how its temperature runs, without the entropy term that is ours. What any method
needs - learning rates, epochs, the weight of the cost - stays as it is, so that two presets differ in their method
alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from nni_gumbel.errors import UsageError
from nni_gumbel.settings import Settings, setting

Schedule = Literal["linear", "exponential", "cosine"]
# Those of relaxation.estimators, and the noise-free probabilities themselves.
Estimator = Literal["soft", "straight-through-gumbel", "probabilities"]
ESTIMATORS = get_args(Estimator)
PRIORS = ("uniform", "cost")

_GRADIENT_ALONE = {
    "stages": 0, "finalists": 0, "entropy_weight_start": 0.0, "entropy_weight_end": 0.0, "capacity_exponent": 0.0,
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # What this project had before stages: explores by a negative weight of the entropy, then commits by a positive one.
    "gradual": {
        **_GRADIENT_ALONE, "temperature_start": 3.0, "temperature_end": 0.1, "entropy_weight_start": -1.0,
        "entropy_weight_end": 2.0,
    },
    # arXiv 1806.09055, equation 2: the softmax itself, no noise. Its temperature is 1.
    "darts": {
        "estimator": "probabilities", "temperature_start": 1.0, "temperature_end": 1.0, **_GRADIENT_ALONE,
    },
    # arXiv 1812.09926: Gumbel-softmax. The paper gives no temperatures: these are those of NNI's GumbelDARTS.
    "snas": {
        "estimator": "soft", "temperature_start": 1.0, "temperature_end": 0.33,
        "temperature_schedule": "exponential", **_GRADIENT_ALONE,
    },
    # arXiv 1910.04465, equations 3 and 4; temperatures of the authors' code.
    "gdas": {
        "estimator": "straight-through-gumbel", "temperature_start": 10.0, "temperature_end": 0.1,
        "temperature_schedule": "linear", **_GRADIENT_ALONE,
    },
}  # fmt: skip

# Which settings belong together, and how.
COUPLINGS = {
    "metric": "a metric that is better when smaller, as a loss is, needs `optimize_mode: minimize`",
    "seeds": "searches and trainings are seeded from `seed` upwards; the seeds of random networks come after these",
    "epochs": "`search_epochs` is greater than `warmup_epochs`",
    "preset": "a preset fills in these settings where you give none",
    "course": "`stages` and `finalists` are both above 0 or both 0; a search too short for all of them has fewer, and "
    "the log says so",
    "temperature": "`temperature_start` is at least `temperature_end`; where they are equal it is constant",
    "cost": "with `cost_weight: 0` no `cost` is priced; a budget (`max_…`) is spent if there is no `cost_weight`",
    "prior": "a `prior` needs a `kl_weight` above 0; the prior `cost` is made from the setting `cost`",
}


def _some_above_0(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError
    return weights


_Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Weights = Annotated[dict[str, _Weight], AfterValidator(_some_above_0)]
_BY_LABEL = TypeAdapter(
    Annotated[dict[str, _Weights], Field(min_length=1)], config=ConfigDict(coerce_numbers_to_str=True)
)


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
    if not isinstance(prior, (str, Mapping)) or prior in PRIORS:
        return prior
    try:
        by_label = (_BY_LABEL.validate_json if isinstance(prior, str) else _BY_LABEL.validate_python)(prior)
    except ValidationError as error:
        first = error.errors()[0]
        what = ", ".join(map(repr, (*first["loc"], first["input"])))
        raise UsageError(
            f"prior: {what} is no distribution; give uniform, cost, or a mapping label: {{candidate: probability}}, "
            "with probabilities of at least 0 and one above 0 for each label"
        ) from None
    return json.dumps(by_label, sort_keys=True)


Prior = Annotated[
    str,
    BeforeValidator(prior_text),
    WithJsonSchema({
        "anyOf": [
            {"enum": list(PRIORS)},
            {
                "title": "a mapping label: {candidate: probability}",
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
            },
        ]
    }),
]  # fmt: skip


class SearchSettings(Settings):
    """How structure and weights are optimised together; a ``preset`` fills in its values where none are given."""

    preset: Literal[tuple(PRESETS)] = setting(
        "none", "known method that fills in its values where you give none", basic=True, coupled="preset"
    )
    estimator: Estimator = setting(
        "soft", "how a sample is drawn and its gradient taken; `probabilities` is without noise", coupled="preset",
    )  # fmt: skip
    stages: int = setting(
        5, "stages of a training of drawn networks with shared weights; behind each they are judged; 0, without "
        "`finalists`: the logits follow their gradient at every step", ge=0, coupled="preset course",
    )  # fmt: skip
    finalists: int = setting(
        14, "networks that are trained alone behind the stages and compared; 0 where there are no `stages`", ge=0,
        basic=True, coupled="preset course",
    )  # fmt: skip
    capacity_exponent: float = setting(
        0.076, "short trainings favour small networks: a loss is multiplied by parameters^-exponent; 0 leaves it as "
        "it is", ge=0, coupled="preset",
    )  # fmt: skip
    temperature_start: float = setting(
        1.0, "temperature of the first step", gt=0, coupled="preset temperature"
    )
    temperature_end: float = setting(
        0.4, "temperature of the last step, reached exactly", gt=0, coupled="preset temperature"
    )
    temperature_schedule: Schedule = setting(
        "exponential", "how the temperature falls, step by step", coupled="preset temperature"
    )
    warmup_epochs: int = setting(
        0, "first epochs in which only weights learn, candidates equally likely", ge=0, basic=True, coupled="epochs",
    )  # fmt: skip
    arc_learning_rate: float = setting(0.05, "learning rate of the logits (Adam)", gt=0)
    cost: Literal["params", "flops", "latency"] = setting(
        "params", "what `cost_weight` prices: parameters, multiply-adds, or milliseconds of a table",
        basic=True, coupled="cost prior",
    )  # fmt: skip
    cost_weight: float = setting(
        0.0, "weight of the expected `cost`, relative to the largest network's",
        ge=0, basic=True, coupled="cost",
    )  # fmt: skip
    max_params: int | None = setting(
        None, "budget: the network found never has more parameters", ge=1, basic=True, coupled="cost"
    )
    max_flops: int | None = setting(
        None, "budget: it never has more multiply-adds for one example", ge=1, basic=True, coupled="cost"
    )
    max_latency_ms: float | None = setting(
        None, "budget: a forward pass of one example never takes longer, by the table of its candidates",
        gt=0, basic=True, coupled="cost",
    )  # fmt: skip
    entropy_weight_start: float = setting(
        0.0, "weight of the structure's mean entropy at the first step; below 0 explores", coupled="preset"
    )
    entropy_weight_end: float = setting(0.0, "the same at the last step; above 0 commits", coupled="preset")
    kl_weight: float = setting(
        0.0, "weight of the structure's mean divergence from `prior`, KL relative to the largest entropy; explores",
        ge=0, coupled="prior",
    )  # fmt: skip
    prior: Prior = setting(
        "uniform", "distribution that `kl_weight` pulls the structure towards; `cost` is proportional to exp(-cost)",
        coupled="prior",
    )  # fmt: skip
    gradient_clip_val: float = setting(
        5.0, "largest norm of the weights' gradient, unless the Trainer has a limit; 0 is no limit", ge=0
    )
    log_prob_every_n_step: int = setting(
        10, "steps between two records of every probability in the Trainer's loggers, 0 is never", ge=0
    )

    def __init__(self, /, **given: Any) -> None:
        preset = given.get("preset")
        # A wrong word must reach its check; a list cannot be looked up.
        values = {**(PRESETS.get(preset, {}) if isinstance(preset, str) else {}), **given}
        super().__init__(**values)
        self.model_fields_set.intersection_update(given)  # another preset fills in the rest anew

    @model_validator(mode="after")
    def _check_together(self) -> SearchSettings:
        if self.temperature_start < self.temperature_end:
            raise UsageError(
                f"temperature_start: {self.temperature_start:g} is below temperature_end "
                f"({self.temperature_end:g}); the temperature falls, so give at least {self.temperature_end:g}"
            )
        if bool(self.stages) != bool(self.finalists):
            raise UsageError(
                f"finalists: {self.finalists} and stages: {self.stages} do not go together; give both above 0, or 0: "
                "logits that follow their gradient at every step"
            )
        return self


def without_effect(settings: SearchSettings, own_cost: bool) -> list[str]:
    """One line for each setting that is given and plays no part, for its weight is 0.

    ``own_cost`` says whether a person's own cost stands in the place of the setting `cost`.
    """
    lines = []
    by_prior = settings.prior == "cost" and settings.kl_weight
    if (own_cost or settings.cost != "params") and not settings.cost_weight and not by_prior:
        what = "the function" if own_cost else repr(settings.cost)
        lines.append(
            f"cost: {what} has no effect on the search, for cost_weight is 0; give one above 0, or leave cost out"
        )
    if settings.prior != "uniform" and not settings.kl_weight:
        what = repr(settings.prior) if settings.prior in PRIORS else "that by label"
        lines.append(
            f"prior: {what} has no effect on the search, for kl_weight is 0; give a kl_weight above 0, or leave "
            "prior out"
        )
    return lines

"""Every setting of an experiment: one frozen pydantic model around the settings of a search.

In YAML (`tuner.classArgs`) and in a search space the two form one flat list of names. Each name,
default, range and meaning stands in its field alone; checks, messages, ``examples/SETTINGS.md`` and the schema by
which editors check an experiment.yml are made from there. Module names and data are no settings: they come from the
trial command.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.results.choice import Rule
from nni_gumbel.search.settings import COUPLINGS, SearchSettings
from nni_gumbel.settings import Settings, allowed_values, setting

# Generators take 32 bits; those of an experiment's seeds that come after the first one fit, too.
_LARGEST_SEED = 2**31
_FIT_NAMES = ("batch_size", "learning_rate", "weight_decay", "optimizer", "precision", "trainer")
_TRAIN_NAMES = ("train_epochs", *_FIT_NAMES)
_JUDGE_NAMES = ("optimize_mode", "metric")

_BY_TRIAL = "a trial writes into its output directory, and saves itself"
_ONE_DEVICE = "a trial runs on the one device that NNI gives it"
_OBJECT = "name an --evaluator of your own, which can give it to its Trainer"
_SHORT = "set search_epochs and train_epochs, for a test of everything 1"
# Flags of the Trainer that are given elsewhere, and where.
_OWNED_FLAGS = {
    "max_epochs": "set search_epochs and train_epochs", "precision": "set precision",
    "logger": "give --logger in the trial command", "callbacks": _OBJECT, "plugins": _OBJECT,
    "default_root_dir": _BY_TRIAL, "enable_checkpointing": _BY_TRIAL, "devices": _ONE_DEVICE, "num_nodes": _ONE_DEVICE,
    "fast_dev_run": _SHORT, "barebones": _SHORT,
}  # fmt: skip
# Those that change what is seen of a run, and not its result.
_SHOWING_FLAGS = (
    "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "detect_anomaly", "inference_mode",
    "num_sanity_val_steps", "enable_autolog_hparams",
)  # fmt: skip


def trainer_text(flags: Any) -> Any:
    """Flags of the Trainer as their JSON text, which passes through a trial's parameters like any word.

    Args:
        flags: a mapping flag -> number, word, truth value or list of them; or the text of one.

    Returns:
        The text, always the same for the same mapping; what is neither as it is.

    Raises:
        UsageError: no mapping, a value that is no JSON, or a flag that is given elsewhere.
    """
    try:
        flags = json.loads(flags) if isinstance(flags, str) else flags
        text = json.dumps(flags, sort_keys=True)
    except (TypeError, ValueError):
        text = None
    if text is None or not isinstance(flags, Mapping):
        raise UsageError(
            f"trainer: {flags!r} is no mapping; give flags of Lightning's Trainer, e.g. "
            "{accumulate_grad_batches: 2}"
        )
    for name in flags:
        if name in _OWNED_FLAGS:
            raise UsageError(f"trainer: {name} is not given here; {_OWNED_FLAGS[name]}")
    return text


TrainerFlags = Annotated[
    str,
    BeforeValidator(trainer_text),
    WithJsonSchema({"title": "a mapping flag: value", "type": "object"}),
]


class ExperimentSettings(Settings):
    """What a person can set for a whole experiment."""

    optimize_mode: Literal["maximize", "minimize"] = setting(
        "maximize", "whether a greater or a smaller metric is better", basic=True, coupled="metric"
    )
    metric: str = setting(
        "acc", "validation metric, as the evaluator logs it but without `val_`", basic=True, coupled="metric"
    )
    search_seeds: int = setting(
        1, "searches with different seeds, for every combination of `searchSpace`", ge=1, basic=True, coupled="seeds"
    )  # fmt: skip
    train_seeds: int = setting(
        3, "trainings from scratch with different seeds, for every network found", ge=1, basic=True, coupled="seeds"
    )  # fmt: skip
    random_baseline: int = setting(
        0, "random networks of equal size, each trained once, for every network found; 0 is none",
        ge=0, basic=True, coupled="seeds",
    )  # fmt: skip
    search_epochs: int = setting(24, "epochs of a search", ge=1, basic=True, coupled="epochs")
    train_epochs: int = setting(36, "epochs of a training", ge=1, basic=True)
    batch_size: int = setting(64, "examples in a batch", ge=1, basic=True)
    learning_rate: float = setting(1e-2, "largest learning rate of the weights", gt=0, basic=True)
    weight_decay: float = setting(1e-4, "weight decay of the weights", ge=0, basic=True)
    optimizer: Literal["adamw", "sgd", "adam"] = setting(
        "adamw", "recipe of the built-in evaluator: AdamW with a rate that rises and falls once, `sgd` with Nesterov's "
        "momentum and a rate that falls as a cosine, `adam` at a constant rate", basic=True,
    )  # fmt: skip
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = setting(
        "32-true", "numbers that searches and trainings calculate with, in the words of Lightning's Trainer"
    )
    trainer: TrainerFlags = setting(
        "{}",
        "further flags of Lightning's Trainer in searches and trainings, e.g. `{accumulate_grad_batches: 2}`",
    )
    # Not `off`: YAML reads that as false.
    stability: Literal["cheap", "full", "none"] = setting(
        "cheap",
        "whether each trained network is disturbed to see how stable it is: `cheap` takes at most a tenth of the "
        "training (noise, removed weights, FGSM), `full` takes all validation data, also PGD and corruptions of "
        "images, and trains every network that differs from the exported one in a single choice",
        basic=True,
    )  # fmt: skip
    choice_rule: Rule = setting(
        "cheapest-stable",
        "which network is exported: of those within one standard error of the best validation metric the cheapest that "
        "is not less stable than their median, the `cheapest` whatever its stability, or the `best` whatever its cost",
    )
    attempts: int = setting(2, "how often a trial is tried before it is left out", ge=1)
    seed: int = setting(
        0,
        "first of the seeds; the others count up from it",
        ge=0,
        le=_LARGEST_SEED,
        basic=True,
        coupled="seeds",
    )
    search: SearchSettings = SearchSettings()

    @model_validator(mode="after")
    def _check_together(self) -> ExperimentSettings:
        if not self.metric or self.metric.startswith("val_"):
            raise UsageError(
                f"metric: {self.metric!r} is not a metric's name; give the name without `val_`, for example 'acc'"
            )
        if self.search.warmup_epochs >= self.search_epochs:
            raise UsageError(
                f"warmup_epochs: {self.search.warmup_epochs} leaves no epoch of search_epochs "
                f"({self.search_epochs}) for the structure; give at most {self.search_epochs - 1}"
            )
        return self

    @classmethod
    def from_flat(cls, values: Mapping[str, Any] | None) -> ExperimentSettings:
        """Make settings from flat names and values, as in YAML's `tuner.classArgs`.

        Raises:
            UsageError: a name is unknown (the nearest one is named), or a value is wrong.
        """
        if not isinstance(values or {}, Mapping):
            raise UsageError(f"tuner.classArgs: {values!r} holds no names and values; give settings")
        own, search = {}, {}
        for name, value in (values or {}).items():
            if name not in FLAT_NAMES:
                raise UsageError(f"{name}: there is no such setting{nearest(name, FLAT_NAMES)}")
            (search if name in SearchSettings.model_fields else own)[name] = value
        return cls(**own, search=SearchSettings(**search))

    def flat(self) -> dict[str, Any]:
        """All names and values, those of the search among them."""
        return _flattened(self.model_dump())

    def with_values(self, values: Mapping[str, Any]) -> ExperimentSettings:
        """The same settings, but with these values; checked as a whole. Another preset fills in its own."""
        return self.from_flat({**_flattened(self.model_dump(exclude_unset=True)), **values})

    def search_values(self) -> dict[str, Any]:
        """What a search trial needs to know."""
        return self._values(("search_epochs", *_FIT_NAMES, *SearchSettings.model_fields))

    def train_values(self) -> dict[str, Any]:
        """What a training trial needs to know."""
        return self._values(_TRAIN_NAMES)

    def export_values(self) -> dict[str, Any]:
        """What the export trial needs to know."""
        return self._values(())

    def _values(self, names: Iterable[str]) -> dict[str, Any]:
        flat = self.flat()
        return {name: flat[name] for name in (*names, *_JUDGE_NAMES)}

    @property
    def baseline_seeds(self) -> range:
        """Of the random networks; no training has one of them: in a small space the two may be of one network."""
        first = self.seed + self.train_seeds
        return range(first, first + self.random_baseline)


def _flattened(dumped: dict[str, Any]) -> dict[str, Any]:
    search = dumped.pop("search", {})
    return dumped | search


FLAT_NAMES = tuple(ExperimentSettings().flat())

_DEFAULTS = ExperimentSettings().flat()
# A preset counts by the values that it fills in; the others say how a result is shown or compared.
_WITHOUT_RESULT = ("preset", "optimize_mode", "log_prob_every_n_step")


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a trial's settings that change its result; what is as if it were left out is none of them.

    Settings that a later version adds do not change it, therefore: a resumed experiment knows its tasks again.
    """
    found = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
    flags = {n: v for n, v in json.loads(found.pop("trainer", "{}")).items() if n not in _SHOWING_FLAGS}
    if flags:
        found["trainer"] = flags
    for name in _WITHOUT_RESULT:
        found.pop(name, None)
    if "kl_weight" not in found:  # its default, and that of cost_weight, is 0
        found.pop("prior", None)
    if "cost_weight" not in found and found.get("prior") != "cost":
        found.pop("cost", None)
    return found


# What a search space may vary: whatever a trial is told, except how its result is judged, because
# results that are judged differently cannot be compared.
VARIED_NAMES = tuple(
    name
    for name in FLAT_NAMES
    if name not in _JUDGE_NAMES
    and name in {*ExperimentSettings().search_values(), *ExperimentSettings().train_values()}
)


# -- what people and their editors read about them ------------------------------------------------------------


def _schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting."""
    return _flattened({
        **ExperimentSettings.model_json_schema()["properties"],
        "search": SearchSettings.model_json_schema()["properties"],
    })  # fmt: skip


def setting_rows(basic: bool) -> list[tuple[str, ...]]:
    """The basic settings or the others: name, default, range, meaning, and the words of their couplings."""
    return [
        (
            name,
            "" if schema["default"] is None else str(schema["default"]),
            allowed_values(schema),
            schema["description"],
            schema["coupled"].replace(" ", ", "),
        )
        for name, schema in _schemas().items()
        if schema["basic"] is basic
    ]


def experiment_schema() -> str:
    """The text of ``examples/experiment.schema.json``, by which an editor completes and checks an experiment.yml.

    It knows the settings and which of them may be varied; NNI's own fields are left to NNI.
    """
    settings = {
        name: {key: value for key, value in schema.items() if key not in ("title", "basic", "coupled")}
        for name, schema in _schemas().items()
    }
    varied = {
        "type": "object",
        "required": ["_type", "_value"],
        "properties": {"_type": {"type": "string"}, "_value": {"type": "array"}},
    }
    tuner = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"const": "GumbelSearch"},
            "classArgs": {"type": ["object", "null"], "properties": settings, "additionalProperties": False},
        },
    }
    space = {"propertyNames": {"enum": list(VARIED_NAMES)}, "additionalProperties": varied}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "An experiment of NNI with the tuner GumbelSearch",
        "type": "object",
        "required": ["trialCommand", "trialConcurrency", "tuner", "trainingService"],
        "properties": {"tuner": tuner, "searchSpace": {"type": ["object", "null"], **space}},
    }
    return json.dumps(schema, indent=2)


def settings_markdown() -> str:
    """The text of ``examples/SETTINGS.md``, which is this function's output."""
    fixed = ", ".join(f"`{name}`" for name in FLAT_NAMES if name not in VARIED_NAMES)
    text = (
        "Written by `nni-gumbel settings --markdown`. The [guide](README.md#settings) says where they are given, and "
        f"explains presets and estimators. `searchSpace` may vary all of them except {fixed}."
    )
    lines = ["# Settings", "", *textwrap.wrap(text, 110), ""]
    for title, basic in (("Basic", True), ("Expert", False)):
        lines += [f"## {title}", ""]
        lines += ["| setting | default | range | meaning | coupled |", "| --- | --- | --- | --- | --- |"]
        for name, default, *rest in setting_rows(basic):
            lines.append(" | ".join((f"| `{name}`", f"`{default}`" if default else "", *rest)) + " |")
        lines.append("")
    lines += ["## Couplings", "", "Settings with the same word in the last column belong together:", ""]
    lines += ["| word | rule |", "| --- | --- |"]
    lines += [f"| {word} | {rule} |" for word, rule in COUPLINGS.items()]
    return "\n".join(lines)

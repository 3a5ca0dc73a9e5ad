"""Every setting of an experiment: one frozen dataclass around the settings of a search.

In YAML (`tuner.classArgs`) and in a search space the two form one flat list of names. Each name,
default, range and meaning stands in its field alone; checks, messages and ``examples/SETTINGS.md`` are
made from there. Module names and data are no settings: they come from the trial command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.search.settings import COUPLINGS, SearchSettings, check_settings, nearest, range_of, setting

_SEARCH_NAMES = tuple(spec.name for spec in fields(SearchSettings))
_TRAIN_NAMES = ("train_epochs", "batch_size", "learning_rate", "weight_decay")
_JUDGE_NAMES = ("optimize_mode", "metric")


@dataclass(frozen=True)
class ExperimentSettings:
    """What a person can set for a whole experiment.

    Raises:
        UsageError: a value has the wrong type or is out of its range.
    """

    optimize_mode: str = setting(
        "maximize",
        "whether a greater or a smaller metric is better",
        choices=("maximize", "minimize"),
        basic=True,
        coupled="metric",
    )
    metric: str = setting(
        "acc", "validation metric, as the evaluator logs it but without `val_`", basic=True, coupled="metric"
    )
    search_seeds: int = setting(
        1,
        "searches with different seeds, for every combination of `searchSpace`",
        minimum=1,
        basic=True,
        coupled="seeds",
    )
    train_seeds: int = setting(
        3,
        "trainings from scratch with different seeds, for every network found",
        minimum=1,
        basic=True,
        coupled="seeds",
    )
    random_baseline: int = setting(
        0,
        "random networks of equal size, each trained once, for every network found; 0 is none",
        minimum=0,
        basic=True,
        coupled="seeds",
    )
    search_epochs: int = setting(24, "epochs of a search", minimum=1, basic=True, coupled="epochs")
    train_epochs: int = setting(36, "epochs of a training", minimum=1, basic=True)
    batch_size: int = setting(64, "examples in a batch", minimum=1, basic=True)
    learning_rate: float = setting(1e-2, "largest learning rate of the weights", above=0, basic=True)
    weight_decay: float = setting(1e-4, "weight decay of the weights", minimum=0, basic=True)
    attempts: int = setting(2, "how often a trial is tried before it is left out", minimum=1)
    samples: int | None = setting(
        None,
        "combinations drawn at random from `searchSpace`; if left out, every combination is taken",
        minimum=1,
        optional=int,
    )
    seed: int = setting(
        0, "first of the seeds; the others count up from it", minimum=0, basic=True, coupled="seeds"
    )
    search: SearchSettings = field(default_factory=SearchSettings)
    # The flat values that a person gave, if they came so: another preset fills in the rest anew.
    given: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.metric or self.metric.startswith("val_"):
            raise UsageError(
                f"metric: {self.metric!r} is not a metric's name; give the name without `val_`, for example 'acc'"
            )
        if self.search.warmup_epochs >= self.search_epochs:
            raise UsageError(
                f"warmup_epochs: {self.search.warmup_epochs} leaves no epoch of search_epochs "
                f"({self.search_epochs}) for the structure; give at most {self.search_epochs - 1}"
            )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any] | None) -> ExperimentSettings:
        """Make settings from flat names and values, as in YAML's `tuner.classArgs`.

        Raises:
            UsageError: a name is unknown (the nearest one is named), or a value is wrong.
        """
        values = dict(values or {})
        for name in values:
            if name not in _FLAT_NAMES:
                raise UsageError(f"{name}: there is no such setting{nearest(name, _FLAT_NAMES)}")
        search = {name: value for name, value in values.items() if name in _SEARCH_NAMES}
        own = {name: value for name, value in values.items() if name not in _SEARCH_NAMES}
        return cls(**own, search=SearchSettings(**search), given=values)

    def flat(self) -> dict[str, Any]:
        """All names and values, those of the search among them."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if "doc" in spec.metadata}
        return own | vars(self.search)

    def with_values(self, values: Mapping[str, Any]) -> ExperimentSettings:
        """The same settings, but with these values; checked as a whole."""
        return self.from_flat({**(self.flat() if self.given is None else self.given), **values})

    def search_values(self) -> dict[str, Any]:
        """What a search trial needs to know."""
        return self._values(("search_epochs", "batch_size", "learning_rate", "weight_decay", *_SEARCH_NAMES))

    def train_values(self) -> dict[str, Any]:
        """What a training trial needs to know."""
        return self._values(_TRAIN_NAMES)

    @property
    def baseline_seeds(self) -> range:
        """Of the random networks; no training has one of them: in a small space the two may be of one network."""
        first = self.seed + self.train_seeds
        return range(first, first + self.random_baseline)

    def export_values(self) -> dict[str, Any]:
        """What the export trial needs to know."""
        return self._values(())

    def _values(self, names: Iterable[str]) -> dict[str, Any]:
        flat = self.flat()
        return {name: flat[name] for name in (*names, *_JUDGE_NAMES)}


_FLAT_NAMES = (
    *(spec.name for spec in fields(ExperimentSettings) if "doc" in spec.metadata),
    *_SEARCH_NAMES,
)

# What a search space may vary: whatever a trial is told, except how its result is judged, because
# results that are judged differently cannot be compared.
VARIED_NAMES = tuple(
    name
    for name in _FLAT_NAMES
    if name not in _JUDGE_NAMES
    and name in {*ExperimentSettings().search_values(), *ExperimentSettings().train_values()}
)


def setting_rows(basic: bool) -> list[tuple[str, ...]]:
    """The basic settings or the others: name, default, range, meaning, and the words of their couplings."""
    return [
        (
            spec.name,
            "" if spec.default is None else str(spec.default),
            range_of(spec.metadata),
            spec.metadata["doc"],
            spec.metadata["coupled"].replace(" ", ", "),
        )
        for spec in (*fields(ExperimentSettings), *fields(SearchSettings))
        if "doc" in spec.metadata and spec.metadata["basic"] is basic
    ]


def settings_markdown() -> str:
    """The text of ``examples/SETTINGS.md``, which is this function's output."""
    fixed = ", ".join(f"`{name}`" for name in _FLAT_NAMES if name not in VARIED_NAMES)
    lines = [
        "# Settings", "",
        "Written by `nni-gumbel settings --markdown`. The [guide](README.md#settings) says where they are given, and",
        "explains presets, estimators and ways of execution. `searchSpace` may vary all of them except",
        f"{fixed}.", "",
    ]  # fmt: skip
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

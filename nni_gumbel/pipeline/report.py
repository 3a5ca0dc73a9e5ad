"""The report of an experiment: what it found, how stable that is, and how it came about, as one page.

Read from what NNI knows of the trials, from the files in their output directories (TensorBoard's events, bundles,
stability) and, for the picture of the network, from the space. Of an experiment that runs, it tells what there is.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from nni_gumbel import __version__
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.names import inside
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.export import priced_by, with_stability
from nni_gumbel.pipeline.manager import Experiment, ManagerUnreachable, plan_of, trial_command_of
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, EXPORT, REPORT_FOLDER, TENSORBOARD, Trial
from nni_gumbel.results.agreement import LabelAgreement, agreements, choice_of, disagreement
from nni_gumbel.results.choice import Choice, Network, choose
from nni_gumbel.results.front import COSTS, front, front_figure
from nni_gumbel.results.page import Picture, Section, Table, write_page
from nni_gumbel.results.pictures import (
    SearchHistory,
    draw_agreement,
    draw_probabilities,
    draw_search,
    draw_stability,
)
from nni_gumbel.results.report import decision_table, mean_and_std, network_table, number
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import FILE as STABILITY
from nni_gumbel.results.stability import Stability, read_stability

logger = logging.getLogger(__name__)


def report(experiment: Experiment, folder: str | Path | None = None) -> Path:
    """Write the report of an experiment on this machine whose manager is up, also while it runs.

    Args:
        experiment: which one.
        folder: see :func:`write_report`; ``gumbel-report/<its id>`` in the working directory if omitted.

    Raises:
        UsageError: its manager does not answer, or see :func:`write_report`.
    """
    folder = Path(folder or Path(REPORT_FOLDER) / experiment.id).absolute()
    try:
        profile, trials = experiment.manager.experiment(), experiment.manager.trials()
    except ManagerUnreachable:
        raise UsageError(
            f"ID: the manager of experiment {experiment.id} is not up; `nnictl view {experiment.id}` shows a stopped "
            "experiment again, then ask for its report once more"
        ) from None
    command, directory = trial_command_of(profile["params"])
    with inside(directory):
        return write_report(folder, profile, trials, experiment.outputs, command)


def write_report(
    folder: str | Path,
    profile: Mapping[str, Any],
    trials: Sequence[Trial],
    outputs: Path,
    command: TrialCommand,
    export: Path | None = None,
) -> Path:
    """Write the report of an experiment, in whose trial code directory this process works.

    Args:
        folder: of ``report.html`` and of its pictures and tables; it is made.
        profile: the experiment, as NNI's manager tells it.
        trials: all of them.
        outputs: the folder with their output directories.
        command: the trial command.
        export: the output directory of the export, if its trial is not among the finished ones yet.

    Returns:
        The page.

    Raises:
        UsageError: no training has finished, or the folder cannot be written.
    """
    if export is None:
        done = (trial for trial in trials if trial.report is not None and trial.stage == EXPORT)
        export = next((outputs / trial.id for trial in done), None)
    return _Report(profile, trials, outputs, command, export).write(Path(folder))


class _Report:
    """What the sections are made of."""

    def __init__(
        self,
        profile: Mapping[str, Any],
        trials: Sequence[Trial],
        outputs: Path,
        command: TrialCommand,
        export: Path | None,
    ) -> None:
        self.id, self.params = profile["id"], profile["params"]
        self.trials, self.outputs, self.command, self.export = trials, outputs, command, export
        self.plan = plan_of(profile)
        self.metric, self.mode = self.plan.settings.metric, self.plan.settings.optimize_mode
        self.priced = priced_by(command, self.plan)
        self.is_whole = self.priced in ("params", "flops")
        self.networks = with_stability(self.plan.networks(trials), outputs)
        if not self.networks:
            raise UsageError(
                f"ID: experiment {self.id} has no finished training yet, so there is nothing to report; "
                f"`nni-gumbel wait {self.id}` follows it"
            )
        self.choice: Choice = choose(
            self.networks, self.metric, self.mode, self.priced, self.plan.settings.choice_rule
        )
        self.searches = self.plan.searches(trials)

    def write(self, folder: Path) -> Path:
        sections = [
            self._network(),
            self._front(),
            self._stability(),
            self._searches(),
            self._agreement(),
            self._reproduction(),
        ]
        title = f"{self.params.get('experimentName') or 'Experiment'} ({self.id})"
        return write_page(folder, title, sections, {"experiment.yml": self._experiment})

    # -- what several sections need ------------------------------------------------------------------------

    @cached_property
    def _candidates(self) -> dict[str, tuple[list[str], int]]:
        """The candidates of every label of the space, and how many outcomes it has.

        Where the space cannot be built, they are those that searches have found.
        """
        try:
            variables = self.command.reference.build().simplify()
        except UsageError as error:
            logger.warning("the candidates are those that searches have found: %s", first_line(error))
            found: dict[str, dict[str, None]] = {}
            for _, _, trial in self.searches:
                for label in trial.report.architecture:
                    found.setdefault(label, {})[choice_of(trial.report.architecture, label)] = None
            return {label: (list(words), len(words)) for label, words in found.items()}
        return {
            label: ([choice_of({label: value}, label) for value in variable.values], _outcomes(variable))
            for label, variable in variables.items()
        }

    @cached_property
    def _history(self) -> dict[str, SearchHistory]:
        """What each search reported, by its trial."""
        return {
            trial.id: _history_of(
                f"search {trial.id}, seed {task.seed}", self.outputs / trial.id / TENSORBOARD
            )
            for _, task, trial in self.searches
        }

    def _kept(self, network: Network) -> list[Stability]:
        """What the trainings of a network kept of its stability; a damaged file was warned of before."""
        kept = []
        for run in network.runs:
            if run.stability is not None and (
                found := read_stability(self.outputs / run.trial_id / STABILITY)
            ):
                kept.append(found)
        return kept

    # -- the sections --------------------------------------------------------------------------------------

    def _network(self) -> Section:
        chosen, run = self.choice.network, self.choice.run
        state = "exported" if self.export is not None else "best so far: the experiment has not ended"
        test = "" if chosen.test_mean is None else f"; test {mean_and_std(chosen.test_mean, chosen.test_std)}"
        lines = [
            f"{chosen.name} ({state}): validation {self.metric} "
            f"{mean_and_std(chosen.validation_mean, chosen.validation_std)}{test}; "
            f"{chosen.exported_parameters:,} parameters, {chosen.exported_flops:,} FLOPs; weights of seed {run.seed} "
            f"(trial {run.trial_id}).",
            self.choice.reason,
        ]
        rows = []
        for label, (words, _) in self._candidates.items():
            choice = choice_of(chosen.architecture, label)
            rows.append((label, choice, " · ".join(word for word in words if word not in choice.split("+"))))
        picture = Picture(
            "network",
            self._drawn_network,
            "The network, from input to output; in grey what was not chosen. FLOPs are multiply-adds of one example.",
        )
        choices = Table("choices", ("label", "chosen", "not chosen"), rows)
        return Section("The network", lines, pictures=[picture], tables=[choices])

    def _drawn_network(self) -> Any:
        from safetensors.torch import load_file

        from nni_gumbel.complexity.flops import flops_of_call, is_counted
        from nni_gumbel.results.bundle import FACTS, PROBE
        from nni_gumbel.results.diagram import draw_network, steps_of
        from nni_gumbel.results.example import Example

        def flops(module: Any, args: Any, kwargs: Any, output: Any) -> int:
            return flops_of_call(module, args, kwargs, output) if is_counted(module) else 0

        bundle, network = self.outputs / self.choice.run.trial_id / BUNDLE, self.choice.network
        described = json.loads((bundle / FACTS).read_text(encoding="utf-8"))["inputs"]
        example = Example.from_tensors(described, load_file(bundle / PROBE))
        steps = steps_of(self.command.reference.build(), network.architecture, example, flops)
        return draw_network(steps, f"What does {network.name} compute?")

    def _front(self) -> Section:
        tips = {
            each.name: self._tip(each) for network in self.networks for each in (network, *network.baseline)
        }
        picture = Picture(
            "front",
            lambda: front_figure(self.networks, self.choice.network, self.metric, self.mode, self.priced),
            "Every network that was trained, by what the experiment prices. Point at one to see its choices.",
            tips,
        )
        best = front(self.networks, self.mode, self.priced)
        shown = [
            # The choices, which are long, have a table of their own.
            (name, *rest, on_front)
            for (name, _, *rest), on_front in zip(
                network_table(self.networks, self.metric, self.choice.network),
                ("on the front", *("yes" if network in best else "no" for network in self.networks)),
            )
        ]
        lines = "\n".join(f"nni-gumbel export {self.id} --network {network.name}" for network in best)
        found = [each for network in self.networks for each in (network, *network.baseline)]
        all_rows = [
            (
                each.name, each.parameters, each.flops, each.exported_parameters, each.exported_flops, each.latency_ms,
                each.own_cost, run.seed, run.trial_id, run.validation, run.test, run.stability,
                json.dumps(each.architecture),
            )
            for each in found
            for run in each.runs
        ]  # fmt: skip
        of_runs = (
            "network", "parameters", "flops", "exported_parameters", "exported_flops", "latency_ms", "own_cost", "seed",
            "trial", f"validation_{self.metric}", f"test_{self.metric}", "stability", "architecture",
        )  # fmt: skip
        decided, *decisions = decision_table(self.choice, self.metric)
        choices = [
            (label, *(choice_of(each.architecture, label) for each in self.networks))
            for label in self._candidates
        ]
        return Section(
            "The front",
            [
                "Another trade-off between the metric and the cost is exported by its own line, below the picture."
            ],
            pictures=[picture],
            code=lines,
            tables=[
                Table("networks", of_runs, all_rows, (shown[0], shown[1:])),
                Table("decision", decided, decisions),
                Table("choices_of_networks", ("label", *(each.name for each in self.networks)), choices),
            ],
        )

    def _tip(self, network: Network) -> str:
        choices = ", ".join(
            f"{label}={choice_of(network.architecture, label)}" for label in network.architecture
        )
        reached = mean_and_std(network.validation_mean, network.validation_std)
        return (
            f"{network.name}: validation {self.metric} {reached}, {network.exported_parameters:,} parameters, "
            f"{network.exported_flops:,} FLOPs\n{choices}"
        )

    def _stability(self) -> Section:
        chosen = self.choice.network
        compared = {f"{chosen.name} (chosen)": chosen}
        largest = max(self.networks, key=lambda network: network.exported_parameters)
        if largest is not chosen:
            compared[f"{largest.name} (largest)"] = largest
        random = next((each for network in self.networks for each in network.baseline), None)
        if random is not None:
            compared[f"{random.name} (random)"] = random
        found = [each for network in self.networks for each in (network, *network.baseline)]
        kept = {each.name: self._kept(each) for each in found}
        lines = [
            "The index is the mean normalised area under the curves: 1 is no loss, 0 is guessing as soon as anything "
            "is disturbed. The calibration error is the expected difference between confidence and accuracy. Seeds "
            "disagree on the share of examples for which two trainings of a network predict different classes."
        ]
        if not any(kept.values()):
            lines = [f"Nothing was measured (stability: {self.plan.settings.stability})."]
        test = self._test_stability()
        if test is not None:
            index = "not known, it is no better than guessing" if test.index is None else f"{test.index:.4f}"
            lines.append(
                f"On {test.examples} examples of the test part the index of the exported network is {index}."
            )
        left_out = {record.left_out for records in kept.values() for record in records if record.left_out}
        lines += [f"Left out: {words}." for words in sorted(left_out)]
        rows = [
            (
                each.name,
                mean_and_std(each.stability_mean, each.stability_std),
                _mean(record.calibration_error for record in kept[each.name]),
                disagreement([record.predictions for record in kept[each.name]]),
                len(kept[each.name]),
                kept[each.name][0].examples,
            )
            for each in found
            if kept[each.name]
        ]
        long = [
            (each.name, run.seed, curve.name, curve.unit, strength, value)
            for each in found
            for run, record in zip((run for run in each.runs if run.stability is not None), kept[each.name])
            for curve in record.curves
            for strength, value in zip(curve.strengths, curve.values)
        ]
        titles = ("network", "index", "calibration error", "seeds disagree", "seeds", "examples")
        of_values = ("network", "seed", "disturbance", "unit", "strength", f"validation_{self.metric}")
        picture = Picture(
            "stability",
            lambda: draw_stability({name: kept[network.name] for name, network in compared.items()}),
            "The metric under disturbances of growing strength, mean over the seeds.",
        )
        return Section(
            "Stability of the networks",
            lines,
            pictures=[picture],
            tables=[Table("stability", of_values, long, (titles, rows))],
        )

    def _test_stability(self) -> Stability | None:
        try:
            return None if self.export is None else read_stability(self.export / STABILITY)
        except UsageError as error:
            logger.warning("%s", error)
            return None

    def _searches(self) -> Section:
        chosen = canonical(self.choice.network.architecture)
        shown = next(
            (trial for _, _, trial in self.searches if canonical(trial.report.architecture) == chosen), None
        )
        pictures = []
        if shown is not None:
            history = self._history[shown.id]
            words = (
                "The probabilities of all candidates of the search that found the network, epoch by epoch."
            )
            found = shown.report.architecture
            if history.probabilities:
                pictures.append(Picture("probabilities", lambda: draw_probabilities(history, found), words))
            words = "The state of the same search, epoch by epoch."
            pictures.append(Picture("search", lambda: draw_search(history, self.metric), words))
        names = {canonical(each.architecture): each.name for each in self.networks}
        rows = [
            (
                trial.id,
                task.seed,
                ", ".join(f"{name}={value}" for name, value in combination.items()) or "–",
                number(trial.report.default),
                f"{trial.report.parameters:,}",
                f"{trial.report.flops:,}",
                names.get(canonical(trial.report.architecture), "not trained yet"),
            )
            for combination, task, trial in self.searches
        ]
        titles = (
            "trial",
            "seed",
            "setting",
            f"validation {self.metric} of the mixture",
            "parameters",
            "FLOPs",
            "found",
        )
        long = [
            (trial, label, candidate, epoch, value)
            for trial, history in self._history.items()
            for label, candidates in history.probabilities.items()
            for candidate, values in candidates.items()
            for epoch, value in enumerate(values, start=1)
        ]
        curves = [
            (trial, name, epoch, value)
            for trial, history in self._history.items()
            for name, values in history.curves.items()
            for epoch, value in enumerate(values, start=1)
        ]
        return Section(
            "The searches",
            pictures=pictures,
            tables=[
                Table("searches", titles, rows),
                Table(
                    "probabilities", ("trial", "label", "candidate", "epoch", "probability"), long, ((), ())
                ),
                Table("search_curves", ("trial", "name", "epoch", "value"), curves, ((), ())),
            ],
        )

    @cached_property
    def _groups(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The settings that were varied, and the networks that their searches found, one a seed."""
        groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for combination, _, trial in self.searches:
            _, found = groups.setdefault(canonical(combination), (combination, []))
            found.append(trial.report.architecture)
        return list(groups.values())

    def _agreement(self) -> Section:
        trained = [each for network in self.networks for each in (network, *network.baseline)]
        results = {each.runs[0].trial_id: (each.architecture, each.validation_mean) for each in trained}
        counts = {label: count for label, (_, count) in self._candidates.items()}
        rows = agreements([found for _, found in self._groups], counts, list(results.values()))
        titles = (
            "label", "candidates", "chosen by the searches", "agreement", "above chance (kappa, 1/K)", "Fleiss' kappa",
            "entropy in nats", "chance agrees as much", "importance", "verdict",
        )  # fmt: skip
        table = Table("agreement", titles, [_label_row(row) for row in rows])
        lines = [
            f"{len(self.searches)} searches under {len(self._groups)} settings. Two searches are compared if they "
            "differ in the seed alone. A choice is determined by the data if seeds agree more often than chance "
            "would in 95 % of cases; it is arbitrary if they agree no more often than chance.",
            f"Importance is the share of the spread of validation {self.metric} over {len(results)} trained networks "
            "that a label explains (epsilon squared); it takes more networks than candidates. Networks that searches "
            "found are much alike: random_baseline adds others.",
        ]
        picture = Picture(
            "agreement",
            lambda: draw_agreement(rows, self.metric),
            "Per choice: how often two seeds agree, and how much of the spread of results it explains.",
        )
        return Section(
            "Stability of the search", lines, pictures=[picture], tables=[table, self._settings_table(rows)]
        )

    def _settings_table(self, rows: Sequence[LabelAgreement]) -> Table:
        """What each setting of `searchSpace` led to."""
        by_network = {canonical(each.architecture): each for each in self.networks}
        counts = {row.label: row.candidates for row in rows}
        lines = []
        for combination, found in self._groups:
            trained = [each for one in found if (each := by_network.get(canonical(one)))]
            of_group = [row.agreement for row in agreements([found], counts, []) if row.agreement is not None]
            lines.append((
                ", ".join(f"{name}={value}" for name, value in combination.items()) or "all alike",
                len(found),
                len({canonical(one) for one in found}),
                _spread(each.validation_mean for each in trained),
                _spread((each.price(self.priced) for each in trained), "{:,.0f}" if self.is_whole else "{:.4g}"),
                _mean(of_group),
            ))  # fmt: skip
        titles = (
            "setting", "searches", "distinct networks", f"validation {self.metric} of their networks",
            COSTS[self.priced], "agreement, mean over the labels",
        )  # fmt: skip
        return Table("settings", titles, lines)

    @cached_property
    def _experiment(self) -> str:
        """The experiment as a file that starts it again."""
        service = self.params.get("trainingService") or {}
        names = (
            "experimentName",
            "searchSpace",
            "trialConcurrency",
            "maxTrialNumber",
            "maxExperimentDuration",
        )
        text = {name: self.params[name] for name in names if self.params.get(name) is not None}
        text["trialCommand"] = service.get("trialCommand") or self.params.get("trialCommand")
        # Where the space lies; the person who reads this may have it elsewhere.
        text["trialCodeDirectory"] = "."
        text["tuner"] = self.params["tuner"]
        text["trainingService"] = {"platform": "local"}
        return yaml.safe_dump(text, sort_keys=False)

    def _reproduction(self) -> Section:
        settings, defaults = self.plan.settings.flat(), ExperimentSettings().flat()
        rows = [(name, json.dumps(value), json.dumps(defaults[name])) for name, value in settings.items()]
        differing = [row for row in rows if row[1] != row[2]]
        ends = [trial.end for trial in self.trials if trial.end]
        starts = [trial.start for trial in self.trials if trial.start]
        lines = [f"Seeds: of searches and trainings from {self.plan.settings.seed} upwards."]
        if starts and ends:
            busy = sum(t.end - t.start for t in self.trials if t.end and t.start)
            day = datetime.fromtimestamp(min(starts), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
            lines.append(
                f"Started {day}; {_minutes(max(ends) - min(starts))} from the first trial to the last, "
                f"{_minutes(busy)} of all trials together."
            )
        installed = ", ".join(
            f"{name} {version(name)}"
            for name in ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")
        )
        lines.append(
            f"nni_gumbel {__version__}, {installed}, Python {platform.python_version()}, {platform.platform()}."
        )
        lines.append("With experiment.yml, which lies beside this page, in the folder of the space:")
        code = (
            "nni-gumbel register\nnnictl create --config experiment.yml\nnni-gumbel wait\n\n"
            + self._experiment
        )
        trials = [
            (
                trial.sequence,
                trial.id,
                trial.stage,
                (trial.parameters or {}).get("seed"),
                trial.state,
                (trial.result or {}).get("default"),
                None if not (trial.start and trial.end) else round(trial.end - trial.start, 1),
            )
            for trial in sorted(self.trials, key=lambda trial: trial.sequence)
        ]
        return Section(
            "How to make it again",
            lines,
            code=code,
            tables=[
                Table(
                    "all_settings",
                    ("setting", "value", "default"),
                    rows,
                    (("setting", "value", "default"), differing),
                ),
                Table(
                    "trials",
                    ("number", "trial", "stage", "seed", "state", f"{self.metric}", "seconds"),
                    trials,
                ),
            ],
        )


def _outcomes(variable: Any) -> int:
    """How many outcomes a random variable of NNI has: its candidates, or the subsets of them."""
    count = len(variable.values)
    if not hasattr(variable, "n_chosen"):
        return count
    return 2**count - 1 if variable.n_chosen is None else math.comb(count, variable.n_chosen)


def _label_row(row: LabelAgreement) -> tuple[Any, ...]:
    chosen = ", ".join(f"{name} ×{count}" for name, count in row.chosen)
    return (
        row.label, row.candidates, chosen, row.agreement, row.free_kappa, row.fleiss_kappa, row.entropy, row.p_value,
        row.importance, row.verdict,
    )  # fmt: skip


def _history_of(name: str, events: Path) -> SearchHistory:
    """What a search wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list[float]] = {}
    probabilities: dict[str, dict[str, list[float]]] = {}
    if events.is_dir():
        found = EventAccumulator(str(events), size_guidance={"scalars": 0})
        found.Reload()
        for tag in found.Tags()["scalars"]:
            values = [event.value for event in found.Scalars(tag)]
            kind, _, rest = tag.partition("/")
            if kind == "probability":
                # A label may hold slashes, the word of a candidate not.
                label, _, candidate = rest.rpartition("/")
                probabilities.setdefault(label, {})[candidate] = values
            else:
                curves[tag] = values
    return SearchHistory(name, curves, probabilities)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _spread(values: Any, form: str = "{:.4f}") -> str:
    known = list(values)
    if not known:
        return "–"
    mean = form.format(fmean(known))
    return f"{mean} ± {form.format(stdev(known))}" if len(known) > 1 else mean


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"

"""The report of an experiment: what it found, how stable that is, and how it came about, as one page.

Each section is a function of the records (:mod:`~nni_gumbel.pipeline.records`). Of an experiment that runs, it tells
what there is.
"""

from __future__ import annotations

import json
import logging
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nni_gumbel import __version__
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.remote import bring
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, REPORT_FOLDER, TENSORBOARD
from nni_gumbel.results.agreement import (
    LabelAgreement,
    agreements,
    choice_of,
    disagreement,
    pairwise_agreement,
)
from nni_gumbel.results.choice import Network
from nni_gumbel.results.front import COSTS, COUNTS, front, front_figure
from nni_gumbel.results.page import Picture, Section, Table, write_page
from nni_gumbel.results.pictures import (
    draw_agreement,
    draw_probabilities,
    draw_search,
    draw_stability,
)
from nni_gumbel.results.report import decision_table, mean_and_std, network_table, number
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import FILE as STABILITY

_logger = logging.getLogger(__name__)


def report(experiment: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """Write the report of an experiment that runs, was stopped or failed.

    Args:
        experiment: its id or its folder; the newest one if omitted.
        folder: see :func:`write_report`; ``gumbel-report/<its id>`` in the working directory if omitted.

    Raises:
        UsageError: there is no such experiment, or see :func:`write_report`.
    """
    records = Records.of(experiment)
    elsewhere = bring(records, records.trainings, STABILITY)
    elsewhere |= bring(records, records.trainings_of(records.choice.run), BUNDLE)
    elsewhere |= bring(records, [trial for _, _, trial in records.searches], TENSORBOARD)
    for where in elsewhere.values():
        _logger.warning("the report does without %s", where)
    folder = Path(folder or Path(REPORT_FOLDER) / records.id).expanduser().absolute()
    with records.in_code_directory():
        return write_report(records, folder)


def write_report(records: Records, folder: str | Path) -> Path:
    """Write the report of an experiment, in whose trial code directory this process works.

    Args:
        records: of the experiment.
        folder: of ``report.html`` and of its pictures and tables; it is made.

    Returns:
        The page.

    Raises:
        UsageError: no training has finished, or the folder cannot be written.
    """
    parts = (_network, _front, _stability, _searches, _agreement, _reproduction)
    title = f"{records.profile['params'].get('experimentName') or 'Experiment'} ({records.id})"
    return write_page(
        folder, title, [part(records) for part in parts], {"experiment.yml": records.experiment}
    )


def _network(records: Records) -> Section:
    chosen, run = records.choice.network, records.choice.run
    state = "exported" if records.export is not None else "best so far: the experiment has not ended"
    test = "" if chosen.test_mean is None else f"; test {mean_and_std(chosen.test_mean, chosen.test_std)}"
    lines = [
        f"{chosen.name} ({state}): validation {records.metric} "
        f"{mean_and_std(chosen.validation_mean, chosen.validation_std)}{test}; "
        f"{chosen.exported_parameters:,} parameters, {chosen.exported_flops:,} FLOPs; weights of seed {run.seed} "
        f"(trial {run.trial_id}).",
        records.choice.reason,
    ]
    rows = []
    for label, (words, _) in records.candidates.items():
        choice = choice_of(chosen.architecture, label)
        rows.append((label, choice, " · ".join(word for word in words if word not in choice.split("+"))))
    picture = Picture(
        "network",
        lambda: _drawn_network(records),
        "The network, from input to output; in grey what was not chosen. FLOPs are multiply-adds of one example.",
    )
    choices = Table("choices", ("label", "chosen", "not chosen"), rows)
    return Section("The network", lines, pictures=[picture], tables=[choices])


def _drawn_network(records: Records) -> Any:
    from safetensors.torch import load_file

    from nni_gumbel.complexity.flops import flops_of_call, is_counted
    from nni_gumbel.results.bundle import FACTS, PROBE
    from nni_gumbel.results.diagram import draw_network, steps_of
    from nni_gumbel.results.example import Example

    def flops(module: Any, args: Any, kwargs: Any, output: Any) -> int:
        return flops_of_call(module, args, kwargs, output) if is_counted(module) else 0

    bundle, network = records.outputs / records.choice.run.trial_id / BUNDLE, records.choice.network
    described = json.loads((bundle / FACTS).read_text(encoding="utf-8"))["inputs"]
    example = Example.from_tensors(described, load_file(bundle / PROBE))
    steps = steps_of(records.command.reference.build(), network.architecture, example, flops)
    return draw_network(steps, f"What does {network.name} compute?")


def _front(records: Records) -> Section:
    mode, chosen = records.plan.settings.optimize_mode, records.choice.network
    picture = Picture(
        "front",
        lambda: front_figure(records.networks, chosen, records.metric, mode, records.priced),
        "Every network that was trained, by what the experiment prices. Point at one to see its choices.",
        {each.name: _tip(records, each) for each in records.trained},
    )
    best = front(records.networks, mode, records.priced)
    shown = [
        # The choices, which are long, have a table of their own.
        (name, *rest, on_front)
        for (name, _, *rest), on_front in zip(
            network_table(records.networks, records.metric, chosen),
            ("on the front", *("yes" if network in best else "no" for network in records.networks)),
        )
    ]
    lines = "\n".join(f"nni-gumbel export {records.id} --network {network.name}" for network in best)
    all_rows = [
        (
            each.name, each.parameters, each.flops, each.exported_parameters, each.exported_flops, each.latency_ms,
            each.own_cost, run.seed, run.trial_id, run.validation, run.test, run.stability,
            json.dumps(each.architecture),
        )
        for each in records.trained
        for run in each.runs
    ]  # fmt: skip
    of_runs = (
        "network", "parameters", "flops", "exported_parameters", "exported_flops", "latency_ms", "own_cost", "seed",
        "trial", f"validation_{records.metric}", f"test_{records.metric}", "stability", "architecture",
    )  # fmt: skip
    decided, *decisions = decision_table(records.choice, records.metric)
    choices = [
        (label, *(choice_of(each.architecture, label) for each in records.networks))
        for label in records.candidates
    ]
    return Section(
        "The front",
        ["Another trade-off between the metric and the cost is exported by its own line, below the picture."],
        pictures=[picture],
        code=lines,
        tables=[
            Table("networks", of_runs, all_rows, (shown[0], shown[1:])),
            Table("decision", decided, decisions),
            Table("choices_of_networks", ("label", *(each.name for each in records.networks)), choices),
        ],
    )


def _tip(records: Records, network: Network) -> str:
    choices = ", ".join(f"{label}={choice_of(network.architecture, label)}" for label in network.architecture)
    reached = mean_and_std(network.validation_mean, network.validation_std)
    return (
        f"{network.name}: validation {records.metric} {reached}, {network.exported_parameters:,} parameters, "
        f"{network.exported_flops:,} FLOPs\n{choices}"
    )


def _stability(records: Records) -> Section:
    chosen = records.choice.network
    compared = {f"{chosen.name} (chosen)": chosen}
    largest = max(records.networks, key=lambda network: network.exported_parameters)
    if largest is not chosen:
        compared[f"{largest.name} (largest)"] = largest
    random = next((each for network in records.networks for each in network.baseline), None)
    if random is not None:
        compared[f"{random.name} (random)"] = random
    kept = {
        each.name: [records.stability[run.trial_id] for run in each.runs if run.stability is not None]
        for each in records.trained
    }
    lines = [
        "The index is the mean normalised area under the curves: 1 is no loss, 0 is guessing as soon as anything "
        "is disturbed. The calibration error is the expected difference between confidence and accuracy. Seeds "
        "disagree on the share of examples for which two trainings of a network predict different classes."
    ]
    if not any(kept.values()):
        lines = [f"Nothing was measured (stability: {records.plan.settings.stability})."]
    test = records.test_stability
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
        for each in records.trained
        if kept[each.name]
    ]
    long = [
        (each.name, run.seed, curve.name, curve.unit, strength, value)
        for each in records.trained
        for run, record in zip((run for run in each.runs if run.stability is not None), kept[each.name])
        for curve in record.curves
        for strength, value in zip(curve.strengths, curve.values)
    ]
    titles = ("network", "index", "calibration error", "seeds disagree", "seeds", "examples")
    of_values = ("network", "seed", "disturbance", "unit", "strength", f"validation_{records.metric}")
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


def _searches(records: Records) -> Section:
    chosen = canonical(records.choice.network.architecture)
    shown = next(
        (trial for _, _, trial in records.searches if canonical(trial.report.architecture) == chosen), None
    )
    pictures = []
    if shown is not None:
        history = records.history[shown.id]
        words = "The probabilities of all candidates of the search that found the network, epoch by epoch."
        found = shown.report.architecture
        if history.probabilities:
            pictures.append(Picture("probabilities", lambda: draw_probabilities(history, found), words))
        words = "The state of the same search, epoch by epoch."
        pictures.append(Picture("search", lambda: draw_search(history, records.metric), words))
    names = {canonical(each.architecture): each.name for each in records.networks}
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
        for combination, task, trial in records.searches
    ]
    titles = (
        "trial",
        "seed",
        "setting",
        f"validation {records.metric} of the mixture",
        "parameters",
        "FLOPs",
        "found",
    )
    long = [
        (trial, label, candidate, epoch, value)
        for trial, history in records.history.items()
        for label, candidates in history.probabilities.items()
        for candidate, values in candidates.items()
        for epoch, value in enumerate(values, start=1)
    ]
    curves = [
        (trial, name, epoch, value)
        for trial, history in records.history.items()
        for name, values in history.curves.items()
        for epoch, value in enumerate(values, start=1)
    ]
    return Section(
        "The searches",
        pictures=pictures,
        tables=[
            Table("searches", titles, rows),
            Table("probabilities", ("trial", "label", "candidate", "epoch", "probability"), long, ((), ())),
            Table("search_curves", ("trial", "name", "epoch", "value"), curves, ((), ())),
        ],
    )


def _agreement(records: Records) -> Section:
    results = {each.runs[0].trial_id: (each.architecture, each.validation_mean) for each in records.trained}
    counts = {label: count for label, (_, count) in records.candidates.items()}
    rows = agreements([found for _, found in records.groups], counts, list(results.values()))
    titles = (
        "label", "candidates", "chosen by the searches", "agreement", "above chance (kappa, 1/K)", "Fleiss' kappa",
        "entropy in nats", "chance agrees as much", "importance", "verdict",
    )  # fmt: skip
    table = Table("agreement", titles, [_label_row(row) for row in rows])
    lines = [
        f"{len(records.searches)} searches under {len(records.groups)} settings. Two searches are compared if they "
        "differ in the seed alone. A choice is determined by the data if seeds agree more often than chance "
        "would in 95 % of cases; it is arbitrary if they agree no more often than chance.",
        f"Importance is the share of the spread of validation {records.metric} over {len(results)} trained networks "
        "that a label explains (epsilon squared); it takes more networks than candidates. Networks that searches "
        "found are much alike: random_baseline adds others.",
    ]
    picture = Picture(
        "agreement",
        lambda: draw_agreement(rows, records.metric),
        "Per choice: how often two seeds agree, and how much of the spread of results it explains.",
    )
    return Section(
        "Stability of the search", lines, pictures=[picture], tables=[table, _settings_table(records)]
    )


def _settings_table(records: Records) -> Table:
    """What each setting of `searchSpace` led to."""
    by_network = {canonical(each.architecture): each for each in records.networks}
    form = "{:,.0f}" if records.priced in COUNTS else "{:.4g}"
    lines = []
    for combination, found in records.groups:
        trained = [each for one in found if (each := by_network.get(canonical(one)))]
        of_group = [
            pairwise_agreement([[choice_of(one, label) for one in found]]) for label in records.candidates
        ]
        lines.append((
            ", ".join(f"{name}={value}" for name, value in combination.items()) or "all alike",
            len(found),
            len({canonical(one) for one in found}),
            _spread(each.validation_mean for each in trained),
            _spread((each.price(records.priced) for each in trained), form),
            _mean(of_group),
        ))  # fmt: skip
    titles = (
        "setting", "searches", "distinct networks", f"validation {records.metric} of their networks",
        COSTS[records.priced], "agreement, mean over the labels",
    )  # fmt: skip
    return Table("settings", titles, lines)


def _reproduction(records: Records) -> Section:
    settings, defaults = records.plan.settings.flat(), ExperimentSettings().flat()
    rows = [(name, json.dumps(value), json.dumps(defaults[name])) for name, value in settings.items()]
    differing = [row for row in rows if row[1] != row[2]]
    ends = [trial.end for trial in records.trials if trial.end]
    starts = [trial.start for trial in records.trials if trial.start]
    lines = [f"Seeds: of searches and trainings from {records.plan.settings.seed} upwards."]
    if starts and ends:
        busy = sum(t.end - t.start for t in records.trials if t.end and t.start)
        day = datetime.fromtimestamp(min(starts), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        lines.append(
            f"Started {day}; {_minutes(max(ends) - min(starts))} from the first trial to the last, "
            f"{_minutes(busy)} of all trials together."
        )
    installed = ", ".join(
        f"{name} {version(name)}" for name in ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")
    )
    lines.append(
        f"nni_gumbel {__version__}, {installed}, Python {platform.python_version()}, {platform.platform()}."
    )
    lines.append("With experiment.yml, which lies beside this page, in the folder of the space:")
    code = (
        "nni-gumbel register\nnni-gumbel create --config experiment.yml\nnni-gumbel wait\n\n"
        + records.experiment
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
        for trial in sorted(records.trials, key=lambda trial: trial.sequence)
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
                ("number", "trial", "stage", "seed", "state", f"{records.metric}", "seconds"),
                trials,
            ),
        ],
    )


def _label_row(row: LabelAgreement) -> tuple[Any, ...]:
    chosen = ", ".join(f"{name} ×{count}" for name, count in row.chosen)
    return (
        row.label, row.candidates, chosen, row.agreement, row.free_kappa, row.fleiss_kappa, row.entropy, row.p_value,
        row.importance, row.verdict,
    )  # fmt: skip


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

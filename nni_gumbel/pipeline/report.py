"""The report of an experiment: what it found, how stable that is, and how it came about, as one page.

Each section is a function of the records (:mod:`~nni_gumbel.pipeline.records`). Of an experiment that runs, it tells
what there is.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nni_gumbel import __version__
from nni_gumbel.pipeline.plan import finished
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.remote import bring, bring_stability
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import BUNDLE, REPORT_FOLDER, TENSORBOARD
from nni_gumbel.results.agreement import (
    Sampled,
    agreements,
    choice_of,
    disagreement,
    importance,
    pairwise_agreement,
)
from nni_gumbel.results.choice import Network
from nni_gumbel.results.front import COSTS, COUNTS, front_figure
from nni_gumbel.results.neighbours import Neighbours
from nni_gumbel.results.page import Picture, Section, Table, write_page
from nni_gumbel.results.pictures import (
    draw_agreement,
    draw_importance,
    draw_neighbours,
    draw_probabilities,
    draw_search,
    draw_stability,
)
from nni_gumbel.results.report import count, decision_table, mean_and_std, network_table, number
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import Stability

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
    for line in bring_stability(records):
        _logger.warning("%s", line)
    searches = [trial for _, _, trial in records.searches]
    exports = [trial for trial in records.trials if trial is finished(records.trials)]
    for trials, names in (
        (records.trainings_of(records.choice.run), (BUNDLE,)),
        (searches, (TENSORBOARD, Sampled.FILE)),
        (exports, (Stability.FILE, Neighbours.FILE)),
    ):
        for name in names:
            for where in bring(records, trials, name).values():
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
    parts = (_network, _front, _stability, _neighbours, _searches, _agreement, _importance, _reproduction)
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
        f"{chosen.exported_parameters:,} parameters, {count(chosen.exported_flops)} FLOPs; weights of seed {run.seed} "
        f"(trial {run.trial_id}).",
        records.choice.reason,
    ]
    warned = [trial for trial in records.trials if trial.report is not None and trial.report.warning]
    lines += [
        f"Warning: trial {trial.id} comes without something: {trial.report.warning}." for trial in warned
    ]
    rows = []
    for label, (words, _) in records.candidates.items():
        choice = choice_of(chosen.architecture, label)
        rows.append((label, choice, " · ".join(each for each in words if each not in choice.split("+"))))
    picture = Picture(
        "network",
        lambda: _drawn_network(records),
        "The network, from input to output; in grey what was not chosen. FLOPs are multiply-adds of one example.",
    )
    choices = Table("choices", ("label", "chosen", "not chosen"), rows)
    return Section("The network", lines, pictures=[picture], tables=[choices])


def _drawn_network(records: Records) -> Any:
    from nni_gumbel.complexity.flops import flops_of_call, is_counted
    from nni_gumbel.results.bundle import load_with_example
    from nni_gumbel.results.diagram import draw_network, steps_of

    def flops(module: Any, args: Any, kwargs: Any, output: Any) -> int:
        return flops_of_call(module, args, kwargs, output) if is_counted(module) else 0

    network, space = records.choice.network, records.command.reference.build()
    _, example = load_with_example(records.outputs / records.choice.run.trial_id / BUNDLE, space)
    steps = steps_of(space, network.architecture, example, flops)
    return draw_network(steps, f"What does {network.name} compute?")


def _front(records: Records) -> Section:
    front = records.front
    picture = Picture(
        "front",
        lambda: front_figure(front),
        "Every network that was trained, by what the experiment prices. Point at one to see its choices.",
        {each.name: _tip(records, each) for each in records.trained},
    )
    # The choices, which are long, have a table of their own.
    (name, _, *titles), *rows = network_table(records.networks, records.metric, front.chosen)
    on_front = ["yes" if network in front.best else "no" for network in records.networks]
    shown = [(name, *row, word) for (name, _, *row), word in zip(rows, on_front)]
    lines = "\n".join(f"nni-gumbel export {records.id} --network {network.name}" for network in front.best)
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
            Table("networks", of_runs, all_rows, ((name, *titles, "on the front"), shown)),
            Table("decision", decided, decisions),
            Table("choices_of_networks", ("label", *(each.name for each in records.networks)), choices),
        ],
    )


def _tip(records: Records, network: Network) -> str:
    choices = _words({label: choice_of(network.architecture, label) for label in network.architecture})
    reached = mean_and_std(network.validation_mean, network.validation_std)
    return (
        f"{network.name}: validation {records.metric} {reached}, {network.exported_parameters:,} parameters, "
        f"{count(network.exported_flops)} FLOPs\n{choices}"
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
            _words(combination) or "–",
            number(trial.report.default),
            f"{trial.report.parameters:,}",
            f"{trial.report.flops:,}",
            names.get(canonical(trial.report.architecture), "not trained yet"),
        )
        for combination, task, trial in records.searches
    ]
    of_mixture = f"validation {records.metric} of the mixture"
    titles = ("trial", "seed", "setting", of_mixture, "parameters", "FLOPs", "found")
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
    counts = {label: count for label, (_, count) in records.candidates.items()}
    rows = agreements([found for _, found in records.groups], counts)
    titles = (
        "label", "candidates", "chosen by the searches", "agreement", "Fleiss' kappa", "entropy in nats",
        "chance agrees as much", "verdict",
    )  # fmt: skip
    table = Table("agreement", titles, [
        (
            row.label, row.candidates, ", ".join(f"{name} ×{count}" for name, count in row.chosen), row.agreement,
            row.fleiss_kappa, row.entropy, row.p_value, row.verdict,
        )
        for row in rows
    ])  # fmt: skip
    lines = [
        f"{len(records.searches)} searches under {len(records.groups)} settings. Two searches are compared if they "
        "differ in the seed alone. A choice is determined by the data if seeds agree more often than chance "
        "would in 95 % of cases; it is arbitrary if they agree no more often than chance.",
    ]
    picture = Picture("agreement", lambda: draw_agreement(rows), "Per choice: how often two seeds agree.")
    return Section("Stability of the search", lines, [picture], tables=[table, _settings_table(records)])


def _importance(records: Records) -> Section:
    # Networks of equal size share their random ones.
    trained = {each.runs[0].trial_id: (each.architecture, each.validation_mean) for each in records.trained}
    kinds = {"trained": list(trained.values()), "sampled from the supernet": records.sampled}
    kinds = {f"{len(networks)} networks {kind}": networks for kind, networks in kinds.items() if networks}
    shares = {
        kind: {
            label: importance([(choice_of(one, label), value) for one, value in networks]) for label in labels
        }
        for labels in [list(records.candidates)]
        for kind, networks in kinds.items()
    }
    lines = [
        f"The importance of a choice is the share of the spread of results that it alone explains (epsilon squared): "
        f"of validation {records.metric} over the networks trained, and of what networks reach with the weights of a "
        "supernet, without trainings of their own. It takes more networks than candidates. Networks that searches "
        "found are much alike: random_baseline adds others. Sampled networks are those that a search has judged; one "
        "without stages judges 64 random ones half-way."
    ]
    rows = [(label, *(by_label[label] for by_label in shares.values())) for label in records.candidates]
    rows.sort(key=lambda row: -max((share for share in row[1:] if share is not None), default=-1))
    ordered = {kind: {label: by_label[label] for label, *_ in rows} for kind, by_label in shares.items()}
    words = "Per choice: how much of the spread of results it explains. White: sampled networks."
    picture = Picture("importance", lambda: draw_importance(ordered), words)
    table = Table("importance", ("label", *shares), rows)
    return Section("Importance of the choices", lines, [picture], tables=[table])


def _neighbours(records: Records) -> Section:
    title, found = "Neighbours of the network", records.neighbours
    if found is None:
        return Section(
            title, ["The export at the end of an experiment measures them, unless stability is none."]
        )
    sign = 1 if records.plan.settings.optimize_mode == "maximize" else -1
    error, known = records.choice.standard_error, [each for each in found.found if each.value is not None]
    near = [each for each in known if sign * (found.value - each.value) <= error]
    how = (
        "each trained from scratch with one seed"
        if found.retrained
        else "with its trained weights where they fit"
    )
    lines = [
        f"Networks that differ from {found.name} in a single choice, {how}; on {found.examples} examples of the "
        f"validation part, where {found.name} itself reaches {number(found.value)}."
    ]
    if known:
        by_label: dict[str, list[float]] = {}
        for each in known:
            by_label.setdefault(each.label, []).append(sign * (found.value - each.value))
        steepest = max(by_label, key=lambda label: fmean(by_label[label]))
        lines.append(
            f"{len(near)} of {len(known)} are no further than one standard error ({error:.2g}) below it: the more, the "
            f"flatter the structure lies. The choice that matters most here is {steepest}: its other candidates lose "
            f"{fmean(by_label[steepest]):.2g} on average."
        )
    if left := len(found.found) - len(known):
        lines.append(f"{left} more need weights that the network does not have; stability: full trains them.")
    tips = {str(each): f"{each}: {number(each.value)}" for each in known}
    words = "Every neighbour that was measured; point at one to see its choice."
    picture = Picture("neighbours", lambda: draw_neighbours(found, records.metric, error), words, tips)
    rows = [
        (
            each.label,
            each.choice,
            each.parameters,
            each.value,
            None if each.value is None else each.value - found.value,
        )
        for each in found.found
    ]
    titles = ("label", "choice", "parameters", f"validation {records.metric}", "difference")
    measured = [row for row in rows if row[-1] is not None]
    return Section(title, lines, [picture], tables=[Table("neighbours", titles, rows, (titles, measured))])


def _settings_table(records: Records) -> Table:
    """What each setting of `searchSpace` led to."""
    by_network = {canonical(each.architecture): each for each in records.networks}
    form = "{:,.0f}" if records.priced in COUNTS else "{:.4g}"
    lines = []
    for combination, found in records.groups:
        trained = [each for one in found if (each := by_network.get(canonical(one)))]
        kept = [records.stability.get(each.runs[0].trial_id) for each in trained]
        of_group = [
            pairwise_agreement([[choice_of(one, label) for one in found]]) for label in records.candidates
        ]
        lines.append((
            _words(combination) or "all alike",
            len(found),
            len({canonical(one) for one in found}),
            spread_of(each.validation_mean for each in trained),
            spread_of((each.price(records.priced) for each in trained), form),
            _mean(of_group),
            disagreement([each.predictions for each in kept if each is not None]),
        ))  # fmt: skip
    titles = (
        "setting", "searches", "distinct networks", f"validation {records.metric} of their networks",
        COSTS[records.priced], "agreement, mean over the labels", "predictions of its networks disagree",
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
            f"Started {day}; {minutes(max(ends) - min(starts))} from the first trial to the last, "
            f"{minutes(busy)} of all trials together."
        )
    installed = [
        f"{name} {version(name)}" for name in ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")
    ]
    host = f"Python {platform.python_version()}, {platform.platform()}"
    lines += [
        f"nni_gumbel {__version__}, {', '.join(installed)}, {host}.",
        "With experiment.yml, which lies beside this page, in the folder of the space:",
    ]
    commands = "nni-gumbel register\nnni-gumbel create --config experiment.yml\nnni-gumbel wait"
    code = f"{commands}\n\n{records.experiment}"
    titles = ("setting", "value", "default")
    trials = records.table.reset_index().astype(object)
    trials = trials.where(trials.notna(), None)
    few = ["sequence", "trial", "stage", "seed", "state", f"validation_{records.metric}", "seconds"]
    tables = [
        Table("all_settings", titles, rows, (titles, differing)),
        Table("trials", list(trials), trials.values.tolist(), (few, trials[few].values.tolist())),
    ]
    return Section("How to make it again", lines, code=code, tables=tables)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def spread_of(values: Iterable[float], form: str = "{:.4f}") -> str:
    """Mean and standard deviation of some values; a dash if there are none."""
    known = list(values)
    if not known:
        return "–"
    mean = form.format(fmean(known))
    return f"{mean} ± {form.format(stdev(known))}" if len(known) > 1 else mean


def minutes(seconds: float) -> str:
    """A duration, as ``3:07 min``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"

"""``nni-gumbel compare``: experiments side by side, as one page - what was set, what was found, how long it took."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.remote import bring_stability
from nni_gumbel.pipeline.report import minutes, spread_of
from nni_gumbel.pipeline.task import REPORT_FOLDER
from nni_gumbel.results.front import COSTS, fronts_figure
from nni_gumbel.results.page import Picture, Section, Table, write_page
from nni_gumbel.results.report import network_table

_logger = logging.getLogger(__name__)


def compare(experiments: Sequence[str | Path], folder: str | Path | None = None) -> Path:
    """Compare experiments that run, were stopped, failed or ended.

    Args:
        experiments: their ids or folders, at least two.
        folder: see :func:`write_comparison`; ``gumbel-report/<id>-<id>`` in the working directory if omitted.

    Raises:
        UsageError: there are too few or the same twice, or see :func:`write_comparison`.
    """
    found = [Records.of(each) for each in experiments]
    ids = [records.id for records in found]
    if len({*ids}) < max(len(ids), 2):
        raise UsageError(f"ID: {' '.join(ids)} are not several experiments; give two different ids or more")
    for records in found:
        for line in bring_stability(records):
            _logger.warning("%s: %s", records.id, line)
    return write_comparison(
        found, Path(folder or Path(REPORT_FOLDER) / "-".join(ids)).expanduser().absolute()
    )


def write_comparison(found: Sequence[Records], folder: Path) -> Path:
    """Write the page that compares experiments.

    Args:
        found: the records of each.
        folder: of the page, its pictures and tables; it is made.

    Returns:
        The page.

    Raises:
        UsageError: one of them has no finished training, or the folder cannot be written.
    """
    parts = (_networks, _settings, _time)
    return write_page(
        folder,
        f"Experiments {', '.join(records.front.name for records in found)}",
        [part(found) for part in parts],
        {},
    )


def _networks(found: Sequence[Records]) -> Section:
    fronts, lines, pictures = [records.front for records in found], [], []
    judged = {f"{front.metric} ({front.optimize_mode})" for front in fronts}
    if len({front.priced for front in fronts}) > 1:
        fronts = [replace(front, priced="params") for front in fronts]
    if len({records.command.data for records in found}) > 1:
        lines.append("Their data are not the same: the results of one say little about the other's.")
    if len(judged) > 1:
        lines.append(
            f"Their fronts do not fit into one picture: they are judged by {' and by '.join(sorted(judged))}."
        )
    else:
        words = (
            f"All networks found, by {COSTS[fronts[0].priced]}; lines are fronts, stars the chosen networks."
        )
        pictures.append(Picture("fronts", lambda: fronts_figure(fronts), words))
    rows, titles = [], {}
    for records in found:
        (network, _, *columns), *lines_of = network_table(
            records.networks, records.metric, records.choice.network
        )
        for name, _, *cells in lines_of:
            rows.append({"experiment": records.front.name, network: name, **dict(zip(columns, cells))})
        titles |= dict.fromkeys(rows[-1])
    table = Table("networks", tuple(titles), [[row.get(title) for title in titles] for row in rows])
    return Section("Networks", lines, pictures, tables=[table])


def _settings(found: Sequence[Records]) -> Section:
    values = [_set(records) for records in found]
    names = dict.fromkeys(name for each in values for name in each)
    rows = [(name, *(each.get(name, "–") for each in values)) for name in names]
    rows = [row for row in rows if len({*row[1:]}) > 1]
    lines = ["What is not here is the same in all of them." if rows else "They have the same settings."]
    table = Table("settings", ("setting", *(records.front.name for records in found)), rows)
    return Section("Settings that differ", lines, tables=[table])


def _set(records: Records) -> dict[str, str]:
    """What a person has set, in words; several values are those that `searchSpace` tries."""
    command, params = records.command, records.profile["params"]
    space = " ".join((command.space, *command.space_arguments))
    named = {
        "--space": space,
        "--data": command.data,
        "--evaluator": command.evaluator,
        "--cost": command.cost,
    }
    named |= {
        name: params.get(name) for name in ("trialConcurrency", "maxTrialNumber", "maxExperimentDuration")
    }
    tried = [variant.flat() for variant in records.plan.variants]
    named |= {name: ", ".join(dict.fromkeys(str(each[name]) for each in tried)) for name in tried[0]}
    return {name: str(value) for name, value in named.items()}


def _time(found: Sequence[Records]) -> Section:
    rows = []
    for records in found:
        seconds: dict[Any, list[float]] = {}
        for trial in records.trials:
            if None not in (trial.start, trial.end):
                seconds.setdefault(trial.stage, []).append(trial.end - trial.start)
        begun = [trial.start for trial in records.trials if trial.start is not None]
        ended = [trial.end for trial in records.trials if trial.end is not None]
        states = Counter(trial.state for trial in records.trials)
        rows.append((
            records.front.name, ", ".join(f"{count} {state}" for state, count in states.items()),
            minutes(max(ended) - min(begun)), minutes(sum(map(sum, seconds.values()))),
            *(spread_of(seconds.get(stage, ()), "{:.1f}") for stage in ("search", "train", "random")),
        ))  # fmt: skip
    titles = (
        "experiment", "trials", "from the first trial to the last", "all trials together", "a search, seconds",
        "a training, seconds", "a random network, seconds",
    )  # fmt: skip
    return Section("Time", tables=[Table("time", titles, rows)])

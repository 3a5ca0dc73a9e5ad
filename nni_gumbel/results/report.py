"""Tables and texts for people about the networks that were found; works on plain records.

The same rows stand in the README of an export and in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nni_gumbel.results.choice import EQUAL_SIZE, Choice, Network
from nni_gumbel.results.space import canonical

_UNKNOWN = "–"
_PROGRAMS = (
    "Without NNI and nni_gumbel: {}. `from model import load` beside the files gives the network as a plain "
    '`nn.Module` with its weights; `torch.export.load("model.pt2").module()` and ONNX runtimes take batches of any '
    "size."
)


def network_table(
    networks: Sequence[Network], metric: str, chosen: Network | None = None
) -> list[tuple[str, ...]]:
    """The titles of the columns, and one row a network, in the order given; the chosen one is marked.

    What stands before a network's choices: the settings that were varied, by which it was found and trained. A
    column for what no network has, a latency or a stability, is left out.
    """
    varied = dict.fromkeys(name for each in networks for values in each.found_with for name in values)
    trained = [
        name
        for name in networks[0].settings
        if name not in varied and len({repr(network.settings[name]) for network in networks}) > 1
    ]

    def choices(network: Network) -> str:
        settings = {name: varied_values(network, name) for name in varied}
        settings |= {name: chosen_value(network.settings[name]) for name in trained}
        settings |= {label: chosen_value(value) for label, value in network.architecture.items()}
        return ", ".join(f"{label}={value}" for label, value in settings.items())

    def latency(network: Network) -> str:
        if network.latency_ms is None:
            return _UNKNOWN
        by_table = "" if network.table_latency_ms is None else f" ({network.table_latency_ms:.3g})"
        return f"{network.latency_ms:.3g}{by_table}"

    pruned = " (pruned)" if any(network.is_pruned for network in networks) else ""
    rows = [
        {
            "network": f"{each.name} (chosen)" if chosen and each.name == chosen.name else each.name,
            "choices": choices(each),
            f"validation {metric}": mean_and_std(each.validation_mean, each.validation_std),
            f"test {metric}": mean_and_std(each.test_mean, each.test_std),
            f"parameters{pruned}": count(each.parameters, each.exported_parameters),
            f"FLOPs{pruned}": count(each.flops, each.exported_flops),
            "ms (by table)": latency(each),
            "stability": mean_and_std(each.stability_mean, each.stability_std),
            "seeds": str(len(each.runs)),
        }
        for each in networks
    ]
    for title in ("ms (by table)", "stability"):
        if all(row[title] == _UNKNOWN for row in rows):
            for row in rows:
                del row[title]
    return [tuple(rows[0]), *(tuple(row.values()) for row in rows)]


def decision_table(choice: Choice, metric: str) -> list[tuple[str, ...]]:
    """The titles of the columns, and one row a candidate: how the rule has judged it."""
    rows = [
        (
            each.name, mean_and_std(each.validation_mean, each.validation_std),
            mean_and_std(each.stability_mean, each.stability_std), decision,
        )
        for each, decision in choice.decisions
    ]  # fmt: skip
    return [("network", f"validation {metric}", "stability", "decision"), *rows]


def varied_values(network: Network, name: str) -> str:
    """The values of a varied setting under which a network was found, in words."""
    values = (values[name] for values in network.found_with if name in values)
    return "/".join(dict.fromkeys("none" if value is None else str(value) for value in values))


def baseline_line(network: Network, metric: str) -> str | None:
    """One line that compares a network with the mean of its random ones; ``None`` if it has none.

    The test part comes first: a search has seen validation results, random networks have not.
    """
    count = len(network.baseline)
    if not count:
        return None
    parts = []
    for part in ("test", "validation"):
        mean, *theirs = (getattr(each, f"{part}_mean") for each in (network, *network.baseline))
        if None not in (mean, *theirs):
            average, spread = fmean(theirs), stdev(theirs) if count > 1 else None
            parts.append(
                f"{part} {metric} {number(mean)} against {mean_and_std(average, spread)} "
                f"(difference {mean - average:+.4f})"
            )
    if network.unequal:
        sizes = ", ".join(f"{each.name} ({each.parameters:,} parameters)" for each in network.unequal)
        parts.append(f"further than {EQUAL_SIZE:.0%} from its {network.parameters:,} parameters: {sizes}")
    of = f"{count} random networks" if count > 1 else "one random network"
    size = "not all of equal size" if network.unequal else "of equal size"
    return f"{network.name} and {of} {size}, trained alike: {'; '.join(parts)}"


def count(number: int | None, exported: int | None = None) -> str:
    """A number of parameters or FLOPs; in brackets that of the network as it is exported, where it is another."""
    text = "not known" if number is None else f"{number:,}"
    return text if exported in (None, number) else f"{text} ({exported:,})"


def chosen_value(value: Any) -> str:
    """A value of an NNI sample in words: one chosen input comes as a list of one."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) if value else "none"
    return value if isinstance(value, str) else canonical(value)


def mean_and_std(mean: float | None, std: float | None) -> str:
    """``0.9762 ± 0.001``; without a spread, the mean alone; a dash if there is none."""
    if mean is None:
        return _UNKNOWN
    return number(mean) if std is None else f"{number(mean)} ± {std:.2g}"


def number(value: float) -> str:
    """Four decimals where they say something, four digits elsewhere."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def export_readme(
    choice: Choice,
    networks: Sequence[Network],
    metric: str,
    path: str | Path,
    *,
    data: str | None = None,
    searched: Mapping[str, Any] | None = None,
    picture: str | None = None,
    programs: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> str:
    """The README.md of an export.

    Args:
        choice: what is exported, and why.
        networks: all that were trained, the chosen one among them.
        metric: name of the metric, as in the settings.
        path: where the export is, for the line that loads it.
        data: the data set's name in the trial command; the test result is of its held-out part.
        searched: settings of all searches that are not the defaults, budgets among them.
        picture: file name of the picture of the front, beside the README; ``None`` if there is none.
        programs: files beside the README that need neither NNI nor this package.
        warnings: what the export has to do without.
    """
    network, run, seeds = choice.network, choice.run, len(choice.network.runs)
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    best = f", the best of {seeds} on validation" if seeds > 1 else ""
    held_out = f"held-out part of {data}" if data else "held-out part"
    run_test = "" if run.test is None else f", test {number(run.test)}"
    facts = {
        f"test {metric}, {held_out} ({over})": mean_and_std(network.test_mean, network.test_std),
        f"validation {metric} ({over})": mean_and_std(network.validation_mean, network.validation_std),
        "parameters": f"{network.parameters:,}",
        "FLOPs": count(network.flops),
    }
    if network.is_pruned:
        left = f"{network.exported_parameters:,} parameters, {count(network.exported_flops)} FLOPs"
        facts["without unreachable layers, as loaded"] = left
    if network.latency_ms is not None:
        table = network.table_latency_ms
        by_table = "" if table is None else f", {table:.3g} ms by the search's table"
        facts["latency of one example"] = f"{network.latency_ms:.3g} ms measured again{by_table}"
    reached = f"{metric} {number(run.validation)}{run_test}"
    facts["weights"] = f"of seed {run.seed}{best} ({reached}; trial {run.trial_id})"
    for title, settings in (("searched with", searched or {}), ("trained with", network.settings)):
        if settings:
            facts[title] = ", ".join(f"{name} {value}" for name, value in settings.items())
    criteria, *judged = decision_table(choice, metric)
    choices = [(label, chosen_value(value)) for label, value in network.architecture.items()]
    header, *rows = network_table(networks, metric, network)
    parts = [
        f"# {network.name}",
        choice.reason,
        *(f"**Warning:** {warning}" for warning in warnings),
        _table(("", ""), facts.items()),
        f"```python\nimport nni_gumbel\n\nnetwork = nni_gumbel.load({json.dumps(str(path), ensure_ascii=False)})\n```",
        "Run it where the module of the space can be imported, or give the class: `load(path, space=MySpace)`.",
        *([_PROGRAMS.format(", ".join(f"`{name}`" for name in programs))] if programs else []),
        "## Choices",
        _table(("label", "chosen"), choices),
        "## Decision",
        _table(criteria, judged),
        "## All networks found",
    ]
    if picture:
        parts.append(f"![Validation {metric} of every network against its parameters]({picture})")
    parts.append(_table(header, rows))
    if lines := [f"* {line}" for each in networks if (line := baseline_line(each, metric))]:
        parts += [
            "\n".join(lines),
            "± is the standard deviation over random networks, each trained once with a seed of its own: over networks "
            "and seeds together.",
        ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

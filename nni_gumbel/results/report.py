"""Tables and texts for people about the networks that were found; works on plain records.

The same rows stand in the README of an export and in the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nni_gumbel.results.choice import EQUAL_SIZE, Choice, Network


def network_header(
    metric: str, networks: Sequence[Network] = (), *, baseline: bool = True
) -> tuple[str, ...]:
    """Titles of the columns of :func:`network_rows` for the same networks."""
    parameters, flops = (
        f"{name} (pruned)" if _prunes(networks) else name for name in ("parameters", "FLOPs")
    )
    latency = ("ms (by table)",) if _has_latency(networks) else ()
    compared = baseline and _has_baseline(networks)
    random = (f"random networks, {_judged_by(networks)} {metric}",) if compared else ()
    results = (f"validation {metric}", f"test {metric}")
    return ("network", "choices", *results, *random, parameters, flops, *latency, "seeds")


def network_rows(
    networks: Sequence[Network], chosen: Network | None = None, *, baseline: bool = True
) -> list[tuple[str, ...]]:
    """One row a network, in the order given; the chosen one is marked.

    What stands before a network's choices: the settings that were varied, by which it was found and trained. A
    column for what no network has - a latency, a baseline - is left out; so is the baseline if it is not wanted.
    """
    varied = dict.fromkeys(name for each in networks for values in each.found_with for name in values)
    trained = [
        name
        for name in (networks[0].settings if networks else ())
        if name not in varied
        and any(network.settings[name] != networks[0].settings[name] for network in networks)
    ]
    return [
        (
            f"{network.name} (chosen)"
            if chosen is not None and network.name == chosen.name
            else network.name,
            ", ".join(
                f"{label}={value}"
                for label, value in (
                    *((name, varied_values(network, name)) for name in varied),
                    *((name, chosen_value(network.settings[name])) for name in trained),
                    *((label, chosen_value(value)) for label, value in network.architecture.items()),
                )
            ),
            mean_and_std(network.validation_mean, network.validation_std),
            mean_and_std(network.test_mean, network.test_std),
            *((_of_baseline(network, networks),) if baseline and _has_baseline(networks) else ()),
            _count(network.parameters, network.pruned_parameters),
            _count(network.flops, network.pruned_flops),
            *((_latency(network),) if _has_latency(networks) else ()),
            str(len(network.runs)),
        )
        for network in networks
    ]


def varied_values(network: Network, name: str) -> str:
    """The values of a varied setting under which a network was found, in words."""
    values = (values[name] for values in network.found_with if name in values)
    return "/".join(dict.fromkeys("none" if value is None else str(value) for value in values))


def baseline_line(network: Network, metric: str) -> str | None:
    """One line that compares a network with the mean of its random ones; ``None`` if it has none.

    The test part comes first: a search has seen validation results, random networks have not.
    """
    if not network.baseline:
        return None
    parts = []
    for part in ("test", "validation"):
        mean, theirs = getattr(network, f"{part}_mean"), _results(network.baseline, part)
        if mean is not None and theirs:
            average = fmean(theirs)
            spread = stdev(theirs) if len(theirs) > 1 else None
            parts.append(
                f"{part} {metric} {number(mean)} against {mean_and_std(average, spread)} "
                f"(difference {mean - average:+.4f})"
            )
    count = len(network.baseline)
    of = f"{count} random networks" if count > 1 else "one random network"
    if network.unequal:
        sizes = ", ".join(f"{each.name} ({each.parameters:,} parameters)" for each in network.unequal)
        parts.append(f"further than {EQUAL_SIZE:.0%} from its {network.parameters:,} parameters: {sizes}")
    size = (
        "of equal size"
        if not network.unequal
        else "not all of equal size"
        if count > 1
        else "not of equal size"
    )
    return f"{network.name} and {of} {size}, trained alike: {'; '.join(parts)}"


def _results(networks: Sequence[Network], part: str) -> list[float]:
    """The mean results of all networks; none unless each has one."""
    means = [getattr(network, f"{part}_mean") for network in networks]
    return [] if None in means else means


def _has_baseline(networks: Sequence[Network]) -> bool:
    return any(network.baseline for network in networks)


def _judged_by(networks: Sequence[Network]) -> str:
    """The part that networks are compared with their baselines on: the test part, if all have results of it."""
    compared = [each for network in networks if network.baseline for each in (network, *network.baseline)]
    return "test" if _results(compared, "test") else "validation"


def _of_baseline(network: Network, networks: Sequence[Network]) -> str:
    results = _results(network.baseline, _judged_by(networks))
    if not results:
        return "–"
    spread = stdev(results) if len(results) > 1 else None
    return f"{mean_and_std(fmean(results), spread)} ({len(results)})"


def _prunes(networks: Sequence[Network]) -> bool:
    return any(
        pruned is not None and pruned != count
        for network in networks
        for count, pruned in (
            (network.parameters, network.pruned_parameters),
            (network.flops, network.pruned_flops),
        )
    )


def _count(count: int, pruned: int | None) -> str:
    return f"{count:,}" if pruned in (None, count) else f"{count:,} ({pruned:,})"


def _has_latency(networks: Sequence[Network]) -> bool:
    return any(network.latency_ms is not None for network in networks)


def _latency(network: Network) -> str:
    if network.latency_ms is None:
        return "–"
    table = "" if network.table_latency_ms is None else f" ({network.table_latency_ms:.3g})"
    return f"{network.latency_ms:.3g}{table}"


def chosen_value(value: Any) -> str:
    """A value of an NNI sample in words: one chosen input comes as a list of one."""
    if isinstance(value, (list, tuple)):
        return "+".join(str(one) for one in value) if value else "none"
    return str(value)


def mean_and_std(mean: float | None, std: float | None) -> str:
    """``0.9762 ± 0.001``; without a spread, the mean alone; a dash if there is none."""
    if mean is None:
        return "–"
    return number(mean) if std is None else f"{number(mean)} ± {std:.2g}"


def spelled_metric(metric: str) -> str:
    """A metric's name for the axis of a picture."""
    return "accuracy" if metric == "acc" else metric


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
        warnings: what the export has to do without.
    """
    network, seeds = choice.network, len(choice.network.runs)
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    held_out = f"held-out part of {data}" if data else "held-out part"
    trained = ", ".join(f"{name} {value}" for name, value in network.settings.items())
    facts = [
        (f"test {metric}, {held_out} ({over})", mean_and_std(network.test_mean, network.test_std)),
        (f"validation {metric} ({over})", mean_and_std(network.validation_mean, network.validation_std)),
        *_costs(network),
        ("weights", _weights(choice, metric)),
        *(
            [("searched with", ", ".join(f"{name} {value}" for name, value in searched.items()))]
            if searched
            else []
        ),
        ("trained with", trained),
    ]
    choices = [(label, chosen_value(value)) for label, value in network.architecture.items()]
    lines = [line for line in (baseline_line(each, metric) for each in networks) if line]
    return "\n\n".join(
        [
            f"# {network.name}",
            choice.reason,
            *(f"**Warning:** {warning}" for warning in warnings),
            _table(("", ""), facts),
            f"```python\nimport nni_gumbel\n\nnetwork = nni_gumbel.load({_quoted(path)})\n```",
            "Run it where the module of the space can be imported, or give the class: `load(path, space=MySpace)`.",
            "## Choices",
            _table(("label", "chosen"), choices),
            "## All networks found",
            *([f"![Validation {metric} of every network against its parameters]({picture})"] if picture else []),
            _table(network_header(metric, networks), network_rows(networks, network)),
            *(["\n".join(f"* {line}" for line in lines), _OF_RANDOM_NETWORKS] if lines else []),
        ]
    ) + "\n"  # fmt: skip


_OF_RANDOM_NETWORKS = (
    "± is the standard deviation over random networks, each trained once with a seed of its own: over networks and "
    "seeds together."
)


def _costs(network: Network) -> list[tuple[str, str]]:
    rows = [("parameters", f"{network.parameters:,}"), ("FLOPs", f"{network.flops:,}")]
    pruned = (network.pruned_parameters, network.pruned_flops)
    if None not in pruned and pruned != (network.parameters, network.flops):
        rows.append(
            ("without unreachable layers, as loaded", f"{pruned[0]:,} parameters, {pruned[1]:,} FLOPs")
        )
    if network.latency_ms is not None:
        table = network.table_latency_ms
        by_table = "" if table is None else f", {table:.3g} ms by the search's table"
        rows.append(("latency of one example", f"{network.latency_ms:.3g} ms measured again{by_table}"))
    return rows


def _weights(choice: Choice, metric: str) -> str:
    run, seeds = choice.run, len(choice.network.runs)
    best = f", the best of {seeds} on validation" if seeds > 1 else ""
    test = "" if run.test is None else f", test {number(run.test)}"
    return f"of seed {run.seed}{best} ({metric} {number(run.validation)}{test}; trial {run.trial_id})"


def _quoted(path: str | Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

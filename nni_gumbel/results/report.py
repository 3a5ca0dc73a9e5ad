"""Tables and texts for people about the networks that were found; works on plain records.

The same rows stand in the README of an export and in the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nni_gumbel.results.choice import Choice, Network


def network_header(metric: str) -> tuple[str, ...]:
    """Titles of the columns of :func:`network_rows`."""
    return ("network", "choices", f"validation {metric}", f"test {metric}", "parameters", "FLOPs", "seeds")


def network_rows(networks: Sequence[Network], chosen: Network | None = None) -> list[tuple[str, ...]]:
    """One row a network, in the order given; the chosen one is marked.

    Settings that networks were trained with and that differ stand before their choices.
    """
    varied = [
        name
        for name in (networks[0].settings if networks else ())
        if any(network.settings[name] != networks[0].settings[name] for network in networks)
    ]
    return [
        (
            f"{network.name} (chosen)"
            if chosen is not None and network.name == chosen.name
            else network.name,
            ", ".join(
                f"{label}={chosen_value(value)}"
                for label, value in (
                    *((name, network.settings[name]) for name in varied),
                    *network.architecture.items(),
                )
            ),
            mean_and_std(network.validation_mean, network.validation_std),
            mean_and_std(network.test_mean, network.test_std),
            f"{network.parameters:,}",
            f"{network.flops:,}",
            str(len(network.runs)),
        )
        for network in networks
    ]


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


def number(value: float) -> str:
    """Four decimals where they say something, four digits elsewhere."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def export_readme(
    choice: Choice, networks: Sequence[Network], metric: str, path: str | Path, *, data: str | None = None
) -> str:
    """The README.md of an export.

    Args:
        choice: what is exported, and why.
        networks: all that were trained, the chosen one among them.
        metric: name of the metric, as in the settings.
        path: where the export is, for the line that loads it.
        data: the data set's name in the trial command; the test result is of its held-out part.
    """
    network, seeds = choice.network, len(choice.network.runs)
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else "one seed"
    held_out = f"held-out part of {data}" if data else "held-out part"
    trained = ", ".join(f"{name} {value}" for name, value in network.settings.items())
    facts = [
        (f"test {metric}, {held_out} ({over})", mean_and_std(network.test_mean, network.test_std)),
        (f"validation {metric} ({over})", mean_and_std(network.validation_mean, network.validation_std)),
        ("parameters", f"{network.parameters:,}"),
        ("FLOPs", f"{network.flops:,}"),
        ("weights", _weights(choice, metric)),
        ("trained with", trained),
    ]
    choices = [(label, chosen_value(value)) for label, value in network.architecture.items()]
    return "\n\n".join(
        [
            f"# {network.name}",
            choice.reason,
            _table(("", ""), facts),
            f"```python\nimport nni_gumbel\n\nnetwork = nni_gumbel.load({_quoted(path)})\n```",
            "Run it where the module of the space can be imported, or give the class: `load(path, space=MySpace)`.",
            "## Choices",
            _table(("label", "chosen"), choices),
            "## All networks found",
            _table(network_header(metric), network_rows(networks, network)),
        ]
    ) + "\n"  # fmt: skip


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

"""The front of an experiment: which networks are on it, the table of all of them, and the picture."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.front import Front, front_figure, fronts_figure, write_table

MODES = st.sampled_from(["maximize", "minimize"])


def network(name, validations, parameters, tests=None, **more):
    tests = tests or [None] * len(validations)
    runs = tuple(
        TrainedRun(f"{name}-{seed}", seed, v, t) for seed, (v, t) in enumerate(zip(validations, tests))
    )
    return Network(name, {"op": "conv", "skip": [1]}, {}, parameters, 10 * parameters, runs, 1000, **more)


def baseline(name, results, parameters):
    return tuple(
        network(f"{name}-random-{number}", [value], parameters + number, [value - 0.01])
        for number, value in enumerate(results, start=1)
    )


ONE = network(
    "network-1", [0.97, 0.99], 9000, [0.96, 0.98],
    pruned_parameters=8000, pruned_flops=80000, latency_ms=0.5, table_latency_ms=0.4,
    found_with=({"max_params": None}, {"max_params": 9000}), baseline=baseline("network-1", [0.9, 0.94], 9000),
)  # fmt: skip
TWO = network("network-2", [0.95], 3000, found_with=({"max_params": 4000},))
WORSE = network("network-3", [0.94], 5000, found_with=({"max_params": 5000},))
FOUND = [ONE, TWO, WORSE]

POINTS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=8
).map(lambda points: [network(str(n), [value], size) for n, (size, value) in enumerate(points)])


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@given(POINTS, MODES)
def test_the_front_is_what_no_network_found_dominates(found, mode):
    def as_good(one, other):
        better = (
            one.validation_mean >= other.validation_mean
            if mode == "maximize"
            else (one.validation_mean <= other.validation_mean)
        )
        return one.parameters <= other.parameters and better

    names = {each.name for each in Front(found, found[0], "acc", mode).best}
    assert names == {
        each.name for each in found if all(as_good(each, other) for other in found if as_good(other, each))
    }


@given(POINTS, MODES)
def test_the_best_and_the_smallest_networks_are_on_the_front_which_rises(found, mode):
    best = Front(found, found[0], "acc", mode).best
    pick = max if mode == "maximize" else min
    assert best[0].parameters == min(each.parameters for each in found)
    assert best[-1].validation_mean == pick(each.validation_mean for each in found)
    values = [each.validation_mean for each in best]
    assert values == sorted(values, reverse=mode == "minimize")


def test_random_networks_are_never_on_the_front():
    better = replace(TWO, baseline=(network("network-2-random-1", [1.0], 1),))
    assert [each.name for each in Front([better, ONE], ONE, "acc", "maximize").best] == [
        "network-2",
        "network-1",
    ]


def test_the_table_has_a_row_for_every_network_and_the_random_ones_after_theirs(tmp_path):
    write_table(tmp_path / "front.csv", Front(FOUND, TWO, "acc", "maximize"))
    rows = rows_of(tmp_path / "front.csv")
    assert list(rows) == [
        "network-1", "network-1-random-1", "network-1-random-2", "network-2", "network-3",
    ]  # fmt: skip
    assert [(row["kind"], row["of_network"], row["chosen"], row["on_front"]) for row in rows.values()] == [
        ("found", "", "0", "1"),
        ("random", "network-1", "0", "0"),
        ("random", "network-1", "0", "0"),
        ("found", "", "1", "1"),
        ("found", "", "0", "0"),
    ]


def test_the_table_says_how_near_a_random_network_is_in_size_to_the_one_it_is_compared_with(tmp_path):
    found = replace(TWO, baseline=(network("network-2-random-1", [0.9], 4500),))
    write_table(tmp_path / "front.csv", Front([found, WORSE], found, "acc", "maximize"))
    ratios = {name: row["size_ratio"] for name, row in rows_of(tmp_path / "front.csv").items()}
    assert ratios == {"network-2": "", "network-2-random-1": "1.5", "network-3": ""}


def test_the_table_has_every_number_and_leaves_empty_what_is_not_known(tmp_path):
    write_table(tmp_path / "front.csv", Front(FOUND, TWO, "acc", "maximize"))
    rows = rows_of(tmp_path / "front.csv")
    one, two = rows["network-1"], rows["network-2"]
    assert (one["parameters"], one["pruned_parameters"]) == ("9000", "8000")
    assert (one["flops"], one["pruned_flops"]) == ("90000", "80000")
    assert (one["latency_ms"], one["table_latency_ms"], one["seeds"]) == ("0.5", "0.4", "2")
    assert float(one["validation_acc_mean"]) == pytest.approx(0.98)
    assert float(one["validation_acc_std"]) == pytest.approx(0.02 / 2**0.5)
    assert float(one["test_acc_mean"]) == pytest.approx(0.97)
    assert json.loads(one["architecture"]) == ONE.architecture
    assert [
        two[name] for name in ("pruned_parameters", "latency_ms", "validation_acc_std", "test_acc_mean")
    ] == [""] * 4


def test_the_table_says_by_which_varied_settings_a_network_was_found(tmp_path):
    write_table(tmp_path / "front.csv", Front(FOUND, TWO, "acc", "maximize"))
    rows = rows_of(tmp_path / "front.csv")
    assert [rows[name]["max_params"] for name in ("network-1", "network-1-random-1", "network-2")] == [
        "none/9000", "none/9000", "4000",
    ]  # fmt: skip


def drawn(path, found, chosen, metric="acc", mode="maximize", priced="params"):
    """Draw it, and return matplotlib's axes."""
    figure = front_figure(Front(found, chosen, metric, mode, priced))
    figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    return figure.axes[0]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_picture_marks_the_chosen_network_the_front_and_the_baseline(tmp_path):
    axes = drawn(tmp_path / "front.png", FOUND, TWO)
    assert legend_of(axes) == [
        "chosen network",
        "network found",
        "front: nothing found is cheaper and better",
        "random network, trained alike",
        "their mean ± standard deviation",
    ]
    assert {text.get_text() for text in axes.texts} == {"network-1", "network-2", "network-3"}
    (line,) = [line for line in axes.lines if line.get_label().startswith("front")]
    assert list(line.get_xdata()) == [3000, 8000]  # as exported, without unreachable layers
    assert axes.get_xscale() == "linear"
    assert "validation accuracy" in axes.get_ylabel() and "1–2 seeds" in axes.get_ylabel()


def test_the_picture_is_of_what_the_experiment_prices(tmp_path):
    found = [
        replace(ONE, table_latency_ms=2.0),
        replace(TWO, table_latency_ms=3.0),
        replace(WORSE, latency_ms=None),
    ]
    axes = drawn(tmp_path / "front.png", found, found[0], priced="latency")
    assert "ms" in axes.get_xlabel()
    # A network whose latency is not known is not in it.
    points = {line.get_gid(): list(line.get_xdata()) for line in axes.lines if line.get_gid()}
    assert points == {"network-1": [2.0], "network-2": [3.0]}
    assert [each.name for each in Front(found, found[0], "acc", "maximize", "latency").best] == ["network-1"]


def test_the_fronts_of_experiments_are_told_apart_without_colour(tmp_path):
    other = network("network-1", [0.99], 5000)
    fronts = [Front(FOUND, TWO, "acc", "maximize", name="one (A)")]
    fronts.append(Front([other], other, "acc", "maximize", name="two (B)"))
    figure = fronts_figure(fronts)
    (axes,) = figure.axes
    assert legend_of(axes) == ["one (A)", "two (B)"]
    fronts = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(fronts["one (A)"].get_xdata()) == [3000, 8000] and list(fronts["two (B)"].get_xdata()) == [
        5000
    ]
    assert fronts["one (A)"].get_marker() != fronts["two (B)"].get_marker()
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "*"] == [[3000], [5000]]


def test_a_single_network_is_drawn_without_a_front(tmp_path):
    axes = drawn(tmp_path / "front.png", [TWO], TWO, "mse", "minimize")
    assert legend_of(axes) == ["chosen network"]
    assert "lower is better" in axes.get_ylabel() and "1 network found" in axes.get_title()


def test_of_sixty_networks_only_the_chosen_one_is_named_and_sizes_that_spread_are_on_a_log_axis(tmp_path):
    found = [network(f"network-{n}", [0.9 + n / 1000], 1000 * n) for n in range(1, 61)]
    axes = drawn(tmp_path / "front.png", found, found[30])
    assert [text.get_text() for text in axes.texts] == ["network-31"]
    assert axes.get_xscale() == "log"


def test_a_network_without_parameters_is_drawn_on_a_linear_axis(tmp_path):
    found = [network("network-1", [0.5], 0), network("network-2", [0.6], 1000)]
    assert drawn(tmp_path / "front.png", found, found[0]).get_xscale() == "linear"


def test_networks_of_equal_size_have_their_shared_baseline_drawn_once(tmp_path):
    twin = replace(ONE, name="network-4")
    axes = drawn(tmp_path / "front.png", [ONE, twin], ONE)
    (points,) = [line for line in axes.lines if line.get_label() == "random network, trained alike"]
    assert len(points.get_xdata()) == 2


def test_the_choice_is_made_on_the_whole_front_and_never_among_random_networks():
    better = replace(TWO, baseline=(network("network-2-random-1", [1.0], 1),))
    assert choose([ONE, better, WORSE], "acc", "maximize").network.name == "network-1"


@pytest.mark.slow
def test_only_the_picture_needs_matplotlib_and_nothing_needs_torch():
    code = (
        "import io, sys, nni_gumbel.results.front as front\n"
        "print('matplotlib' in sys.modules)\n"
        "from nni_gumbel.results.choice import Network, TrainedRun\n"
        "one = Network('n', {}, {}, 1, 1, (TrainedRun('t', 0, 0.5, None),), 1)\n"
        "front.front_figure(front.Front([one], one, 'acc', 'maximize')).savefig(io.BytesIO())\n"
        "print('torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]

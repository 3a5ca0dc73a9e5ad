"""The README of an export says what a person needs, and its rows are those of the terminal."""

import ast
import re
from dataclasses import replace

import pytest

from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.report import (
    baseline_line,
    chosen_value,
    export_readme,
    mean_and_std,
    network_table,
)


def network(name, validations, tests, parameters):
    runs = tuple(
        TrainedRun(f"trial{seed}", seed, v, t) for seed, (v, t) in enumerate(zip(validations, tests))
    )
    architecture = {"layer1/op": "conv3", "layer1/act": "a|b", "skip": [1]}
    return Network(name, architecture, {}, parameters, 2 * parameters, runs, 1000)


FOUND = [
    network("network-1", [0.97, 0.98, 0.975], [0.961, 0.962, 0.963], 13770),
    network("network-2", [0.981, 0.979, 0.980], [0.971, 0.972, 0.973], 25000),
]
CHOICE = choose(FOUND, "acc", "maximize")


def test_the_readme_has_the_test_result_over_seeds_and_the_cost():
    searched = {"max_latency_ms": 0.5, "search_epochs": 3}
    text = export_readme(CHOICE, FOUND, "acc", "/exports/abc", data="mnist5k", searched=searched)
    assert "| searched with | max_latency_ms 0.5, search_epochs 3 |" in text
    assert "held-out part of mnist5k" in text
    assert "0.9720 ± 0.001" in text and "over 3 seeds" in text
    assert "25,000" in text and "50,000" in text


def test_the_readme_says_why_and_whose_weights():
    text = export_readme(CHOICE, FOUND, "acc", "/exports/abc")
    assert CHOICE.reason in text
    assert "of seed 0, the best of 3 on validation" in text and "trial0" in text


def test_the_readme_shows_every_choice_and_every_network():
    text = export_readme(CHOICE, FOUND, "acc", "/exports/abc")
    assert "| layer1/op | conv3 |" in text and "| skip | 1 |" in text
    assert "| network-1 |" in text and "| network-2 (chosen) |" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_header():
    text = export_readme(CHOICE, FOUND, "acc", "/exports/abc")
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("path", ["/exports/abc", 'C:\\exports\\"new"', "/with space/ä"])
def test_the_line_of_code_names_the_path(path):
    code = re.search(r"```python\n(.*?)```", export_readme(CHOICE, FOUND, "acc", path), flags=re.DOTALL)[1]
    call = ast.parse(code).body[-1].value
    assert ast.unparse(call.func) == "nni_gumbel.load" and call.args[0].value == path


def test_rows_fit_the_header_and_keep_the_order():
    header, *rows = network_table(FOUND, "acc", CHOICE.network)
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows] == ["network-1", "network-2 (chosen)"]


def test_a_single_run_without_a_test_has_no_spread_and_a_dash():
    alone = network("network-1", [0.5], [None], 10)
    _, row = network_table([alone], "acc")
    assert (row[2], row[3]) == ("0.5000", "–")
    assert "one seed" in export_readme(choose([alone], "acc", "maximize"), [alone], "acc", "x")


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (0.97616, 0.00123, "0.9762 ± 0.0012"),
        (12345.678, None, "1.235e+04"),
        (0.0, 0.0, "0.0000 ± 0"),
        (None, None, "–"),
    ],
)
def test_numbers_are_short(mean, std, words):
    assert mean_and_std(mean, std) == words


@pytest.mark.parametrize(
    ("value", "words"), [([1], "1"), ([0, 2], "0+2"), ([], "none"), ("relu", "relu"), (3, "3")]
)
def test_chosen_values_read_as_words(value, words):
    assert chosen_value(value) == words


WITH_BASELINE = [
    replace(
        FOUND[0],
        baseline=(
            network("network-1-random-1", [0.94], [0.93], 13500),
            network("network-1-random-2", [0.96], [0.95], 14000),
        ),
        found_with=({"max_params": None}, {"max_params": 14000}),
    ),
    replace(FOUND[1], found_with=({"max_params": 30000},)),
]


def test_a_network_is_compared_with_the_mean_of_its_random_ones_by_difference_and_spread():
    line = baseline_line(WITH_BASELINE[0], "acc")
    assert line == (
        "network-1 and 2 random networks of equal size, trained alike: "
        "test acc 0.9620 against 0.9400 ± 0.014 (difference +0.0220); "
        "validation acc 0.9750 against 0.9500 ± 0.014 (difference +0.0250)"
    )
    assert baseline_line(FOUND[1], "acc") is None
    text = export_readme(CHOICE, WITH_BASELINE, "acc", "/exports/abc")
    assert f"* {line}" in text and "over networks and seeds together" in text
    assert "random" not in export_readme(CHOICE, FOUND, "acc", "/exports/abc")


def test_without_test_results_the_baseline_is_one_of_validation_results():
    random = network("network-1-random-1", [0.94], [None], 13500)
    line = baseline_line(replace(FOUND[0], baseline=(random,)), "acc")
    assert line.endswith("alike: validation acc 0.9750 against 0.9400 (difference +0.0350)")


def test_a_row_begins_with_the_varied_settings_by_which_its_network_was_found():
    assert [row[1].split(", ")[0] for row in network_table(WITH_BASELINE, "acc")[1:]] == [
        "max_params=none/14000",
        "max_params=30000",
    ]


def test_pruned_counts_are_shown_where_they_differ():
    same = {"pruned_parameters": 25000, "pruned_flops": 50000}
    found = [
        replace(FOUND[0], pruned_parameters=13000, pruned_flops=26000),
        replace(FOUND[1], **same),
    ]
    header, *rows = network_table(found, "acc")
    column = header.index("parameters (pruned)")
    assert [row[column] for row in rows] == ["13,770 (13,000)", "25,000"]
    assert [row[header.index("FLOPs (pruned)")] for row in rows] == ["27,540 (26,000)", "50,000"]
    assert "parameters" in network_table([replace(FOUND[1], **same)], "acc")[0]
    text = export_readme(choose([found[0]], "acc", "maximize"), found, "acc", "x")
    assert "| without unreachable layers, as loaded | 13,000 parameters, 26,000 FLOPs |" in text
    assert "unreachable" not in export_readme(choose([found[1]], "acc", "maximize"), found, "acc", "x")


def test_latencies_are_shown_measured_and_by_the_table():
    found = [replace(FOUND[0], latency_ms=0.5123, table_latency_ms=0.4), FOUND[1]]
    header, *rows = network_table(found, "acc")
    column = header.index("ms (by table)")
    assert [row[column] for row in rows] == ["0.512 (0.4)", "–"]
    text = export_readme(choose([found[0]], "acc", "maximize"), found, "acc", "x")
    assert "0.512 ms measured again, 0.4 ms by the search's table" in text


def test_the_readme_shows_the_picture_if_there_is_one_and_warns_if_something_is_missing():
    text = export_readme(CHOICE, FOUND, "acc", "x", picture="front.png")
    assert "](front.png)" in text and "Warning" not in text
    text = export_readme(CHOICE, FOUND, "acc", "x", warnings=["front.png could not be written: no font"])
    assert "front.png)" not in text and "**Warning:** front.png could not be written: no font" in text


def test_a_random_network_that_is_not_of_equal_size_is_named():
    sizes = FOUND[0].parameters, round(FOUND[0].parameters * 1.04), round(FOUND[0].parameters * 1.06)
    random = tuple(
        network(f"network-1-random-{n}", [0.9], [0.9], size) for n, size in enumerate(sizes, start=1)
    )
    line = baseline_line(replace(FOUND[0], baseline=random), "acc")
    assert line.startswith("network-1 and 3 random networks not all of equal size, trained alike: test acc")
    assert line.endswith(
        f"further than 5% from its {sizes[0]:,} parameters: network-1-random-3 ({sizes[2]:,} parameters)"
    )

"""The README of an export says what a person needs, and its rows are those of the terminal."""

import ast
import re

import pytest

from nni_gumbel.results.choice import Network, TrainedRun, choose
from nni_gumbel.results.report import chosen_value, export_readme, mean_and_std, network_header, network_rows


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
    text = export_readme(CHOICE, FOUND, "acc", "/exports/abc", data="mnist5k")
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
    rows = network_rows(FOUND, CHOICE.network)
    assert {len(row) for row in rows} == {len(network_header("acc"))}
    assert [row[0] for row in rows] == ["network-1", "network-2 (chosen)"]


def test_a_single_run_without_a_test_has_no_spread_and_a_dash():
    alone = network("network-1", [0.5], [None], 10)
    row = network_rows([alone])[0]
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

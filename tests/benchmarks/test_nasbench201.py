"""The pure parts of the instruments on NAS-Bench-201, and that what is done is not done again."""

import json

import images
import numpy as np
import pytest
import runs
import strategies
import table
from nni.nas.hub.pytorch import NasBench201

from nni_gumbel import UsageError

BEST = (3, 3, 3, 1, 3, 3)


@pytest.fixture
def small_table():
    """Accuracies that grow with the cell's number, but of the best cell, which is 94.37."""
    test = np.linspace(10, 94, 5**6).reshape(table.SHAPE)
    test[BEST] = 94.37
    return table.Table(test, test - 5)


def test_a_cell_is_a_sample_of_nnis_space():
    variables = NasBench201(8, 1).simplify()
    assert tuple(variables) == table.LABELS
    assert all(tuple(variable.values) == table.OPERATIONS for variable in variables.values())


def test_a_cell_survives_the_way_to_nni_and_back():
    assert table.cell_of(table.sample_of(BEST)) == BEST


def test_a_cell_survives_the_way_to_the_benchmarks_text_and_back():
    arch = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
    assert table.parse(arch) == (4, 2, 1, 0, 3, 1)
    assert table.arch_of(table.parse(arch)) == arch


def test_the_best_cell_has_no_regret(small_table):
    assert small_table.judge(BEST) == {"accuracy": 94.37, "rank": 1, "regret": 0, "hit": 1}


def test_regret_is_the_distance_to_the_best_cell_and_rank_counts_better_ones(small_table):
    second = (4, 4, 4, 4, 4, 4)
    assert small_table.regret(second) == pytest.approx(0.37)
    assert small_table.rank(second) == 2
    assert not small_table.is_hit(second)


def test_cells_are_drawn_once_each_from_those_that_are_good_enough(small_table):
    drawn = small_table.draw(50, seed=0, above=93)
    assert len(set(drawn)) == 50
    assert all(small_table.accuracy(cell) >= 93 for cell in drawn)


def test_a_table_survives_the_way_to_a_file(small_table, tmp_path):
    rows = ["arch,c10_valid_12ep,c10_test_200ep"]
    for cell in np.ndindex(table.SHAPE):
        rows.append(f"{table.arch_of(cell)},{small_table.validation[cell]!r},{small_table.test[cell]!r}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(row.replace("np.float64(", "").replace(")", "") for row in rows))
    read = table.read(path)
    assert np.array_equal(read.test, small_table.test)
    assert np.array_equal(read.validation, small_table.validation)


def test_a_table_that_lacks_cells_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"arch,c10_valid_12ep,c10_test_200ep\n{table.arch_of(BEST)},80,94\n")
    with pytest.raises(UsageError, match="lacks 15,624 of 15,625 cells"):
        table.read(path)


@pytest.mark.parametrize(
    "read", [table.read, lambda path: images.read(path, images=1, resolution=8, batch_size=1, seed=0)]
)
def test_a_missing_file_is_told_with_how_to_get_it(read, tmp_path):
    with pytest.raises(UsageError, match="does not exist; give an?"):
        read(tmp_path / "missing")


def test_images_become_smaller_by_averaging():
    pixels = np.array([[[[0, 2, 10, 10], [4, 6, 10, 10], [8, 8, 0, 0], [8, 8, 0, 1]]]], dtype=np.uint8)
    assert images.smaller(pixels, 2).tolist() == [[[[3, 10], [8, 0]]]]


def test_halves_have_no_image_in_common_and_epochs_may_be_shorter(tmp_path):
    count = 40
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    path = tmp_path / "images.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:4], y_test=labels[:4])
    data = images.read(path, images=16, resolution=8, batch_size=4, seed=0)
    halves = [set(part.pixels[:, 0, 0, 0].tolist()) for part in (data._parts.train, data._parts.validation)]
    assert [len(half) for half in halves] == [16, 16]
    assert not halves[0] & halves[1]
    assert len(list(data.train_dataloader())) == len(data.val_dataloader()) == 4
    data.batches = 3
    assert len(list(data.train_dataloader())) == len(data.val_dataloader()) == 3


def test_a_strategy_is_read_with_its_settings():
    named = strategies.parse("default:cost_weight=0,estimator=straight-through-gumbel")
    assert (named.name, named.settings) == (
        "default",
        {"cost_weight": 0, "estimator": "straight-through-gumbel"},
    )
    assert named.resolved()["cost_weight"] == 0
    assert strategies.parse("snas").resolved()["temperature_end"] == 0.33


@pytest.mark.parametrize("text", ["defualt", "default:cost_weigth=0", "default:cost_weight"])
def test_a_strategy_that_is_misspelt_is_refused(text):
    with pytest.raises(UsageError):
        strategies.parse(text)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(100, (1, 50)), (400, (2, 100)), (4000, (20, 100)), (0, (1, 1))],
)
def test_a_search_is_as_long_as_its_budget(seconds, expected):
    assert strategies.length(seconds, a_batch=2, whole=100) == expected


def test_an_error_of_nni_is_told_by_its_line():
    with pytest.raises(Exception) as caught:
        NasBench201(8, 1).freeze({})
    place = strategies.line_of(caught.value)
    assert place.startswith("nni/")
    assert int(place.split(":")[1]) > 0


def test_a_mistake_of_a_benchmark_is_none_of_nnis():
    with pytest.raises(UsageError) as caught:
        strategies.parse("defualt")
    assert strategies.line_of(caught.value) is None


def double(number, log):
    """A job that leaves a trace."""
    with open(log, "a") as file:
        file.write(f"{number}\n")
    return {"double": 2 * number}


@pytest.mark.slow
def test_what_is_in_the_csv_is_not_run_again(tmp_path):
    path, log = tmp_path / "rows.csv", tmp_path / "log"
    jobs = [{"number": number, "log": str(log)} for number in range(3)]
    for _ in range(2):
        rows = list(runs.rows_of(jobs, double, path, workers=1))
        assert sorted(row["double"] for row in rows) == [0, 2, 4]
    assert log.read_text().split() == ["0", "1", "2"]
    assert json.loads(runs.read(path)[0]["job"]) in jobs

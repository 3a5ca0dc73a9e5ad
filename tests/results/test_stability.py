"""The one number of a network's stability, and the file that a training keeps it in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.results.stability import Stability, curve_of


def stability(*curves, minimize=False, chance=0.0, strengths=(0.0, 1.0, 2.0)):
    found = [curve_of(f"curve {n}", "unit", strengths, values) for n, values in enumerate(curves)]
    return Stability(metric="acc", minimize=minimize, chance=chance, examples=10, curves=found)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_index_is_1_undisturbed_0_at_guessing_and_between_them_with_any_number_of_classes(classes):
    guess = 1 / classes
    half = (0.9 + guess) / 2
    assert stability([0.9] * 3, chance=guess).index == pytest.approx(1)
    assert stability([0.9, guess, guess], chance=guess).index == pytest.approx(
        1 / 4
    )  # the first half falls to 0
    assert stability([0.9, half, half], chance=guess).index == pytest.approx((0.75 + 0.5) / 2)


def test_the_area_weighs_strengths_by_their_distance():
    curve = [0.8, 0.4, 0.4]
    assert stability(curve, strengths=(0.0, 1.0, 4.0)).index == pytest.approx((0.75 + 3 * 0.5) / 4)


def test_the_index_is_the_mean_over_the_curves():
    assert stability([0.8, 0.8, 0.8], [0.8, 0.4, 0.4]).index == pytest.approx((1 + 0.625) / 2)


def test_a_metric_that_is_minimised_counts_by_how_many_times_it_grows():
    assert stability([0.1, 0.2, 0.2], minimize=True).index == pytest.approx((0.75 + 0.5) / 2)
    assert stability([0.1, 0.05, 0.05], minimize=True).index == 1.0


def test_what_is_not_finite_counts_as_lost():
    assert stability([0.8, float("nan"), float("inf")]).index == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("values", "minimize", "chance"), [([0.1, 0.1, 0.1], False, 0.1), ([-1, 2, 3], True, 0)]
)
def test_a_network_that_is_no_better_than_guessing_has_no_index(values, minimize, chance):
    assert stability(values, minimize=minimize, chance=chance).index is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), st.booleans())
def test_an_index_is_between_0_and_1(values, minimize):
    index = stability(values, minimize=minimize).index
    assert index is None or 0 <= index <= 1 + 1e-12


def test_a_record_comes_back_from_its_folder_and_none_from_where_there_is_none(tmp_path):
    kept = stability([0.8, float("nan"), 0.3])
    kept.write(tmp_path)
    assert Stability.read(tmp_path) == kept
    assert Stability.read(tmp_path / "other") is None


def test_a_damaged_file_is_a_warning(tmp_path, caplog):
    (tmp_path / "stability.json").write_text("{}")
    assert Stability.read(tmp_path) is None
    assert "holds no stability" in caplog.text

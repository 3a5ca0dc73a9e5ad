"""Agreement of searches, label by label, and what the results of networks depend on."""

import math

import numpy as np
import pytest

from nni_gumbel.results.agreement import (
    agreements,
    chance_of,
    disagreement,
    entropy,
    fleiss_kappa,
    importance,
    pairwise_agreement,
)


def test_agreement_is_the_share_of_pairs_with_equal_settings_that_chose_alike():
    assert pairwise_agreement([["a", "a", "b"]]) == pytest.approx(1 / 3)
    assert pairwise_agreement([["a", "a"], ["b", "b"]]) == 1  # settings may choose differently
    assert pairwise_agreement([["a"], ["b"]]) is None


def test_kappa_is_that_of_fleiss_own_example():
    # Wikipedia's worked example of Fleiss' kappa: 10 subjects, 14 raters, 5 categories, 0.210.
    table = """0 0 0 0 14 / 0 2 6 4 2 / 0 0 3 5 6 / 0 3 9 2 0 / 2 2 8 1 1
               / 7 7 0 0 0 / 3 2 6 3 0 / 2 5 3 2 2 / 6 5 2 1 0 / 0 2 2 3 7"""
    groups = [
        [str(category) for category, count in enumerate(row.split()) for _ in range(int(count))]
        for row in table.split("/")
    ]
    assert fleiss_kappa(groups) == pytest.approx(0.210, abs=5e-4)


def test_kappa_of_a_single_setting_is_not_known():
    assert fleiss_kappa([["a", "b"]]) is None
    assert fleiss_kappa([["a", "a"], ["a", "a"]]) is None


def test_entropy_is_0_for_unanimity_and_log_k_for_equal_shares():
    assert entropy(["a", "a"]) == 0
    assert entropy(["a", "b", "c"]) == pytest.approx(math.log(3))


def test_the_chance_of_unanimity_is_that_of_drawing_the_same_candidate_each_time():
    # 20,000 draws: three standard deviations are 0.6 %.
    assert chance_of(1.0, [3], 4) == pytest.approx(1 / 16, abs=0.006)
    assert chance_of(1.0, [2, 2], 2) == pytest.approx(1 / 4, abs=0.01)


def test_importance_is_all_where_results_follow_the_choice_and_0_on_average_where_they_do_not():
    assert importance([("a", 0.9), ("a", 0.9), ("b", 0.5), ("b", 0.5)]) == pytest.approx(1)
    random = np.random.default_rng(0)
    shares = [
        importance([(str(n % 5), value) for n, value in enumerate(random.normal(size=30))])
        for _ in range(300)
    ]
    # Limited at 0, the mean is a little above; SS_b / SS_t would be 4 / 29 = 0.14.
    assert np.mean(shares) < 0.07


@pytest.mark.parametrize(
    "results", [[("a", 1), ("a", 2)], [("a", 1), ("b", 2)], [("a", 1), ("b", 1), ("a", 1)]]
)
def test_importance_is_not_known_for_one_choice_single_networks_or_no_spread(results):
    assert importance(results) is None


def test_each_label_is_said_to_be_determined_arbitrary_or_not_shown():
    networks = [
        {"op": "conv", "act": n, "skip": [0], "depth": 2 if n else 1} for n in ("relu", "elu", "silu", "")
    ]
    rows = agreements([networks], {"op": 3, "act": 4, "skip": 2, "depth": 9, "inner": 2})
    verdicts = {row.label: row.verdict for row in rows}
    assert verdicts["op"] == "determined by the data: conv"
    assert verdicts["act"].startswith("arbitrary")
    assert verdicts["skip"].startswith("not shown: chance agrees as often in 12")  # 1 / 8
    assert {row.label: row.chosen for row in rows}["inner"] == (("not used", 4),)


def test_without_a_second_seed_nothing_is_said():
    (row,) = agreements([[{"op": "conv"}], [{"op": "pool"}]], {"op": 2})
    assert row.agreement is None and row.verdict.startswith("not known")
    assert row.chosen == (("conv", 1), ("pool", 1))


def test_disagreement_is_the_share_of_examples_that_two_seeds_classify_differently():
    assert disagreement([[0, 1, 2, 3], [0, 1, 2, 0]]) == 1 / 4
    assert disagreement([[0, 1]]) is None and disagreement([[], []]) is None

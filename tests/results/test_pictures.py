"""The pictures of a report: what is drawn, with which words on the axes."""

import pytest

from nni_gumbel.results.agreement import agreements
from nni_gumbel.results.neighbours import Neighbour, Neighbours
from nni_gumbel.results.pictures import (
    SearchHistory,
    draw_agreement,
    draw_importance,
    draw_neighbours,
    draw_probabilities,
    draw_search,
    draw_stability,
)
from nni_gumbel.results.stability import Stability, curve_of

HISTORY = SearchHistory(
    "search A",
    {"temperature": [1.0, 0.5], "expected_flops": [9.0, 8.0], "chosen_probability": [0.5, 0.9], "val_acc": [0.1, 0.2]},
    {"op": {"conv": [0.5, 0.9], "pool": [0.5, 0.1]}, "skip": {"0": [0.5, 0.0], "1": [0.5, 1.0]}},
)  # fmt: skip


def test_probabilities_are_shades_with_a_row_for_every_candidate_and_a_dot_at_what_was_found():
    axes = draw_probabilities(HISTORY, {"op": "conv", "skip": [1]}).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv ●", "pool", "0", "1 ●"]
    assert [text.get_text() for text in axes.texts] == ["op", "skip"]
    values = axes.collections[0].get_array().reshape(4, 2)
    assert values.tolist() == [[0.5, 0.9], [0.5, 0.1], [0.5, 0.0], [0.5, 1.0]]
    assert axes.get_xlabel() == "epoch of the search"


def test_labels_that_no_page_has_room_for_are_counted():
    many = {f"label{n}": {str(k): [0.1] for k in range(50)} for n in range(10)}
    axes = draw_probabilities(SearchHistory("search A", {}, many), {}).axes[0]
    assert len(axes.get_yticklabels()) == 150 and "7 labels more" in axes.get_title()


def test_a_search_has_a_panel_for_each_number_that_it_reported():
    panels = {axes.get_title(): axes for axes in draw_search(HISTORY, "acc").axes}
    assert list(panels) == [
        "temperature", "expected flops", "discretisation gap: 1 - mean probability of what is chosen",
        "validation acc of the mixture",
    ]  # fmt: skip
    gap = panels["discretisation gap: 1 - mean probability of what is chosen"].lines[0]
    assert gap.get_ydata().tolist() == pytest.approx([0.5, 0.1])
    assert draw_search(SearchHistory("search A", {}, {}), "acc") is None


def stability(left, names=("input noise", "FGSM")):
    curves = [curve_of(name, "share", (0.0, 1.0), (0.9, left)) for name in names]
    return Stability(metric="acc", minimize=False, chance=0.1, examples=9, curves=curves)


def test_stability_is_the_mean_over_the_seeds_a_panel_for_each_disturbance():
    figure = draw_stability({"one": [stability(0.4), stability(0.6)], "random": [stability(0.2)], "none": []})
    assert [axes.get_title() for axes in figure.axes] == ["input noise", "FGSM"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["one"].get_ydata().tolist() == pytest.approx([0.9, 0.5])
    assert lines["random"].get_ydata().tolist() == pytest.approx([0.9, 0.2])
    # Told apart without colour.
    assert len({(lines[name].get_marker(), lines[name].get_linestyle()) for name in ("one", "random")}) == 2
    assert figure.axes[0].get_ylabel() == "validation acc" and figure.axes[0].get_xlabel() == "share"
    assert draw_stability({"one": []}) is None


def test_agreement_is_bars_with_their_number_and_chance():
    networks = [{"op": "conv"}, {"op": "conv"}, {"op": "pool"}]
    (axes,) = draw_agreement(agreements([networks], {"op": 4})).axes
    assert [text.get_text() for text in axes.texts] == ["0.33"]
    assert list(axes.lines[0].get_xdata()) == [1 / 4, 1 / 4]


def test_importance_is_a_bar_for_each_kind_of_networks_told_apart_without_colour():
    figure = draw_importance({"4 trained": {"op": 0.5, "act": None}, "64 sampled": {"op": 0.25, "act": 0.75}})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["op", "act"]
    assert [text.get_text() for text in axes.texts] == ["0.50", "not known", "0.25", "0.75"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["4 trained", "64 sampled"]
    assert [bars.patches[0].get_hatch() for bars in axes.containers] == [None, "////"]


def test_neighbours_are_points_beside_the_line_of_the_network():
    found = [("op", "pool", 0.7), ("op", "none", None), ("act", "elu", 0.9)]
    neighbours = Neighbours(
        name="network-1", retrained=False, examples=9, value=0.8,
        found=[Neighbour(label=label, choice=choice, parameters=1, value=value) for label, choice, value in found],
    )  # fmt: skip
    (axes,) = draw_neighbours(neighbours, "acc", 0.05).axes
    points = {line.get_gid(): list(line.get_xdata()) for line in axes.lines if line.get_gid()}
    assert points == {"op=pool": [0.7], "act=elu": [0.9]}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["op", "act"]
    assert axes.get_xlabel() == "validation acc, with the trained weights"
    assert draw_neighbours(neighbours.model_copy(update={"found": ()}), "acc", 0.05) is None

"""The picture of a network: its steps, what reaches the output, and the candidates that were not chosen."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableConv2d, Repeat
from torch import nn

from nni_gumbel.results.diagram import draw_network, steps_of
from nni_gumbel.results.example import Example

IMAGES = Example((torch.zeros(2, 1, 6, 6),))


class Space(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = MutableConv2d(1, nni.choice("width", [2, 4]), 1)
        width = nni.choice("width", [2, 4])
        self.op = LayerChoice(
            {"conv": MutableConv2d(width, width, 3, padding=1), "same": nn.Identity()}, label="op"
        )
        self.skip = InputChoice(2, n_chosen=1, label="skip")
        self.blocks = Repeat(lambda index: nn.ReLU(), (1, 3), label="depth")

    def forward(self, x):
        first = self.stem(x)
        second = self.op(first)
        return self.blocks(self.skip([second, second + first])).mean((2, 3))


ARCHITECTURE = {"width": 4, "op": "conv", "skip": [0], "depth": 2}


def no_flops(module, args, kwargs, output):
    return 7 * len(output)


def steps(architecture=ARCHITECTURE, space=None, example=IMAGES):
    return steps_of(space or Space(), architecture, example, no_flops)


def test_the_steps_are_the_layers_and_functions_of_the_network_with_their_shapes_and_costs():
    found = {step.title: step.detail for step in steps()}
    assert list(found) == [
        "input", "Conv2d 1→4, 1×1", "Conv2d 4→4, 3×3", "add", "input 0 of the choice", "ReLU", "mean",
        "output",
    ]  # fmt: skip
    assert found["input"] == "1×6×6" and found["mean"] == "4"
    assert found["Conv2d 4→4, 3×3"] == "4×6×6 · 148 parameters · 7 FLOPs"


def test_what_only_leads_to_an_input_that_was_not_chosen_is_not_taken():
    assert [step.title for step in steps() if not step.taken] == ["add"]
    assert all(step.taken for step in steps(ARCHITECTURE | {"skip": [1]}))


def test_each_choice_stands_once_beside_its_step_with_the_candidates_that_were_not_chosen():
    choices = {
        label: (step.title, chosen, others) for step in steps() for label, chosen, others in step.choices
    }
    assert choices["op"] == ("Conv2d 4→4, 3×3", "conv", ["same"])
    assert choices["skip"] == ("input 0 of the choice", "0", ["1"])
    assert choices["width"] == ("Conv2d 1→4, 1×1", "4", ["2"])
    assert choices["depth"] == ("ReLU", "2", ["1", "3"])


class Untraceable(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)], label="layer")
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.layer(x)) if float(x.sum()) >= 0 else self.layer(x)


def test_a_network_that_cannot_be_traced_is_drawn_as_the_sequence_of_its_layers():
    found = steps({"layer": 1}, Untraceable(), Example((torch.zeros(2, 4),)))
    assert [step.title for step in found] == ["Linear 4→3", "ReLU"]
    assert found[0].choices == [("layer", "1", ["0"])] and found[1].inputs == [(0, True)]


@pytest.mark.parametrize("architecture", [ARCHITECTURE, ARCHITECTURE | {"skip": [1], "op": "same"}])
def test_the_picture_has_a_box_for_every_step_and_every_candidate(architecture):
    found = steps(architecture)
    axes = draw_network(found, "title").axes[0]
    words = {text.get_text() for text in axes.texts}
    assert {step.title for step in found} <= words
    assert f"op = {architecture['op']}" in words and {"2", "1", "3"} <= words
    grey = [text for text in axes.texts if text.get_text() == "add"]
    assert grey[0].get_color() == ("0.6" if architecture["skip"] == [0] else "black")

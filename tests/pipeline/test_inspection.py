"""What `nni-gumbel inspect` says of a space is what enumeration, NNI's freeze and the supernet say."""

import itertools
import sys
import textwrap
from functools import partialmethod

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, plans
from hypothesis import HealthCheck, assume, given, settings
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableConv2d,
    MutableDropout,
    MutableLinear,
    Repeat,
)
from torch import nn

from nni_gumbel import relax
from nni_gumbel.cli import main
from nni_gumbel.complexity.counting import number_of_networks, number_of_samples
from nni_gumbel.complexity.params import count_parameters, expected_parameters
from nni_gumbel.pipeline import inspection as inspecting
from nni_gumbel.pipeline.inspection import added_costs, example_of, inspect_space
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.structure import used_part

EXAMPLE = Example((torch.zeros(2, 3, 8, 8),))


class Everything(ModelSpace):
    """A width, a kernel, a depth, layers within layers, and inputs of every kind."""

    def __init__(self, dim=4):
        super().__init__()
        width = nni.choice("width", [dim, 2 * dim])
        self.stem = MutableConv2d(3, width, nni.choice("kernel", [1, 3]), padding="same")
        self.blocks = Repeat(
            lambda i: LayerChoice(
                [MutableConv2d(width, width, 3, padding=1), nn.Identity()], label=f"block{i}"
            ),
            (1, 2),
            label="depth",
        )
        inner = LayerChoice([nn.Linear(8, 8), nn.Tanh()], label="inner")
        self.rows = LayerChoice({"plain": nn.Identity(), "more": inner}, label="rows")
        self.one, self.two, self.gates = (
            InputChoice(3, n_chosen=number, label=label)
            for number, label in ((1, "one"), (2, "two"), (None, "gates"))
        )
        self.places = InputChoice(3, n_chosen=2, reduction="concat", label="places")
        self.dropout = MutableDropout(nni.choice("rate", [0.0, 0.5]))
        self.head = MutableLinear(2 * width, 10)

    def forward(self, x):
        x = self.rows(self.blocks(self.stem(x)))
        for choice in (self.one, self.two, self.gates, self.places):
            x = choice([x, 2 * x, 3 * x])
        return self.head(self.dropout(x.mean((2, 3))))


@pytest.fixture(scope="module")
def inspection():
    reference = SpaceReference(__name__, "Everything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpaceReference, "build", partialmethod(SpaceReference.build, Everything))
        return inspect_space(reference, EXAMPLE)


def test_every_choice_says_truly_how_it_is_executed(inspection):
    told = {choice.label: " / ".join(choice.executions) for choice in inspection.choices}
    assert "merged: its variants run as one operation (3 modules)" in told["width"]
    assert told["kernel"].startswith("Conv2d, merged")
    assert told["depth"].startswith("Repeat, depth prefix: the 2 blocks run once")
    assert told["rows"].startswith("LayerChoice, mixture: every candidate runs")
    assert told["one"] == "InputChoice, mixture: the 3 inputs are added by weight"
    assert told["two"].endswith("which add up to 2")
    assert told["gates"].startswith("InputChoice, gates")
    assert told["places"].startswith("InputChoice, slots: 2 places")
    assert told["rate"] == "Dropout, mixture: its 2 variants run as 2 operations with parts of one weight"


def test_the_smallest_and_the_largest_network_are_those_of_nnis_freeze(inspection):
    space = Everything()
    shared = {"one": [0], "two": [0, 1], "gates": [0], "places": [0, 1], "rate": 0.0}
    small = {"width": 4, "kernel": 1, "depth": 1, "block0": 1, "block1": 1, "rows": "plain", "inner": 1}
    large = {"width": 8, "kernel": 3, "depth": 2, "block0": 0, "block1": 0, "rows": "more", "inner": 0}
    sizes = tuple(count_parameters(space.freeze(sample | shared)) for sample in (small, large))
    assert inspection.ranges["parameters"] == sizes
    assert inspection.ranges["FLOPs"][0] < inspection.ranges["FLOPs"][1]
    assert not inspection.missing


def test_a_candidate_costs_what_it_adds_to_the_cheapest_one(inspection):
    added = {
        choice.label: {candidate: added["parameters"] for candidate, added in choice.added.items()}
        for choice in inspection.choices
    }
    # 3 more inputs of 3 x 3 kernels of which 1 entry was there, for 4 or 8 outputs.
    assert added["kernel"] == {"1": (0, 0), "3": (3 * 8 * 4, 3 * 8 * 8)}
    assert added["rows"] == {"plain": (0, 0), "more": (0, 72)}
    # Only where it is used.
    assert added["inner"] == {"0": (72, 72), "1": (0, 0)}
    assert added["depth"] == {"1": (0, 0), "2": (0, 9 * 64 + 8)}
    assert added["two"] == {"0": (0, 0), "1": (0, 0), "2": (0, 0)}


def every_sample(space):
    variables = space.simplify().values()
    values = [
        [list(value) for value in v.grid() if value] if hasattr(v, "n_chosen") else v.values
        for v in variables
    ]
    return [dict(zip(space.simplify(), chosen)) for chosen in itertools.product(*values)]


@given(plan=plans)
@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_networks_are_counted_as_listing_them_counts(plan):
    space = GeneratedSpace(plan)
    distribution = Distribution(space)
    assume(number_of_samples(distribution) <= 60)
    samples = every_sample(space)
    assert number_of_samples(distribution) == len(samples)
    assert number_of_networks(space, distribution) == len({str(used_part(space, one)) for one in samples})


def test_parts_that_share_labels_through_a_third_one_are_counted_together():
    def layer(label, *shared):
        inner = [LayerChoice([nn.Tanh(), nn.ReLU()], label=one) for one in shared]
        return LayerChoice([nn.Identity(), nn.Sequential(*inner)], label=label)

    class Chain(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(layer("b", "x", "y"), layer("a", "x"), layer("c", "y"))

    space = Chain()
    networks = {str(used_part(space, sample)) for sample in every_sample(space)}
    assert number_of_networks(space, Distribution(space)) == len(networks)


@pytest.mark.slow
@given(plan=plans)
@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
def test_added_costs_are_the_differences_of_networks_that_differ_in_one_choice(plan):
    space = GeneratedSpace(plan)
    distribution = Distribution(space)
    assume(number_of_samples(distribution) <= 40)
    samples = every_sample(space)
    sizes = [count_parameters(space.freeze(sample)) for sample in samples]
    for label, variable in distribution.variables.items():
        alike = {}
        for sample, size in zip(samples, sizes):
            rest = str({key: value for key, value in sample.items() if key != label})
            alike.setdefault(rest, []).append((sample[label], size))
        added = [
            (value, size - min(size for _, size in group))
            for group in alike.values()
            for value, size in group
        ]
        found = added_costs(distribution, expected_parameters(space), label, is_always_used=True)
        for candidate, range_of_candidate in zip(variable.values, found):
            own = [
                cost for value, cost in added if candidate in (value if isinstance(value, list) else [value])
            ]
            assert range_of_candidate == (min(own), max(own))


SPACES = """
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from torch import nn


    class Deep(ModelSpace):
        def __init__(self, layers=40):
            super().__init__()
            self.layers = nn.Sequential(*(
                LayerChoice({"a_linear_layer": nn.Linear(4, 4), "nothing": nn.Identity()}, label=f"a_long_name_{i}")
                for i in range(layers)
            ))

        def forward(self, x):
            return self.layers(x)


    class Nothing(ModelSpace):
        pass
"""


@pytest.fixture
def spaces(tmp_path, monkeypatch):
    (tmp_path / "inspected_spaces.py").write_text(textwrap.dedent(SPACES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def test_a_space_of_forty_choices_is_read_in_a_terminal_of_a_hundred_columns(spaces, capsys):
    assert main(["inspect", "inspected_spaces:Deep", "--input", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "inspected_spaces:Deep"
    assert lines[1] == f"{2**40:,} networks, 40 choices"
    assert max(map(len, lines)) <= 100 and len(lines) < 40
    assert any(line.split() == ["parameters", "0", "800"] for line in lines)
    assert any(line.split() == ["a_linear_layer", "20", "20"] for line in lines)
    assert all(
        any(f"a_long_name_{i}," in line or line.endswith(f"_{i}") for line in lines) for i in range(40)
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["inspected_spaces:Deep"], "required: --input"),
        (["inspected_spaces:Deep", "--input", "4x4"], "--input: '4x4' is no shape"),
        (["inspected_spaces:Deep", "--input", "0"], "--input: '0' is no shape"),
        (["inspected_spaces:Deep", "--input", "4", "--batch", "0"], "--batch: 0"),
        (["inspected_spaces:Deep", "--input", "5"], "inspected_spaces:Deep fails on inputs of shape (5,)"),
        (["inspected_spaces:Deep", "layer=3", "--input", "4"], "its arguments are (layers=40)"),
        (["inspected_spaces:Nothing", "--input", "4"], "has nothing to choose"),
        (["inspected_spaces:Missing", "--input", "4"], "has no 'Missing'"),
        (["nowhere:Deep", "--input", "4"], "there is no module 'nowhere'"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_exit_code_2(words, line, spaces, capsys):
    assert main(["inspect", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("nni-gumbel: ") and err.count("\n") == 1 and line in err


def test_inputs_of_several_shapes_may_be_whole_numbers():
    numbers, categories = example_of(["4", "2,3:int"], 5).args
    assert numbers.shape == (5, 4) and numbers.dtype == torch.float32
    assert categories.shape == (5, 2, 3) and categories.dtype == torch.int64


class SomeAlike(ModelSpace):
    """Two of three candidates cost the same."""

    candidates = {"line": nn.Linear(4, 4), "relu": nn.ReLU(), "tanh": nn.Tanh()}

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice(self.candidates, label="layer")

    def forward(self, x):
        return self.layer(x)


def test_candidates_that_cost_the_same_are_priced_each():
    space = SomeAlike()
    distribution = Distribution(space)
    assert added_costs(distribution, expected_parameters(space), "layer", True) == [(20, 20), (0, 0), (0, 0)]


def test_candidates_that_run_as_one_operation_are_named():
    class Linear(SomeAlike):
        candidates = {"line": nn.Linear(4, 4), "nothing": nn.Identity(), "norm": nn.LayerNorm(4)}

    space = Linear()
    distribution = relax(space)
    (choice,) = inspecting._choices(space, distribution, {})
    merged = "line, nothing as one linear layer; norm alone: neither linear, with a padding of zeros, nor elementwise"
    assert choice.executions == (f"LayerChoice, merged: {merged}",)


@given(plan=plans)
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
def test_every_choice_of_a_space_that_can_be_relaxed_is_read_by_a_module_that_says_how(plan):
    space = GeneratedSpace(plan)
    distribution = relax(space)
    told = {
        label
        for module in space.modules()
        for labels, _ in inspecting._executions(module)
        for label in labels
    }
    assert told == set(distribution.variables)

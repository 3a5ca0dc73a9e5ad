"""NNI's ``penalty``: the exact expectation of a profiler's cost, with a gradient in the probabilities."""

import itertools
import math

import nni
import pytest
import torch
from nni.nas.nn.pytorch import (
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLinear,
    Repeat,
)
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty, SampleProfilerPenalty
from nni.nas.profiler import ExpressionProfiler, Profiler
from nni.nas.profiler.pytorch.flops import FlopsProfiler, NumParamsProfiler
from torch import nn

from nni_gumbel import UsageError
from nni_gumbel.complexity.expression import expectation_of
from nni_gumbel.search.nni_arguments import Penalty, describe_penalty


class Space(ModelSpace):
    """Widths and kernels, a layer choice with a choice inside, a depth: all that NNI's profilers know."""

    def __init__(self):
        super().__init__()
        width, kernel = nni.choice("width", [4, 8, 12]), nni.choice("kernel", [1, 3])
        self.stem = MutableConv2d(3, width, kernel_size=kernel, padding=kernel // 2)
        self.layer = LayerChoice(
            {"conv": MutableConv2d(width, width, nni.choice("inner", [3, 5]), padding=2), "none": nn.ReLU()},
            label="layer",
        )
        self.blocks = Repeat(lambda i: MutableConv2d(width, width, 1), nni.choice("depth", [1, 2, 3]))
        self.norm = MutableBatchNorm2d(width)
        self.head = MutableLinear(width, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.layer(self.stem(x)))).mean((2, 3)))


class Profile(ExpressionProfiler):
    """Any expression as a profiler."""

    def __init__(self, expression):
        self.expression = expression


@pytest.fixture(scope="module")
def space():
    return Space()


@pytest.fixture(scope="module", params=[FlopsProfiler, NumParamsProfiler])
def profiler(request, space):
    return request.param(space, torch.zeros(1, 3, 8, 8))


def random_probabilities(variables, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        label: torch.softmax(2 * torch.randn(len(v.values), generator=generator, dtype=torch.float64), -1)
        for label, v in variables.items()
    }


def networks(variables):
    """Every sample, with the index of its candidate for each label."""
    for indices in itertools.product(*(range(len(v.values)) for v in variables.values())):
        index = dict(zip(variables, indices))
        yield {label: variables[label].values[k] for label, k in index.items()}, index


def test_the_expectation_is_the_mean_over_all_networks(space, profiler):
    variables = space.simplify()
    probabilities = random_probabilities(variables)
    mean = sum(
        profiler.profile(sample) * math.prod(float(probabilities[label][k]) for label, k in index.items())
        for sample, index in networks(variables)
    )
    expected = expectation_of(profiler.expression, variables)(probabilities)
    assert float(expected) == pytest.approx(mean, rel=1e-12)


def test_a_certain_network_costs_what_the_profiler_says(space, profiler):
    variables = space.simplify()
    expected = expectation_of(profiler.expression, variables)
    for sample, index in itertools.islice(networks(variables), 0, None, 7):
        certain = {label: torch.eye(len(v.values))[index[label]] for label, v in variables.items()}
        assert float(expected(certain)) == profiler.profile(sample)


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: a - b * 2,
        lambda a, b: -(a + 1) * (b - a),
        lambda a, b: a // b + a / b,
        lambda a, b: nni.choice("a", [1, 2, 3]) * b + (a > b) * 5,
        lambda a, b: type(a).switch_case(a, {1: b * b, 2: 7.5, 3: a + b}),
        lambda a, b: type(a).max(a, b),
        lambda a, b: 3.25,
    ],
)
def test_every_kind_of_expression_has_its_expectation(build):
    a, b = nni.choice("a", [1, 2, 3]), nni.choice("b", [4, 1])
    variables = {"a": a, "b": b}
    expression, probabilities = build(a, b), random_probabilities({"a": a, "b": b})
    mean = sum(
        (expression.evaluate(sample) if hasattr(expression, "evaluate") else expression)
        * float(probabilities["a"][index["a"]] * probabilities["b"][index["b"]])
        for sample, index in networks(variables)
    )
    assert float(expectation_of(expression, variables)(probabilities)) == pytest.approx(mean)


def test_the_expectation_has_the_gradient_of_a_function_of_the_probabilities(space, profiler):
    variables = space.simplify()
    expected = expectation_of(profiler.expression, variables)
    logits = [p.log().requires_grad_() for p in random_probabilities(variables).values()]
    assert torch.autograd.gradcheck(
        # In units of ten thousand, so that finite differences have digits left.
        lambda *all_logits: expected(dict(zip(variables, (x.softmax(-1) for x in all_logits)))) / 1e4,
        logits,
    )


def test_a_size_that_formally_depends_on_every_kernel_before_it_is_no_obstacle():
    class Deep(ModelSpace):
        def __init__(self):
            super().__init__()
            kernels = [nni.choice(f"kernel{i}", [1, 3, 5]) for i in range(12)]
            self.layers = nn.Sequential(*(MutableConv2d(2, 2, k, padding=k // 2) for k in kernels))

        def forward(self, x):
            return self.layers(x)

    space = Deep()
    variables = space.simplify()
    profiler = FlopsProfiler(space, torch.zeros(1, 2, 8, 8))
    uniform = {label: torch.full((3,), 1 / 3, dtype=torch.float64) for label in variables}
    # Per layer 64 pixels, 2 outputs, k * k * 2 inputs and a bias.
    mean = 12 * 64 * 2 * (2 * (1 + 9 + 25) / 3 + 1)
    assert float(expectation_of(profiler.expression, variables)(uniform)) == pytest.approx(mean)


def test_a_part_that_depends_on_too_many_combinations_is_refused_in_one_line():
    choices = [nni.choice(f"c{i}", list(range(1, 9))) for i in range(5)]
    largest = type(choices[0]).max(*choices)
    with pytest.raises(UsageError, match=r"32,768 combinations of choices \('c0', 'c1', 'c2' …\)") as caught:
        expectation_of(largest, {c.label: c for c in choices})
    assert "\n" not in str(caught.value)


def test_a_profiler_of_another_space_is_refused_in_one_line(space):
    for other in (nni.choice("elsewhere", [1, 2]), nni.choice("width", [4, 8])):
        with pytest.raises(UsageError, match=f"depends on a choice '{other.label}' that the space"):
            expectation_of(other * 2, space.simplify())


@pytest.mark.parametrize("nonlinear", ["linear", "positive", "negative", "absolute"])
@pytest.mark.parametrize("aggregate", ["add", "mul"])
@pytest.mark.parametrize("baseline", [1.0, 3.0])
def test_the_penalty_is_nnis_formula(nonlinear, aggregate, baseline):
    choice = nni.choice("a", [1, 2, 4])
    words = dict(baseline=baseline, scale=0.7, nonlinear=nonlinear, aggregate=aggregate)
    description = describe_penalty({"profiler": Profile(choice * 1.0), **words})
    penalty = Penalty(description, {"a": choice}, lambda probabilities: torch.zeros(()))
    probabilities = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    loss, details = penalty(torch.tensor(2.0, dtype=torch.float64), {"a": probabilities})
    nnis, nnis_details = ExpectationProfilerPenalty(Profile(choice * 1.0), **words)(
        torch.tensor(2.0), {"a": dict(zip([1, 2, 4], probabilities.tolist()))}
    )
    assert float(loss) == pytest.approx(float(nnis))
    assert {name: float(value) for name, value in details.items()} == pytest.approx(
        {name: float(value) for name, value in nnis_details.items()}
    )


def test_nnis_own_penalty_still_has_no_gradient_so_that_ours_is_needed():
    logits = torch.zeros(3, requires_grad=True)
    choice = nni.choice("a", [1, 2, 4])
    nnis = ExpectationProfilerPenalty(Profile(choice * 1.0), baseline=1.0)
    # What NNI's search hands over: DifferentiableMixedLayer.export_probs ends in tolist().
    loss, _ = nnis(torch.tensor(2.0), {"a": dict(zip([1, 2, 4], torch.softmax(logits, -1).tolist()))})
    assert not loss.requires_grad
    ours = Penalty(nnis, {"a": choice}, lambda probabilities: torch.zeros(()))
    ours(torch.tensor(2.0), {"a": torch.softmax(logits, -1)})[0].backward()
    assert logits.grad.abs().min() > 0


def test_the_number_of_parameters_is_counted_exactly(space):
    def exact(probabilities):
        return torch.tensor(123.0)

    variables = space.simplify()
    profiler = NumParamsProfiler(space, torch.zeros(1, 3, 8, 8))
    for named in ("params", profiler):
        description = describe_penalty({"profiler": named, "baseline": 1e4})
        assert Penalty(description, variables, exact).expected_cost is exact
    without_norms = NumParamsProfiler(space, torch.zeros(1, 3, 8, 8), count_normalization=False)
    description = describe_penalty({"profiler": without_norms, "baseline": 1e4})
    assert Penalty(description, variables, exact).expected_cost is not exact


class Latency(Profiler):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        ({"profiler": Profile(1.0)}, "baseline is missing"),
        ({"baseline": 1.0}, "profiler is missing"),
        ({"profiler": Profile(1.0), "baseline": 1.0, "weight": 2}, "weight is unknown"),
        ({"profiler": Profile(1.0), "baseline": 0}, "baseline is 0; give a number greater than 0"),
        ({"profiler": Profile(1.0), "baseline": "1e6"}, "baseline is '1e6'"),
        ({"profiler": Profile(1.0), "baseline": 1, "scale": math.nan}, "scale is nan"),
        ({"profiler": Profile(1.0), "baseline": 1, "nonlinear": "cubic"}, "nonlinear is 'cubic'"),
        ({"profiler": Profile(1.0), "baseline": 1, "aggregate": "max"}, "aggregate is 'max'"),
        ({"profiler": Latency(), "baseline": 1}, "profiler Latency is no expression"),
        ({"profiler": "flops", "baseline": 1}, "profiler 'flops' is no expression"),
        (SampleProfilerPenalty(Profile(1.0), 1.0), "SampleProfilerPenalty has no expectation"),
        (0.5, "float has no expectation"),
    ],
)
def test_a_wrong_penalty_is_refused_in_one_line(penalty, words):
    with pytest.raises(UsageError) as caught:
        describe_penalty(penalty)
    line = str(caught.value)
    assert line.startswith("penalty: ") and words in line and "\n" not in line

"""NNI's ``penalty``: its formula, of the expected cost as it is counted here."""

import math

import nni
import pytest
import torch
from nni.nas.nn.pytorch import ModelSpace, MutableLinear
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty, SampleProfilerPenalty
from nni.nas.profiler import ExpressionProfiler
from nni.nas.profiler.pytorch.flops import FlopsProfiler, NumParamsProfiler

from nni_gumbel import UsageError
from nni_gumbel.search.nni_arguments import described_penalty


class Space(ModelSpace):
    """One width."""

    def __init__(self):
        super().__init__()
        self.head = MutableLinear(4, nni.choice("width", [1, 2]))

    def forward(self, x):
        return self.head(x)


class Profile(ExpressionProfiler):
    """Any expression as a profiler."""

    def __init__(self, expression):
        self.expression = expression


@pytest.mark.parametrize("nonlinear", ["linear", "positive", "negative", "absolute"])
@pytest.mark.parametrize("aggregate", ["add", "mul"])
@pytest.mark.parametrize("baseline", [1.0, 3.0])
def test_the_penalty_is_nnis_formula(nonlinear, aggregate, baseline):
    words = dict(baseline=baseline, scale=0.7, nonlinear=nonlinear, aggregate=aggregate)
    probabilities = [0.2, 0.5, 0.3]
    cost = torch.tensor(sum(p * value for p, value in zip(probabilities, [1, 2, 4])), requires_grad=True)
    loss, details = described_penalty({"profiler": "params", **words})(torch.tensor(2.0), cost)
    nnis, nnis_details = ExpectationProfilerPenalty(Profile(nni.choice("a", [1, 2, 4]) * 1.0), **words)(
        torch.tensor(2.0), {"a": dict(zip([1, 2, 4], probabilities))}
    )
    assert float(loss) == pytest.approx(float(nnis)) and loss.requires_grad
    assert {name: float(value) for name, value in details.items()} == pytest.approx(
        {name: float(value) for name, value in nnis_details.items()}
    )


def test_nnis_profilers_stand_for_the_costs_that_are_counted_here():
    space, x = Space(), torch.zeros(1, 4)
    named = {
        "params": "params",
        "flops": "flops",
        NumParamsProfiler(space, x): "params",
        FlopsProfiler(space, x): "flops",
    }
    for profiler, word in named.items():
        assert described_penalty({"profiler": profiler, "baseline": 1e4}).word == word
    with pytest.raises(UsageError, match="FlopsProfiler counts by options of its own"):
        described_penalty({"profiler": FlopsProfiler(space, x, count_bias=False), "baseline": 1e4})
    given = ExpectationProfilerPenalty(FlopsProfiler(space, x), 3.0, nonlinear="positive")
    penalty = described_penalty(given)
    assert (penalty.word, penalty.baseline, penalty.nonlinear) == ("flops", 3.0, "positive")


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
        ({"profiler": Profile(1.0), "baseline": 1}, "profiler Profile counts neither"),
        ({"profiler": "time", "baseline": 1}, "profiler 'time' counts neither"),
        (SampleProfilerPenalty(Profile(1.0), 1.0), "SampleProfilerPenalty has no expectation"),
        (0.5, "float has no expectation"),
    ],
)
def test_a_wrong_penalty_is_refused_in_one_line(penalty, words):
    with pytest.raises(UsageError) as caught:
        described_penalty(penalty)
    line = str(caught.value)
    assert line.startswith("penalty: ") and words in line and "\n" not in line

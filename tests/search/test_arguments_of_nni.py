"""What NNI's ``DARTS`` and ``GumbelDARTS`` take by name, in every type that they take it in."""

import inspect
import subprocess
import sys

import pytest
from nni.nas.oneshot.pytorch.differentiable import LinearTemperatureScheduler
from nni.nas.strategy import DARTS, GumbelDARTS

from nni_gumbel import GumbelSearch, UsageError
from nni_gumbel.search.nni_arguments import settings_of


def temperatures(**arguments):
    settings = GumbelSearch(**arguments).settings
    return settings.temperature_start, settings.temperature_end, settings.temperature_schedule


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0.5, (0.5, 0.5, "linear")),
        (1, (1.0, 1.0, "linear")),
        ((1.0, 0.33), (1.0, 0.33, "linear")),
        ([2, 1], (2.0, 1.0, "linear")),
        ({"init": 1.0, "min": 0.33}, (1.0, 0.33, "linear")),
        (LinearTemperatureScheduler(4.0, 0.1), (4.0, 0.1, "linear")),
        (None, (1.0, 0.4, "exponential")),
    ],
)
def test_a_temperature_is_taken_in_every_form_that_nni_takes(given, meant):
    assert temperatures(temperature=given) == meant


class Steps(LinearTemperatureScheduler):
    def step(self, current, total=None):
        return 1.0


@pytest.mark.parametrize(
    "given",
    [
        0.0,
        (1.0, 0),
        LinearTemperatureScheduler(1.0, 0.0),
        (0.5, 1.0),
        (1.0, 0.5, 0.1),
        (1.0, "low"),
        True,
        float("nan"),
        {"init": 1.0},
        {"init": 1.0, "min": 0.1, "max": 2.0},
        "cosine",
        Steps(1.0, 0.5),
    ],
)
def test_a_wrong_temperature_is_refused_in_one_line(given):
    with pytest.raises(UsageError) as caught:
        GumbelSearch(temperature=given)
    line = str(caught.value)
    assert line.startswith(f"temperature: {given!r} is no temperature") and "\n" not in line


def test_a_temperature_said_twice_is_refused():
    with pytest.raises(UsageError, match="temperature: given together with temperature_end"):
        GumbelSearch(temperature=1.0, temperature_end=0.1)


def test_no_limit_of_the_gradient_is_none_as_in_nni():
    assert settings_of({"gradient_clip_val": None}) == {"gradient_clip_val": 0.0}
    assert GumbelSearch(gradient_clip_val=None).gradient_clip_val is None
    assert GumbelSearch(gradient_clip_val=5.0).gradient_clip_val == 5.0


def test_every_argument_of_nnis_strategies_is_accepted():
    values = dict(
        arc_learning_rate=1e-3,
        gradient_clip_val=3.0,
        log_prob_every_n_step=7,
        warmup_epochs=2,
        penalty={"profiler": "params", "baseline": 2.0},
        temperature=(2.0, 1.0),
        mutation_hooks=[lambda *arguments: None],
    )
    named = {*inspect.signature(DARTS).parameters, *inspect.signature(GumbelDARTS).parameters} - {"kwargs"}
    assert named | {"mutation_hooks"} == set(values)
    GumbelDARTS(**values)
    strategy = GumbelSearch(**values)
    for name in ("arc_learning_rate", "gradient_clip_val", "log_prob_every_n_step", "warmup_epochs"):
        assert getattr(strategy, name) == values[name] == getattr(strategy.settings, name)
    assert strategy.penalty.baseline == 2.0 and strategy.extra_mutation_hooks == values["mutation_hooks"]


def test_an_unknown_argument_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match="warmup_epoch: there is no such setting; did you mean warmup_epochs"
    ):
        GumbelSearch(warmup_epoch=2)


def test_a_penalty_takes_the_place_of_the_cost_of_parameters():
    penalty = {"profiler": "params", "baseline": 1e5}
    assert GumbelSearch(cost_weight=0.2).settings.cost_weight == 0.2
    assert GumbelSearch(penalty=penalty).settings.cost_weight == 0
    assert GumbelSearch(penalty=penalty, cost_weight=0.2).settings.cost_weight == 0.2


@pytest.mark.slow
def test_the_strategy_can_be_the_first_thing_that_is_imported():
    # NNI's two packages import each other: in the wrong order its DARTS is a class that fails.
    program = "from nni_gumbel import GumbelSearch; GumbelSearch(warmup_epochs=1)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

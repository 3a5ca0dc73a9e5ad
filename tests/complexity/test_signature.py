"""A layer's entry in a table of latencies is its own: of its settings and functions, in every process alike."""

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from argument_spaces import Space
from nni.nas.nn.pytorch import LayerChoice
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity import latency
from nni_gumbel.complexity.latency import expected_latency, signature_of

X = (torch.zeros(2, 3),)


class Applies(nn.Module):
    def __init__(self, function, name="function"):
        super().__init__()
        setattr(self, name, function)
        self._attribute = name

    def forward(self, x):
        return getattr(self, self._attribute)(x)


def times(factor):
    return lambda x: x * factor


def doubled(x):
    return 2 * x


def tripled(x):
    return 3 * x


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


PAIRS = {
    "functions": (lambda: doubled, lambda: tripled),
    "functions of torch": (lambda: torch.sin, lambda: torch.cos),
    "functional": (lambda: nn.functional.relu, lambda: nn.functional.gelu),
    "classes": (lambda: nn.ReLU, lambda: nn.GELU),
    "numbers": (lambda: 1, lambda: 2),
    "modules": (lambda: [nn.AvgPool1d(1)], lambda: [nn.AvgPool1d(3)]),
    "modules in modules": (
        lambda: [nn.Sequential(nn.Linear(3, 3))],
        lambda: [nn.Sequential(nn.Linear(3, 4))],
    ),
    "in lists": (lambda: [torch.sin], lambda: [torch.cos]),
    "in dicts": (lambda: {"a": doubled}, lambda: {"a": tripled}),
}


CASES = [(kind, name) for kind in PAIRS for name in ("function", "_function")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_layers_that_differ_in_a_function_alone_have_two_signatures_and_those_that_do_not_have_one(
    kind, name
):
    first, second = (signature_of(Applies(make(), name), X, {}) for make in PAIRS[kind])
    assert first != second
    assert signature_of(Applies(PAIRS[kind][0](), name), X, {}) == first
    assert "\n" not in first and " at 0x" not in first


def test_a_recurrent_layer_has_a_signature():
    one, same, other = (signature_of(nn.LSTM(3, size), X, {}) for size in (2, 2, 4))
    assert one == same != other


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda x: x + 1, "builtins.function"),
        (times(2), "builtins.function"),
        (Scale(1), ".*Scale"),
        (nn.Linear(3, 3).forward, "builtins.method"),
        (np.arange(3), "numpy.ndarray"),
        (functools.partial(torch.add, 1), "functools.partial"),
        ({"one", "two"}, "builtins.set"),
        (threading.Lock(), "_thread.lock"),
        ([{"a": Scale(1)}], ".*Scale"),
    ],
)
def test_what_cannot_be_found_again_by_a_name_is_refused_in_one_line(value, kind):
    with pytest.raises(UsageError, match=rf"latency: Applies.function holds a {kind}, by which") as caught:
        signature_of(Applies(value), X, {})
    assert "\n" not in str(caught.value)


def test_weights_do_not_matter_but_their_shapes_do():
    assert signature_of(nn.Linear(3, 2), X, {}) == signature_of(nn.Linear(3, 2), X, {})
    assert signature_of(nn.Linear(3, 2), X, {}) != signature_of(nn.Linear(3, 2, bias=False), X, {})


def test_a_space_whose_candidates_differ_in_a_function_alone_is_measured_twice(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS_A_LAYER", 0.0)
    space = Space(lambda: LayerChoice([Applies(doubled), Applies(tripled)], label="function"))
    _, table = expected_latency(space, relax(space), X, {})
    assert len(table.milliseconds) == 2


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
from test_signature import PAIRS, X, Applies, signature_of
for first, second in PAIRS.values():
    print(signature_of(Applies(first()), X, {}), signature_of(Applies(second()), X, {}))
"""


@pytest.mark.slow
def test_signatures_are_the_same_in_every_process():
    folders = list(map(str, Path(__file__).parents[:3]))
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *folders],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1 and len(printed.pop().splitlines()) == len(PAIRS)

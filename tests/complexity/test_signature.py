"""A layer's entry in a table of latencies is its own: of its settings and functions, in every process alike."""

import functools
import operator
import os
import re
import subprocess
import sys
import threading
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from argument_spaces import Space
from nni.nas.nn.pytorch import LayerChoice
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.complexity import latency
from nni_gumbel.complexity.latency import measure_missing
from nni_gumbel.complexity.signature import signature_of

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


def defaulting(factor):
    def scaled(x, factor=factor):
        return x * factor

    return scaled


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor

    def run(self, x):
        return x * self.factor


class Kind(Enum):
    one, other = object(), object()


PAIRS = {
    "lambdas": (lambda: lambda x: x + 1, lambda: lambda x: x * x),
    "constants": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "globals": (lambda: lambda x: torch.sin(x), lambda: lambda x: torch.cos(x)),
    "closures": (lambda: times(1), lambda: times(2)),
    "defaults": (lambda: defaulting(1), lambda: defaulting(2)),
    "functions inside": (lambda: lambda x: (lambda y: y + 1)(x), lambda: lambda x: (lambda y: y + 2)(x)),
    "functions of torch": (lambda: torch.sin, lambda: torch.cos),
    "functional": (lambda: nn.functional.relu, lambda: nn.functional.gelu),
    "partials": (lambda: functools.partial(torch.add, 1), lambda: functools.partial(torch.add, 2)),
    "objects": (lambda: Scale(1), lambda: Scale(2)),
    "methods": (lambda: Scale(1).run, lambda: Scale(2).run),
    "numbers": (lambda: 1, lambda: 2),
    "modules": (lambda: [nn.AvgPool1d(1)], lambda: [nn.AvgPool1d(3)]),
    "modules in modules": (
        lambda: [nn.Sequential(nn.Linear(3, 3))],
        lambda: [nn.Sequential(nn.Linear(3, 4))],
    ),
    "methods of modules": (lambda: nn.Linear(3, 3).forward, lambda: nn.Linear(3, 4).forward),
    "numbers of numpy": (lambda: np.int64(1), lambda: np.int64(2)),
    "arrays": (lambda: np.arange(900), lambda: np.arange(900) + 1),
    "patterns": (lambda: re.compile("a"), lambda: re.compile("b")),
    "getters": (lambda: operator.itemgetter(0), lambda: operator.itemgetter(1)),
    "methods of tensors": (lambda: torch.Tensor.relu, lambda: torch.Tensor.tanh),
    "members of enumerations": (lambda: Kind.one, lambda: Kind.other),
    "in lists": (lambda: [torch.sin], lambda: [torch.cos]),
    "in dicts": (lambda: {"a": times(1)}, lambda: {"a": times(2)}),
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


def test_a_method_of_the_layer_itself_may_be_one_of_its_settings():
    layer = Applies(torch.sin)
    layer.again = layer.forward
    assert signature_of(layer, X, {}) == signature_of(layer, X, {})


def test_what_a_function_refers_to_may_contain_itself():
    def recursive(n):
        return recursive(n - 1) if n else 0

    assert signature_of(Applies(recursive), X, {}) == signature_of(Applies(recursive), X, {})


def test_an_object_that_cannot_be_described_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match=r"latency: Applies.function holds a _thread.lock, by which"
    ) as caught:
        signature_of(Applies(threading.Lock()), X, {})
    assert "\n" not in str(caught.value)


def test_objects_that_all_know_each_other_are_described_once_each():
    friends = [Scale(factor) for factor in range(30)]
    for one in friends:
        one.friends = friends
        one.among = {other for other in friends[:3]}
    assert len(signature_of(Applies(friends), X, {})) < 100_000


def test_weights_do_not_matter_but_their_shapes_do():
    assert signature_of(nn.Linear(3, 2), X, {}) == signature_of(nn.Linear(3, 2), X, {})
    assert signature_of(nn.Linear(3, 2), X, {}) != signature_of(nn.Linear(3, 2, bias=False), X, {})


def test_a_space_whose_candidates_differ_in_a_function_alone_is_measured_twice(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS_A_LAYER", 0.0)
    space = Space(lambda: LayerChoice([Applies(times(1)), Applies(times(2))], label="function"))
    assert len(measure_missing(space, relax(space), X, {}).milliseconds) == 2


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
from test_signature import PAIRS, X, Applies, signature_of
for first, second in PAIRS.values():
    print(signature_of(Applies(first()), X, {}), signature_of(Applies(second()), X, {}))
print(signature_of(Applies(lambda x: x in {"one", "two", "three"}), X, {}))
print(signature_of(Applies({"one", "two", "three"}), X, {}))
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
    assert len(printed) == 1 and len(printed.pop().splitlines()) == len(PAIRS) + 2

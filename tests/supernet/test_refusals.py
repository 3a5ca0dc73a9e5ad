"""Choices that are called from where they cannot be replaced, or never, are told by name before a search."""

import functools
import logging

import nni
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.search.steps import misfit

X = torch.ones(2, 4)


def choice(label="first"):
    return LayerChoice([nn.Linear(4, 4), nn.Identity()], label=label)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = choice()

    def forward(self, x):
        return self.inner(x)


class Space(ModelSpace):
    def __init__(self, make, hold):
        super().__init__()
        self.layer = make()
        self.held = hold(self)

    def forward(self, x):
        return self.layer(x)


MAKE = {
    "choice": choice,
    "block with a choice": Block,
    "repeat": lambda: Repeat(lambda i: nn.Linear(4, 4), nni.choice("first", [1, 2])),
    "chosen width": lambda: MutableLinear(4, nni.choice("first", [2, 4])),
}
HOLD = {
    "list": lambda space: [space.layer],
    "nested": lambda space: {"a": (space.layer, 1)},
    "partial": lambda space: functools.partial(space.layer),
    "bound method": lambda space: space.layer.forward,
    "closure": lambda space: (lambda layer: lambda x: layer(x))(space.layer),
    "closure of self": lambda space: lambda x: space.layer(x),
    "default argument": lambda space: lambda x, layer=space.layer: layer(x),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_a_choice_beside_the_registered_modules_is_refused_in_one_line(make, hold):
    space = Space(make, hold)
    with pytest.raises(
        UsageError, match="module 'Space': its attribute 'held' holds choice 'first' in a"
    ) as caught:
        relax(space)
    assert "\n" not in str(caught.value)


HELD_IN_PEACE = {
    "a layer without a choice": lambda space: [space.plain, space.plain.forward],
    "a method of its own": lambda space: space.forward,
    "a function that holds nothing": lambda space: torch.relu,
    "numbers": lambda space: [1, {"a": 2.0}],
}


@pytest.mark.parametrize("hold", HELD_IN_PEACE.values(), ids=HELD_IN_PEACE)
def test_what_leads_to_no_choice_may_be_held_anywhere(hold):
    class Peaceful(Space):
        def __init__(self):
            super().__init__(choice, lambda space: None)
            self.plain = nn.Linear(4, 4)
            self.held = hold(self)

    relax(Peaceful())


def test_a_network_calls_its_own_method_that_its_space_holds_under_another_name():
    space = Space(choice, lambda space: space.forward)
    relax(space)
    network = space.freeze({"first": 1})
    assert torch.equal(network.held(X), X) and network.held.__self__ is network


def test_a_module_may_know_what_it_belongs_to():
    class Parent(ModelSpace):
        def __init__(self):
            super().__init__()
            self.block = Block()
            self.block.parent = [self]

        def forward(self, x):
            return self.block(x)

    space = Parent()
    relax(space)
    space(X)


_globals = {}


def test_a_choice_that_is_called_through_a_global_variable_is_refused_when_it_is_called():
    class Through(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = _globals["layer"] = choice()

        def forward(self, x):
            return _globals["layer"](x)

    space = Through()
    relax(space)
    with pytest.raises(
        UsageError, match="choice 'first': LayerChoice at 'layer' is called from where it cannot"
    ):
        space(X)


# -- choices that are never called ---------------------------------------------------------------------


class Unused(ModelSpace):
    """``second`` is called where ``aux`` is set."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.aux = choice("first"), choice("second"), False

    def forward(self, x):
        return self.second(self.first(x)) if self.aux else self.first(x)


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_choice_that_is_never_called_is_told_once_after_the_first_pass(caplog):
    space = Unused()
    distribution = relax(space)
    for _ in range(3):
        distribution.sample(1.0)
        space(X)
    (line,) = told(caplog)
    assert line.startswith("choice 'second': nothing that depends on it was called") and "\n" not in line


def test_a_pass_in_which_every_choice_is_called_tells_nothing(caplog):
    space = Unused()
    space.aux = True
    distribution = relax(space)
    for _ in range(3):
        distribution.sample(1.0)
        space(X)
    assert not told(caplog)


def test_a_choice_inside_a_candidate_that_was_not_drawn_is_no_choice_that_is_never_called(caplog):
    space = Space(lambda: LayerChoice([Block(), nn.Identity()], label="outer"), lambda space: None)
    distribution = relax(space)
    for _ in range(2):
        distribution.use_architecture({"outer": 1, "first": 0})
        space(X)
    assert not told(caplog)


# -- layers of a constant size behind a chosen one -----------------------------------------------------


@pytest.mark.parametrize("follower", [nn.BatchNorm1d, nn.LayerNorm, lambda width: nn.Linear(width, 1)])
def test_a_layer_of_constant_size_behind_a_chosen_width_is_named_with_the_choice(follower):
    def make():
        layers = nn.Sequential(MutableLinear(4, nni.choice("width", [2, 4])), follower(2))
        return LayerChoice([layers, nn.Tanh()], label="first")

    space = Space(make, lambda space: None)
    relax(space)
    with pytest.raises(RuntimeError) as caught:
        space(X)
    told = misfit(space, caught.value)
    assert "at 'layer.0.1' takes one width" in told and "choice 'width'" in told and "\n" not in told


def test_an_error_of_another_kind_is_left_as_it_is():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("something else")

    space = Space(lambda: LayerChoice([Fails(), nn.Tanh()], label="first"), lambda space: None)
    relax(space)
    with pytest.raises(RuntimeError, match="something else") as caught:
        space(X)
    assert misfit(space, caught.value) is None

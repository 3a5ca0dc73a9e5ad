"""The supernet whose distribution is one-hot at a sample computes what NNI's frozen network computes.

The reference is a second, never mutated instance of the space, frozen by NNI's own code, with the
supernet's weights. Every primitive has a planted bug that the comparison must find.
"""

import collections

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, example_batch, plans, samples_of
from hypothesis import HealthCheck, given, settings
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.inputs import MixedInput
from nni_gumbel.supernet.joint_sample import JointSample
from nni_gumbel.supernet.mixture import mixture
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.supernet.structure import used_part
from nni_gumbel.testing import assert_supernet_equals_frozen, random_samples

SOME = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])


def assert_equal_at_all_or_many_samples(plan, many):
    space = GeneratedSpace(plan)
    few = samples_of(space, limit=many)
    samples = few if len(few) < many else list(random_samples(space, many // 2))
    assert_supernet_equals_frozen(space, example_batch(), samples)


@given(plan=plans)
@SOME
def test_the_supernet_at_a_sample_equals_the_frozen_network(plan):
    assert_equal_at_all_or_many_samples(plan, many=6)


@pytest.mark.slow
@given(plan=plans)
@settings(SOME, max_examples=60)
def test_the_supernet_at_many_samples_equals_the_frozen_network(plan):
    assert_equal_at_all_or_many_samples(plan, many=16)


@given(plan=plans)
@settings(SOME, max_examples=15)
def test_weights_survive_the_freezing_of_a_supernet(plan):
    supernet = GeneratedSpace(plan).double()
    sample = next(random_samples(supernet, 1))
    distribution = relax(supernet).double()
    distribution.use_architecture(sample)
    frozen = supernet.eval().freeze(sample).eval()
    # Not equal to the bit: a mean of three is divided before or after it is summed.
    assert torch.allclose(frozen(example_batch()), supernet(example_batch()), rtol=1e-12)


@pytest.mark.slow
@given(plan=plans)
@settings(SOME, max_examples=15)
def test_the_used_part_of_a_sample_freezes_to_the_same_network(plan):
    space = GeneratedSpace(plan)
    for sample in random_samples(space, 2):
        used = used_part(space, sample)
        assert str(space.freeze(used)) == str(space.freeze(sample))


def supernet_of(*plan):
    supernet = GeneratedSpace(plan)
    return supernet, relax(supernet)


def test_modules_that_share_a_label_see_the_same_sample():
    supernet, distribution = supernet_of(
        ("layers", [("tanh",), ("identity",)], 0, True), ("layers", [("norm",), ("linear", True)], 0, True)
    )
    distribution.sample(1.0)
    first, second = supernet.layers
    assert first._joint_sample.weights(first.label) is second._joint_sample.weights(second.label)


def test_a_candidate_of_weight_zero_is_not_run():
    supernet, distribution = supernet_of(("layers", [("identity",), ("linear", True)], 0, True))
    with torch.no_grad():
        supernet.layers[0]["candidate1"].weight.fill_(float("nan"))
    distribution.use_architecture({supernet.layers[0].label: "candidate0"})
    assert torch.isfinite(supernet(example_batch(torch.float32))).all()


def test_a_hard_sample_whose_gradient_is_wanted_runs_every_candidate():
    supernet, distribution = supernet_of(("layers", [("tanh",), ("linear", True), ("norm",)], 0, True))
    distribution.sample(1.0, "straight-through-gumbel")
    supernet(example_batch(torch.float32)).square().sum().backward()
    [logits] = distribution.logits.values()
    assert (logits.grad != 0).all()
    with torch.no_grad():
        distribution.sample(1.0, "straight-through-gumbel")
    assert len(distribution.joint_sample.active(supernet.layers[0].label)) == 1


def test_a_mixture_of_tuples_is_taken_entry_by_entry():
    outputs = [(torch.ones(2), [torch.zeros(1), None]), (torch.zeros(2), [torch.ones(1), None])]
    first, (second, nothing) = mixture(outputs, [torch.tensor(0.25), torch.tensor(0.75)])
    assert torch.equal(first, torch.full((2,), 0.25)) and torch.equal(second, torch.tensor([0.75]))
    assert nothing is None


def test_a_mixture_of_named_tuples_is_one():
    Pair = collections.namedtuple("Pair", "mean spread")
    outputs = [Pair(torch.ones(2), torch.zeros(1)), Pair(torch.zeros(2), torch.ones(1))]
    mixed = mixture(outputs, [torch.tensor(0.25), torch.tensor(0.75)])
    assert type(mixed) is Pair and torch.equal(mixed.spread, torch.tensor([0.75]))


def test_candidates_take_keyword_arguments():
    class Scale(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, *, shift):
            return self.factor * x + shift

    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice({"one": Scale(1), "two": Scale(2)}, label="scale")

        def forward(self, x):
            return self.layer(x, shift=3.0)

    assert_supernet_equals_frozen(Space(), example_batch(), [{"scale": "one"}, {"scale": "two"}])


class Tied(ModelSpace):
    """The same module with a choice at two places, below one parent or two."""

    def __init__(self, parents):
        super().__init__()
        layer = LayerChoice([nn.Linear(3, 3), nn.Identity()], label="layer")
        self.layers = nn.ModuleList([layer, layer] if parents == 1 else [nn.Sequential(layer) for _ in "12"])

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


def test_a_module_below_two_parents_stays_one_module():
    space = Tied(parents=2)
    relax(space)
    assert space.layers[0][0] is space.layers[1][0]
    assert_supernet_equals_frozen(Tied(parents=2), example_batch(), [{"layer": 0}, {"layer": 1}])


def test_a_module_that_nni_would_not_freeze_at_its_second_place_is_refused():
    with pytest.raises(UsageError, match="module 'layers.1': it is 'layers.0' again"):
        relax(Tied(parents=1))


# -- planted bugs; those of Repeat, Cell and arguments stand with their tests -------------------------


def inputs_by(reduction):
    return GeneratedSpace([("inputs", ("linear", True), (2, reduction), 0)])


def wrong_weights(self, label, plain=JointSample.running):
    running = plain(self, label)
    return dict(zip(running, reversed(running.values())))


def wrong_places(self, label, plain=JointSample.slots):
    return plain(self, label)[::-1]


def as_a_sum(self, candidate_inputs, plain=MixedInput.forward):
    self.reduction = "sum"
    return plain(self, candidate_inputs)


LAYERS = ("layers", [("linear", True), ("tanh",)], 0, True)


@pytest.mark.parametrize(
    ("space", "owner", "method", "bug"),
    [
        (GeneratedSpace([LAYERS]), JointSample, "running", lambda self, label: {0: None}),
        (GeneratedSpace([LAYERS]), JointSample, "running", wrong_weights),
        (inputs_by("sum"), JointSample, "running", wrong_weights),
        (inputs_by("concat"), JointSample, "slots", wrong_places),
        (inputs_by("none"), JointSample, "slots", wrong_places),
        (inputs_by("mean"), MixedInput, "forward", as_a_sum),
    ],
)
def test_the_check_finds_a_planted_bug_in_a_choice(space, owner, method, bug, monkeypatch):
    assert_supernet_equals_frozen(space, example_batch())
    monkeypatch.setattr(owner, method, bug)
    with pytest.raises(AssertionError):
        assert_supernet_equals_frozen(space, example_batch())


def test_the_check_finds_a_mixture_that_does_not_tend_to_the_network():
    class Space(ModelSpace):
        """Concatenated tensors of variable width are not the first features of a larger width."""

        def __init__(self):
            super().__init__()
            width = nni.choice("width", [1, 3])
            self.left, self.right = MutableLinear(3, width), MutableLinear(3, width)
            self.head = MutableLinear(width * 2, 2)

        def forward(self, x):
            return self.head(torch.cat([self.left(x), self.right(x)], 1))

    assert_supernet_equals_frozen(Space(), example_batch(), continuous=False)
    with pytest.raises(AssertionError, match="almost decided mixture"):
        assert_supernet_equals_frozen(Space(), example_batch())


# -- candidates that share their input ---------------------------------------------------------------


class AddInPlace(nn.Module):
    def forward(self, x):
        x += 1
        return x


class Around(ModelSpace):
    def __init__(self, make):
        super().__init__()
        self.layer = make()

    def forward(self, x):
        return self.layer(x * 1.0)


def test_an_inplace_activation_does_not_change_the_input_of_the_others():
    activations = {"relu": nn.ReLU(inplace=True), "tanh": nn.Tanh()}
    space = Around(lambda: LayerChoice(activations, label="activation"))
    distribution, x = relax(space), example_batch(torch.float32)
    distribution.use_probabilities()
    assert torch.allclose(space(x), (x.relu() + x.tanh()) / 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerChoice({"inplace": AddInPlace(), "tanh": nn.Tanh()}, label="name"),
        lambda: Repeat(AddInPlace(), (0, 2), label="name"),
        lambda: Cell({"inplace": lambda *_: AddInPlace(), "tanh": lambda *_: nn.Tanh()}, 1, label="name"),
    ],
)
def test_a_candidate_that_writes_into_its_input_is_refused_by_name(make):
    space = Around(make)
    relax(space)
    with pytest.raises(UsageError, match="choice 'name.*changes its input in place"):
        space(example_batch(torch.float32))


class Optional(ModelSpace):
    """NNI's own guide: choose one or none; what is not chosen is ``None``."""

    def __init__(self, reduction="sum"):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.skip = InputChoice(1, n_chosen=None, reduction=reduction, label="skip")

    def forward(self, x):
        y, skipped = self.layer(x), self.skip([x])
        return y if skipped is None else y + skipped


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_an_optional_input_is_there_or_not(reduction):
    assert_supernet_equals_frozen(Optional(reduction), example_batch(), [{"skip": []}, {"skip": [0]}])


def test_a_search_can_find_an_optional_input_either_way():
    space = Optional()
    distribution = relax(space)
    distribution.sample(1.0)
    (space(torch.ones(2, 3)) - space.layer(torch.ones(2, 3))).sum().backward()
    (logit,) = distribution.logits.values()
    assert logit.grad > 0
    found = []
    for value in (3.0, -3.0):
        with torch.no_grad():
            logit.fill_(value)
        found.append(distribution.mode())
    assert found == [{"skip": [0]}, {"skip": []}]
    assert distribution.log_prob({"skip": []}).exp().item() == pytest.approx(
        torch.sigmoid(torch.tensor(3.0)).item()
    )

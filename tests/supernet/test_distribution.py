"""One joint sample per step, deterministic reports, and clear words for what cannot be relaxed."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.search.strategy import GumbelSearch
from nni_gumbel.supernet.distribution import Distribution


class Space(ModelSpace):
    def __init__(self, n_chosen=1):
        super().__init__()
        self.layer = LayerChoice({"a": nn.Linear(2, 2), "b": nn.Identity(), "c": nn.Tanh()}, label="x.y")
        self.inputs = InputChoice(2, n_chosen=n_chosen, label="inputs")

    def forward(self, x):
        return self.inputs([x, self.layer(x)])


class Constant(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Continuous(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Identity(), nn.Tanh()], label="a")
        self.rate = self.add_mutable(nni.uniform("rate", 0, 1))


class Shapes(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice({"thin": nn.Linear(2, 2), "wide": nn.Linear(2, 4)}, label="size")

    def forward(self, x):
        return self.layer(x)


class Inputs(ModelSpace):
    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(2, n_chosen=1, label="from")

    def forward(self, x):
        return self.inputs([x, x[:, :1]])


def with_logits(**logits):
    distribution = Distribution(Space())
    with torch.no_grad():
        for label, values in logits.items():
            distribution.logits[label.replace("_", ".")].copy_(torch.tensor(values))
    return distribution


def test_a_new_distribution_is_uniform():
    distribution = Distribution(Space())
    assert torch.allclose(distribution.probs()["x.y"], torch.full((3,), 1 / 3))
    assert distribution.entropy().item() == pytest.approx(1.0)


def test_the_entropy_of_a_decided_structure_is_zero():
    assert float(with_logits(x_y=[50.0, 0, 0], inputs=[0.0, 50.0]).entropy()) == pytest.approx(0.0, abs=1e-6)


def test_the_mode_is_an_nni_sample():
    assert with_logits(x_y=[0.0, 2.0, 1.0], inputs=[0.0, 1.0]).mode() == {"x.y": "b", "inputs": [1]}
    assert Space().contains(with_logits().mode())


def test_log_prob_sums_over_labels():
    distribution = with_logits(x_y=[0.0, 2.0, 1.0])
    p = torch.softmax(torch.tensor([0.0, 2.0, 1.0]), -1)[2] * 0.5
    assert float(distribution.log_prob({"x.y": "c", "inputs": [0]})) == pytest.approx(float(p.log()))


def test_what_is_reported_carries_no_sampling_noise():
    distribution = with_logits(x_y=[0.0, 2.0, 1.0])
    before = {label: p.clone() for label, p in distribution.probs().items()}
    distribution.sample(0.5)
    assert all(torch.equal(before[label], p) for label, p in distribution.probs().items())


def test_a_sample_carries_gradients_to_every_logit():
    distribution = Distribution(Space())
    distribution.sample(1.0)
    weights = [distribution.joint_sample.weights(label) for label in distribution.variables]
    sum((w * torch.arange(len(w))).sum() for w in weights).backward()
    assert all((logits.grad != 0).all() for logits in distribution.logits.values())


def test_logits_survive_a_state_dict_with_dots_in_labels():
    distribution = with_logits(x_y=[0.0, 2.0, 1.0])
    other = Distribution(Space())
    other.load_state_dict(distribution.state_dict())
    assert torch.equal(other.logits["x.y"], distribution.logits["x.y"])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Constant, "'Constant': it has no choice"),
        (Continuous, "choice 'rate': Numerical is not discrete"),
        (lambda: Space(n_chosen=2), "choice 'inputs': n_chosen=2 cannot be relaxed yet"),
        (lambda: Space(n_chosen=None), "choice 'inputs': n_chosen=None cannot be relaxed yet"),
    ],
)
def test_a_space_that_cannot_be_relaxed_is_refused_in_one_line(space, words):
    with pytest.raises(UsageError, match=words) as caught:
        GumbelSearch().mutate_model(space())
    assert "\n" not in str(caught.value)


def test_a_choice_of_arguments_is_refused_by_name():
    class Width(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = MutableLinear(2, nni.choice("width", [2, 4]))

    with pytest.raises(UsageError, match="width"):
        GumbelSearch().mutate_model(Width())


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Shapes, r"choice 'size': .*'thin' gives \(3, 2\), 'wide' gives \(3, 4\)"),
        (Inputs, r"choice 'from': .*input 0 is \(3, 2\), input 1 is \(3, 1\)"),
    ],
)
def test_different_shapes_of_one_choice_are_named(space, words):
    supernet = GumbelSearch().mutate_model(space())
    with pytest.raises(UsageError, match=words):
        supernet(torch.zeros(3, 2))

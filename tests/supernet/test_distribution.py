"""One joint sample per step, deterministic reports, and clear words for what cannot be relaxed."""

import itertools

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, plans, samples_of
from hypothesis import HealthCheck, assume, given, settings
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn

from nni_gumbel import relax
from nni_gumbel.errors import UsageError
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


class Own(ModelSpace):
    def __init__(self):
        super().__init__()
        self.own = self.add_mutable(nni.choice("own", [1, 2]))


class Open(ModelSpace):
    def __init__(self, reduction):
        super().__init__()
        self.inputs = InputChoice(2, n_chosen=None, reduction=reduction, label="inputs")


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


@pytest.mark.parametrize("n_chosen", [2, None])
def test_subsets_of_inputs_are_nni_samples_too(n_chosen):
    distribution = Distribution(Space(n_chosen=n_chosen))
    assert distribution.outcome("inputs", [0, 1]).tolist() == [1, 1]
    assert Space(n_chosen=n_chosen).contains(distribution.mode())


@given(plan=plans)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_probabilities_are_those_of_the_enumerated_networks(plan):
    space = GeneratedSpace(plan)
    samples = samples_of(space, limit=200)
    assume(len(samples) < 200)
    distribution = Distribution(space).double()
    for logits in distribution.logits.values():
        torch.nn.init.normal_(logits)
    with torch.no_grad():
        weights = torch.stack([distribution.log_prob(sample).exp() for sample in samples])
        assert float(weights.sum()) == pytest.approx(1)
        for label, probability in distribution.probs().items():
            chosen = torch.stack([distribution.outcome(label, sample[label]) for sample in samples])
            assert torch.allclose(weights @ chosen, probability)
        assert float(distribution.log_prob(distribution.mode()).exp()) == pytest.approx(float(weights.max()))


@pytest.mark.parametrize(
    ("estimator", "temperature"),
    [*itertools.product(["soft", "straight-through-gumbel"], [0.01, 1.0, 100.0])],
)
def test_a_uniform_sample_does_not_look_at_the_logits(estimator, temperature):
    distribution = with_logits(x_y=[50.0, 0.0, 0.0])
    with torch.no_grad():
        draws = []
        for _ in range(300):
            distribution.sample(temperature, estimator, uniform=True)
            draws.append(distribution.joint_sample.weights("x.y"))
    assert torch.allclose(torch.stack(draws).mean(0), torch.full((3,), 1 / 3), atol=0.1)


def test_without_gradients_a_hard_sample_activates_what_it_chose_alone():
    distribution = Distribution(Space(n_chosen=None))
    with torch.no_grad():
        distribution.sample(1.0, "straight-through-gumbel")
    joint = distribution.joint_sample
    assert len(joint.active("x.y")) == 1
    assert joint.active("inputs") == [i for i in range(2) if joint.weights("inputs")[i] == 1]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"x.y": "a"}, "choice 'inputs': the sample does not name it"),
        ({"x.y": "z", "inputs": [0]}, "choice 'x.y': 'z' is none of its candidates"),
        ({"x.y": "a", "inputs": [0, 1]}, r"choice 'inputs': \[0, 1\] does not choose 1 of"),
        ({"x.y": "a", "inputs": []}, r"choice 'inputs': \[\] is none of its candidates"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_in_one_line(sample, words):
    with pytest.raises(UsageError, match=words):
        Distribution(Space()).use_architecture(sample)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Constant, "'Constant': it has no choice"),
        (Continuous, "choice 'rate'.*the space 'Continuous' holds it itself"),
        (lambda: Open("concat"), "choice 'inputs': reduction 'concat' of any number of inputs"),
        (lambda: Open("none"), "choice 'inputs': reduction 'none' of any number of inputs"),
        (Own, "choice 'own': the space 'Own' holds it itself"),
    ],
)
def test_a_space_that_cannot_be_relaxed_is_refused_in_one_line(space, words):
    with pytest.raises(UsageError, match=words) as caught:
        relax(space())
    assert "\n" not in str(caught.value)


class Lazy(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.LazyLinear(2), nn.Identity()], label="layer")


class Labels(ModelSpace):
    def __init__(self):
        super().__init__()
        self.first = LayerChoice([nn.Identity(), nn.Tanh()], label="same")
        self.second = LayerChoice([nn.Identity(), nn.Tanh(), nn.ReLU()], label="same")


@pytest.mark.parametrize(
    ("space", "hooks", "words"),
    [
        (lambda: Space, (), "space: 'Space' is no instance of"),
        (lambda: nn.Linear(2, 2), (), "space: 'Linear' is no instance of"),
        (Lazy, (), "module 'layer.0': its sizes are not known before it runs"),
        (Labels, (), "give different choices different labels"),
        (Space, [3], "mutation_hooks: 3 cannot be called"),
        (Space, [lambda *_: 5], "mutation_hooks: a hook returned 5"),
    ],
)
def test_what_cannot_become_a_supernet_is_refused_in_one_line(space, hooks, words):
    with pytest.raises(UsageError, match=words) as caught:
        relax(space(), hooks)
    assert "\n" not in str(caught.value)


def test_a_supernet_is_not_relaxed_twice():
    space = Space()
    relax(space)
    with pytest.raises(UsageError, match="it is a supernet already"):
        relax(space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Shapes, r"choice 'size': .*'thin' gives \(3, 2\), 'wide' gives \(3, 4\)"),
        (Inputs, r"choice 'from': .*input 0 is \(3, 2\), input 1 is \(3, 1\)"),
    ],
)
def test_different_shapes_of_one_choice_are_named(space, words):
    supernet = space()
    relax(supernet)
    with pytest.raises(UsageError, match=words):
        supernet(torch.zeros(3, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_soft_sample_does_not_wait_for_it():
    distribution = Distribution(Space(n_chosen=None)).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        distribution.sample(2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert distribution.joint_sample.weights("x.y").is_cuda

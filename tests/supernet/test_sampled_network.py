"""A drawn network runs alone, and costs the memory of a frozen one."""

import nni
import pytest
import torch
from generated_spaces import GeneratedSpace, example_batch, plans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn
from torch.nn.functional import cross_entropy

from nni_gumbel import relax
from nni_gumbel.supernet.layer import MixedLayer
from search_spaces.mnist import MnistSpace


class Everything(ModelSpace):
    """A choice under every law: one of n, slots, gates, depth, width."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 4), nn.Tanh(), nn.Identity()], label="layer")
        self.places = InputChoice(3, n_chosen=2, reduction="concat", label="places")
        self.gates = InputChoice(3, n_chosen=None, reduction="mean", label="gates")
        width = nni.choice("width", [2, 4, 6])
        self.up, self.down = MutableLinear(8, width), MutableLinear(width, 4)
        self.blocks = Repeat(lambda index: nn.Linear(4, 4), (0, 3), label="depth")

    def forward(self, x):
        y = self.layer(x)
        z = self.down(self.up(self.places([x, y, -x])))
        return self.blocks(self.gates([x, y, z]))


def draw(distribution):
    with torch.no_grad():
        distribution.sample(1.0, "straight-through-gumbel")


def calls_of(supernet):
    """Per label, the candidates whose forward pass ran; kept up to date by hooks."""
    called = {}
    for module in supernet.modules():
        if isinstance(module, MixedLayer):
            for index, name in enumerate(module.names):
                module[name].register_forward_hook(
                    lambda *_, label=module.label, index=index: called.setdefault(label, []).append(index)
                )
    return called


@given(plan=plans, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_only_what_was_drawn_runs(plan, seed):
    supernet = GeneratedSpace(plan)
    distribution = relax(supernet)
    called = calls_of(supernet)
    torch.manual_seed(seed)
    draw(distribution)
    supernet(example_batch(torch.float32))
    joint = distribution.joint_sample
    for label, candidates in called.items():
        assert set(candidates) == set(joint.active(label)) and len(set(candidates)) == 1


def test_under_every_law_what_is_active_is_what_was_drawn_and_computes_it():
    supernet = Everything()
    distribution = relax(supernet)
    joint, seen = distribution.joint_sample, {label: set() for label in distribution.laws}
    for _ in range(60):
        draw(distribution)
        for label in distribution.laws:
            chosen = joint.weights(label).nonzero().flatten().tolist()
            assert joint.active(label) == chosen and not joint.weights(label).requires_grad
            seen[label].add(tuple(chosen))
        sample = {
            label: distribution.value(label, (joint.weights(label) > 0).float())
            for label in distribution.laws
        }
        x = torch.randn(3, 4)
        assert torch.allclose(supernet(x), supernet.freeze(sample)(x), atol=1e-6)
    assert all(len(outcomes) > 1 for outcomes in seen.values())


def bytes_for_backward(network, parameters, x, y):
    """Bytes that a training step keeps: what is saved for the backward pass, and the gradients."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for parameter in parameters:
        parameter.grad = None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(network(x), y)
    saved = sum(saved.values())
    loss.backward()
    return saved + sum(p.grad.untyped_storage().nbytes() for p in parameters if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "image"),
    [
        (MnistSpace, (1, 28, 28)),
        (lambda: NasBench201(stem_out_channels=4, num_modules_per_stack=1), (3, 32, 32)),
    ],
)
def test_a_drawn_network_costs_the_memory_of_a_frozen_one(space, image):
    supernet = space()
    distribution = relax(supernet)
    x, y = torch.randn(8, *image), torch.randint(10, (8,))
    for _ in range(5):
        draw(distribution)
        joint = distribution.joint_sample
        sample = {label: distribution.value(label, joint.weights(label)) for label in distribution.laws}
        network = space().freeze(sample)
        of_supernet = bytes_for_backward(supernet, list(supernet.parameters()), x, y)
        of_network = bytes_for_backward(network, list(network.parameters()), x, y)
        assert of_supernet <= 1.2 * of_network, (of_supernet, of_network, sample)
        ran = [parameter for parameter in supernet.parameters() if parameter.grad is not None]
        assert len(ran) <= len(list(network.parameters()))

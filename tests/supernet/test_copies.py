"""Copies of a supernet and of its distribution share nothing with the original, and no supernet with another."""

import copy

import nni
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableBatchNorm1d, MutableDropout, MutableLinear
from torch import nn

from nni_gumbel import UsageError, relax
from nni_gumbel.supernet.distribution import check_float64

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Space(ModelSpace):
    def __init__(self):
        super().__init__()
        width = nni.choice("width", [2, 4])
        self.layers = nn.Sequential(
            MutableLinear(3, width),
            MutableBatchNorm1d(width),
            LayerChoice([nn.ReLU(), nn.Tanh()], label="activation"),
            MutableDropout(nni.choice("rate", [0.0, 0.5])),
            MutableLinear(width, 1),
        )

    def forward(self, x):
        return self.layers(x)


def tensors_and_objects(root):
    """All that a module and its parts hold, by identity; classes, functions, words and numbers aside."""
    seen, stack = {}, [root]
    while stack:
        value = stack.pop()
        plain = isinstance(value, (type, str, int, float, bool, type(None), torch.dtype, torch.device))
        if plain or callable(value) and not isinstance(value, nn.Module) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack.extend(value)
        elif hasattr(value, "__dict__"):
            stack.append(vars(value))
    return seen


def test_a_copied_supernet_and_distribution_share_no_module_and_no_tensor_with_the_original():
    space = Space()
    distribution = relax(space)
    distribution.sample(1.0)
    space(X).sum().backward()
    copies = copy.deepcopy((space, distribution))
    mine, theirs = tensors_and_objects((space, distribution)), tensors_and_objects(copies)
    shared = [mine[key] for key in mine.keys() & theirs.keys()]
    assert not [value for value in shared if isinstance(value, (nn.Module, torch.Tensor))]


def test_a_draw_from_a_copied_distribution_is_one_for_the_copied_supernet_alone():
    space = Space().eval()
    distribution = relax(space)
    distribution.use_architecture({"width": 2, "activation": 0, "rate": 0.0})
    expected = space(X)
    twin, its_distribution = copy.deepcopy((space, distribution))
    its_distribution.use_architecture({"width": 4, "activation": 1, "rate": 0.0})
    assert torch.equal(space(X), expected)
    assert not torch.equal(twin(X), expected)


def test_a_supernet_that_is_copied_alone_keeps_the_numbers_of_its_sample():
    space = Space().eval()
    distribution = relax(space)
    distribution.sample(1.0)
    expected, twin = space(X), copy.deepcopy(space)
    distribution.sample(1.0)
    assert torch.equal(twin(X), expected)


def test_equal_modules_of_two_supernets_have_templates_of_their_own_and_a_pass_changes_none():
    first, second = Space(), Space()
    distribution, _ = relax(first), relax(second)
    norm = first.layers[1]
    before = [(t.training, t.momentum) for t in norm.variants.templates]
    assert not {id(t) for t in norm.variants.templates} & {id(t) for t in second.layers[1].variants.templates}
    norm.momentum = 0.5
    distribution.sample(1.0)
    first.eval()(X)
    assert [(t.training, t.momentum) for t in norm.variants.templates] == before
    assert norm.freeze({"width": 2}).momentum == before[0][1]


def test_a_device_without_float64_is_refused_in_one_line():
    check_float64(torch.device("cpu"))
    with pytest.raises(UsageError, match="device 'mps': .* float64, .* accelerator: cpu") as caught:
        check_float64(torch.device("mps"))  # which no machine with this test's other half has
    assert "\n" not in str(caught.value)

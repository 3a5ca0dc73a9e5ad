"""Candidates that as one operation compute what each of them computes by itself."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nni.nas.hub.pytorch.nasbench201 import Zero
from nni.nas.hub.pytorch.nasnet import Zero as ZeroOfNasnet
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d
from one_choice import OneChoice
from torch import nn

from nni_gumbel import relax
from nni_gumbel.supernet.candidates import MergedLinear, merge, plan

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture(autouse=True, scope="module")
def merged_whatever_the_input():
    """The inputs here are small, and one by one most of these candidates would be cheaper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MergedLinear, "repays", lambda self, x: True)
        yield


def both_ways(candidates, dtype=torch.float64):
    """The supernet that merges, the one that does not, and how to set the weights of each."""
    spaces = [OneChoice(copy.deepcopy(candidates)).to(dtype) for _ in range(2)]
    return [(space, relax(space, merged=merged)) for space, merged in zip(spaces, (True, False))]


def results(space, distribution, weights, x, is_double=False):
    """Output and gradients of input, weights and parameters; of second order, too."""
    weights, x = weights.clone().requires_grad_(), x.clone().requires_grad_()
    distribution.joint_sample.set({"layer": weights})
    inputs = [x, weights, *space.parameters()]
    output = space(x)
    take = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad((output**3).sum(), inputs, create_graph=is_double, **take)
    if not is_double:
        return [output, *gradients]
    return [output, *gradients, *torch.autograd.grad(sum((g**2).sum() for g in gradients), inputs, **take)]


def assert_equal(merged, plain, tolerance):
    for one, other in zip(merged, plain, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@st.composite
def geometries(draw):
    """Candidates of one choice whose outputs have one size, and an input for them."""
    dims = draw(st.sampled_from([1, 1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 4]))
    inputs = 4
    outputs = draw(st.sampled_from([4, 4, 8]))
    stride = draw(st.sampled_from([1, 1, 2, 3]))
    growth = draw(st.sampled_from([0, 0, 1, -1, -2]))
    Conv, bias = CONVOLUTIONS[dims], st.booleans()

    def padding(size, dilation):
        total = growth + dilation * (size - 1)
        return total // 2 if total >= 0 and total % 2 == 0 else None

    fitting = [
        (size, dilation, padding(size, dilation))
        for size, dilation in itertools.product(range(1, 6), (1, 2, 3))
        if padding(size, dilation) is not None
    ]

    def convolution(channels, number):
        size, dilation, pad = draw(st.sampled_from(fitting))
        return Conv(inputs, channels, size, stride, pad, dilation=dilation, groups=number, bias=draw(bias))

    def dense():
        return convolution(outputs, 1)

    def grouped():
        return convolution(outputs, groups)

    def depthwise():
        return convolution(outputs, inputs)

    def sequence():
        middle = draw(st.sampled_from([4, 8]))
        first = convolution(middle, draw(st.sampled_from([1, 2, 4])))
        return nn.Sequential(first, Conv(middle, outputs, 1, bias=draw(bias)))

    def average():
        sizes = [(s, pad) for s, dilation, pad in fitting if dilation == 1 and 2 * pad <= s]
        assume(sizes and inputs == outputs)
        size, pad = draw(st.sampled_from(sizes))
        return POOLS[dims](size, stride, pad, count_include_pad=draw(st.booleans()))

    def maximum():
        assume(dims == 2 and growth == 0 and inputs == outputs)
        return nn.MaxPool2d(3, stride, 1)

    def identity():
        assume(stride == 1 and growth == 0 and inputs == outputs)
        return nn.Identity()

    def zero():
        assume(growth == 0 and inputs == outputs and (stride == 1 or dims == 2))
        return draw(st.sampled_from([Zero(4, 4, stride), ZeroOfNasnet(stride)]))

    kinds = [dense, dense, grouped, depthwise, sequence, average, maximum, identity, zero]
    candidates = []
    for _ in range(draw(st.integers(2, 7))):
        candidates.append(draw(st.sampled_from(kinds))())
    # The pools of torch refuse images smaller than their windows.
    size = draw(st.sampled_from([(5, 6, 5), (8, 5, 6)]))[:dims]
    assume(all(extent + growth >= 1 for extent in size))
    return candidates, (2, inputs, *size)


@given(geometries(), st.sampled_from([torch.float64, torch.float32]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_any_mixture_of_geometries_gives_the_outputs_and_gradients_of_the_plain_one(geometry, dtype, seed):
    candidates, shape = geometry
    torch.manual_seed(seed)
    x, weights = torch.randn(shape, dtype=dtype), torch.rand(len(candidates), dtype=dtype) + 0.1
    # Some of them do not run.
    weights = weights * (torch.rand(len(candidates)) < 0.8)
    assume(weights.any())
    merged, plain = both_ways(candidates, dtype)
    assert_equal(results(*merged, weights, x, True), results(*plain, weights, x, True), TOLERANCE[dtype])


@pytest.mark.slow
@given(geometries(), st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_no_merged_kernel_costs_more_multiply_adds_than_the_candidates_it_replaces(geometry, data):
    candidates = dict(enumerate(geometry[0]))

    def multiply_adds(module):
        if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
            size = module.kernel_size
            return 4 * (
                torch.Size(size).numel() if isinstance(size, tuple) else size ** (len(geometry[1]) - 2)
            )
        return sum(
            p.numel() for part in module.modules() for p in [getattr(part, "weight", None)] if p is not None
        )

    for one in merge(candidates):
        kernel = one.canvas
        size = torch.Size(map(len, kernel.taps)).numel()
        inputs, outputs = one.frame.channels
        assert kernel.cost == size * inputs * outputs // kernel.groups or len(one.names) == 1
        assert kernel.cost <= sum(multiply_adds(candidates[name]) for name in one.names)


def test_linear_layers_and_an_identity_are_one_linear_layer():
    candidates = [nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Identity(), nn.Linear(6, 6)]
    merged, plain = both_ways(candidates)
    x, weights = torch.randn(3, 5, 6).double(), torch.rand(4).double()
    assert merged[0].layer.plan().describe() == "0, 1, 2, 3 as one linear layer"
    assert_equal(results(*merged, weights, x, True), results(*plain, weights, x, True), 1e-10)


def names_that_merge(candidates):
    return [one.names for one in merge(candidates)]


def test_a_depthwise_convolution_is_not_made_dense_and_a_dilated_one_not_filled():
    def conv(size, dilation=1, groups=1):
        return nn.Conv2d(64, 64, size, padding=dilation * (size - 1) // 2, dilation=dilation, groups=groups)

    assert names_that_merge({"depthwise": conv(3, groups=64), "pointwise": conv(1)}) == [
        ("depthwise",),
        ("pointwise",),
    ]
    # Without parameters they cost little, and join whatever holds them.
    joined = names_that_merge(
        {"depthwise": conv(3, groups=64), "average": nn.AvgPool2d(3, 1, 1), "id": nn.Identity()}
    )
    assert joined == [("depthwise", "average", "id")]
    assert names_that_merge({"dilated": conv(7, 2), "dense": conv(7)}) == [("dilated",), ("dense",)]
    # Its entries lie among those of the dense one.
    assert names_that_merge({"dilated": conv(3, 2), "dense": conv(5)}) == [("dilated", "dense")]
    # Between its entries nothing lies: the merged kernel stays dilated.
    (one,) = merge({"dilated": conv(3, 2), "pointwise": conv(1)})
    assert one.canvas.cost == 9 * 64 * 64


def test_the_mnist_space_runs_all_but_the_maximum_as_one_convolution():
    from search_spaces.mnist import operations

    candidates = operations(20)
    found = plan(candidates)
    assert list(found.alone) == ["max_pool"]
    assert found.describe().startswith(", ".join(name for name in candidates if name != "max_pool"))
    assert "one 7x7 convolution" in found.describe()


@pytest.mark.parametrize(
    "candidate",
    [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(3, 1, 1, ceil_mode=True),
        nn.AvgPool2d(3, 1, 1, divisor_override=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=0), nn.Conv2d(4, 4, 1, padding=1)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        type("OwnConv", (nn.Conv2d,), {"forward": lambda self, x: 2 * x})(4, 4, 3, padding=1),
        nn.PReLU(),
        nn.Dropout(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_not_exact_runs_by_itself(candidate):
    found = plan({"conv": nn.Conv2d(4, 4, 3, padding=1), "identity": nn.Identity(), "other": candidate})
    assert list(found.alone) == ["other"]
    assert "conv, identity as one" in found.describe()


def test_a_convolution_of_nni_without_choices_is_a_convolution():
    space = OneChoice({"nni": MutableConv2d(4, 4, 3, padding=1), "torch": nn.Conv2d(4, 4, 1)})
    relax(space)
    assert space.layer.plan().describe() == "nni, torch as one 3x3 convolution"


def test_a_hook_on_a_candidate_is_obeyed_while_it_is_there():
    (space, distribution), _ = both_ways([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])
    x, calls = torch.randn(1, 2, 3, 3).double(), []
    distribution.use_probabilities()
    hook = [space.layer[1].register_forward_hook(lambda *_: calls.append(1))]
    before = space(x)
    assert calls == [1]
    hook.pop().remove()
    for times in (1, 2):
        assert torch.allclose(space(x), before) and len(calls) == times
        assert space.layer.plan().describe() == "0, 1, 2 as one 1x1 convolution"
        hook.append(space.layer[1].register_forward_hook(lambda *_: calls.append(1)))
        assert torch.allclose(space(x), before) and len(calls) == times + 1
        assert space.layer.plan().describe() == "0, 2 as one 1x1 convolution; 1 alone: hooked into"
        hook.pop().remove()


def test_a_candidate_that_is_replaced_runs_from_then_on():
    (space, distribution), _ = both_ways([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])
    x = torch.randn(1, 2, 3, 3).double()
    distribution.use_probabilities()
    space(x)
    setattr(space.layer, "0", nn.Conv2d(2, 2, 1).double())
    assert torch.allclose(space(x), (space.layer[0](x) + space.layer[1](x)) / 2, rtol=1e-6)


def test_copies_run_with_their_own_parameters():
    (space, distribution), _ = both_ways([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)])
    x = torch.randn(1, 2, 3, 3).double()
    distribution.use_probabilities()
    before = space(x)
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space.layer))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not copy.copy(other)(x).any()
    assert torch.equal(space(x), before)


def test_parameters_and_their_names_stay():
    candidates = {
        "a": nn.Conv2d(2, 2, 1),
        "b": nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)),
    }
    (space, _), (plain, _) = both_ways(candidates)
    assert list(space.state_dict()) == list(plain.state_dict()) == list(OneChoice(candidates).state_dict())
    assert [type(module) for module in space.modules()] == [type(module) for module in plain.modules()]


def test_candidates_that_merge_and_others_of_another_shape_are_refused_in_one_line():
    space = OneChoice([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2)])
    relax(space)
    with pytest.raises(Exception, match="outputs of different shapes") as error:
        space(torch.randn(1, 2, 4, 4))
    assert "'0, 1' gives (1, 2, 4, 4)" in str(error.value)


def test_a_single_active_candidate_is_called_as_it_is():
    (space, distribution), _ = both_ways([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)])
    distribution.use_architecture({"layer": 1})
    x = torch.randn(1, 2, 3, 3).double()
    output = space(x)
    assert torch.equal(output, space.layer[1](x))
    assert output.grad_fn.name() == space.layer[1](x).grad_fn.name()


def test_autocast_rounds_the_merged_kernel_and_nothing_before():
    candidates = [nn.Conv2d(4, 4, k, padding=k // 2) for k in (1, 3, 3)] + [
        nn.Identity(),
        nn.MaxPool2d(3, 1, 1),
    ]
    (space, distribution), (plain, reference) = both_ways(candidates, torch.float32)
    x, weights = torch.randn(2, 4, 5, 5), torch.rand(5)
    exact = results(plain, reference, weights, x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = results(space, distribution, weights, x)
    for one, other in zip(rounded, exact, strict=True):
        assert (one - other).abs().max() <= 0.05 * other.abs().max()


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (nn.Conv2d(4, 4, 7, padding=6, dilation=2), "a merged kernel would cost more, or there is none"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "neither linear, with a padding of zeros"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), "a batch norm is not linear in train mode"),
        (nn.AvgPool2d(3, 1, 1, ceil_mode=True), "joins only convolutions of its stride and size"),
        (nn.ReLU(), "no other is elementwise"),
        (nn.MaxPool2d(3, 1, 1), "neither linear, with a padding of zeros, nor elementwise"),
    ],
)
def test_what_runs_alone_says_why(candidate, reason):
    found = plan({"small": nn.Conv2d(4, 4, 1), "large": nn.Conv2d(4, 4, 7, padding=3), "other": candidate})
    assert f"other alone: {reason}" in found.describe()


def test_the_class_of_a_merge_is_told():
    (operation,) = plan({"a": nn.Conv1d(4, 4, 3, padding=1, groups=2), "b": nn.AvgPool1d(3, 1, 1)}).operations
    assert isinstance(operation, MergedLinear)
    assert operation.describe() == "one 3 convolution in 2 groups"


def test_the_log_says_once_a_choice_what_runs_as_one_and_what_alone_and_why(caplog):
    class Twice(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                *(
                    LayerChoice(
                        {
                            "a": nn.Conv2d(2, 2, 1),
                            "b": nn.Conv2d(2, 2, 3, padding=1),
                            "c": nn.MaxPool2d(3, 1, 1),
                        },
                        label="both",
                    )
                    for _ in range(2)
                )
            )

    for merged in (True, False):
        with caplog.at_level("INFO", logger="nni_gumbel.supernet"):
            relax(Twice(), merged=merged)
    assert [record.getMessage() for record in caplog.records] == [
        "choice 'both': a, b as one 3x3 convolution; c alone: neither linear, with a padding of zeros, nor elementwise "
        "(2 modules)",
        "choice 'both': a, b, c alone: merging is off (2 modules)",
    ]


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_max_pooling_chooses_the_same_entries_also_among_equal_ones(channels, layout):
    candidates = [nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(channels)]
    merged, plain = both_ways(candidates)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64).relu().contiguous(memory_format=layout)
    for weights in (torch.tensor([0.4, 0.6]).double(), torch.tensor([1.0, 0.0]).double()):
        found, expected = results(*merged, weights, x), results(*plain, weights, x)
        assert found[0].stride() == expected[0].stride()
        assert all(map(torch.equal, found, expected))

"""Expected FLOPs are exact: against enumeration of all networks, finite differences and counts by hand."""

import copy
import time

import nni
import pytest
import torch
from argument_modules import MODULES
from argument_spaces import Space, all_samples
from generated_spaces import GeneratedSpace, example_batch, plans, samples_of
from hypothesis import HealthCheck, assume, given, settings
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLinear,
    Repeat,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from priced_networks import assert_prices_equal_counts, flops_of, frozen_by_nni, with_random_logits
from torch import nn

from nni_gumbel import relax
from nni_gumbel.complexity.flops import count_flops, expected_flops
from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.structure import used_part
from search_spaces.mnist import MnistSpace


def image(channels=2, size=6):
    return torch.zeros(2, channels, size, size)


def everything(space):
    return all_samples(space, limit=10_000)


# -- random spaces -----------------------------------------------------------------------------------


@pytest.mark.slow
@given(plan=plans)
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_expected_flops_equal_the_enumeration_of_all_networks(plan):
    space, x = GeneratedSpace(plan), example_batch(torch.float32)
    samples = samples_of(space, limit=12)
    expected = assert_prices_equal_counts(space, x, samples=samples)
    assume(len(samples) < 12)
    distribution = with_random_logits(flops_of(space, x)[1])
    with torch.no_grad():
        enumerated = sum(
            distribution.log_prob(sample).exp().item() * count_flops(frozen_by_nni(space, sample), x)
            for sample in samples
        )
        assert float(expected(distribution.outcome_probs(expected.labels))) == pytest.approx(enumerated)


@given(plan=plans)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_the_gradient_of_expected_flops_equals_finite_differences(plan):
    expected, distribution = flops_of(GeneratedSpace(plan), example_batch(torch.float32))
    assume(expected.labels)
    with_random_logits(distribution)

    def cost(*logits):
        laws = (distribution.laws[label] for label in expected.labels)
        probs = {label: law.outcome_probs(value) for label, law, value in zip(expected.labels, laws, logits)}
        return expected(probs)

    logits = [distribution.logits[label] for label in expected.labels]
    assert torch.autograd.gradcheck(cost, logits)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_with_choices_in_its_arguments_has_the_flops_of_its_frozen_networks(name):
    make, *inputs = MODULES[name]
    inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    space = Space(make)
    assert_prices_equal_counts(space, *inputs, samples=all_samples(space, 4))


# -- width, kernel, depth ----------------------------------------------------------------------------


class Mobile(ModelSpace):
    """Width, kernel, stride, groups, expansion and depth at once; what follows must follow."""

    def __init__(self):
        super().__init__()
        width, kernel = nni.choice("width", [2, 4]), nni.choice("kernel", [1, 3])
        stride = nni.choice("stride", [1, 2])

        def block(_):
            hidden = width * nni.choice("expansion", [1, 2])
            return nn.Sequential(
                MutableConv2d(width, hidden, 1, bias=False),
                MutableBatchNorm2d(hidden),
                nn.Hardswish(),
                MutableConv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden),
                MutableConv2d(hidden, width, 1, groups=2),
            )

        self.stem = MutableConv2d(2, width, 3, stride=stride)
        self.blocks = Repeat(block, (0, 2), label="depth")
        self.head = MutableLinear(width * 2, 3)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def test_widths_kernels_strides_groups_and_depth_are_exact_together():
    space = Mobile()
    assert_prices_equal_counts(space, image(), samples=everything(space))


def test_the_size_of_a_table_follows_from_what_a_layer_depends_on():
    expected, _ = flops_of(Mobile(), image())
    # Nothing before the head depends on all five; the head on the width alone.
    assert set(max(expected.tables, key=lambda table: len(table.labels)).labels) == {
        "width", "kernel", "stride", "expansion", "depth"
    }  # fmt: skip


# -- forwards of a person's own ----------------------------------------------------------------------


class Shuffle(nn.Module):
    """Reads sizes, branches on them, builds tensors from them, loops over them."""

    def __init__(self):
        super().__init__()
        self.activation = nn.ReLU()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        batch, channels, height, width = x.shape
        assert channels % 2 == 0
        x = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
        x = x.reshape(2, batch, channels // 2, height, width)[1]
        if channels > 2:
            x = self.activation(x)
        for _ in range(channels):
            x = self.layer(x)
        return x + torch.ones(channels // 2, 1, 1)


class Shuffled(ModelSpace):
    def __init__(self):
        super().__init__()
        self.conv = MutableConv2d(2, nni.choice("width", [2, 4, 6]) * nni.choice("factor", [1, 2]), 1)
        self.shuffle = Shuffle()

    def forward(self, x):
        x = self.shuffle(self.conv(x))
        return x.view(x.shape[0], -1)


def test_a_forward_may_do_what_it_likes_with_sizes():
    space = Shuffled()
    assert_prices_equal_counts(space, image(), samples=everything(space))


class Priced(ModelSpace):
    """Runs layers before and after it needs to know a size."""

    def __init__(self):
        super().__init__()
        self.conv = MutableConv2d(2, nni.choice("width", [2, 4]), 1)
        self.activation, self.layer = nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x):
        x = self.activation(self.conv(x))
        for _ in range(x.shape[1]):
            x = self.layer(x)
        return sum(self.activation(part) for part in x.transpose(0, 1))


def test_what_runs_before_a_size_is_needed_counts_once():
    space = Priced()
    assert_prices_equal_counts(space, image(), samples=everything(space))


class Many(ModelSpace):
    """Functions that give several results, and lists, of tensors of varying shape."""

    def __init__(self):
        super().__init__()
        self.conv = MutableConv2d(2, nni.choice("width", [2, 4]) * 2, 1)
        self.activation = nn.Tanh()

    def forward(self, x):
        x = self.conv(x)
        half, other = x.chunk(2, dim=1)
        largest = x.max(dim=1)
        assert largest.indices.dtype == torch.int64 and x.device == half.device and x.dim() == 4
        parts = [half, {"key": (other, largest.values.unsqueeze(1))}]
        joined = torch.cat([parts[0], *parts[1]["key"]], dim=1)
        return self.activation(joined), self.activation(torch.zeros(len(joined.T), x.numel() // 4))


def test_functions_with_several_results_are_followed():
    space = Many()
    assert_prices_equal_counts(space, image(), samples=everything(space))


class InPlace(ModelSpace):
    def __init__(self):
        super().__init__()
        self.conv = MutableConv2d(2, nni.choice("width", [2, 4]), 1)
        self.after = MutableConv2d(nni.choice("width", [2, 4]), 3, 1)

    def forward(self, x, *, scale, skip=None):
        y = self.conv(x)
        y *= scale
        y[:, :1] = 0
        return {"out": self.after(y), "width": y.size(1)}


def test_keywords_dicts_and_changes_in_place_are_followed():
    space = InPlace()
    assert_prices_equal_counts(space, image(), scale=torch.ones(1), samples=everything(space))


class Wide(ModelSpace):
    """The width of a concatenation of two of three inputs depends on which they are."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, width, 1) for width in (1, 2, 4))
        self.choice = InputChoice(3, n_chosen=2, reduction="none", label="inputs")
        self.activation = nn.SiLU()

    def forward(self, x):
        return self.activation(torch.cat(self.choice([conv(x) for conv in self.convs]), 1))


def test_inputs_of_different_widths_are_priced_by_the_set_that_is_chosen():
    expected, _ = flops_of(Wide(), image())
    convs = 36 * 3 * (1 + 2 + 4)
    assert [expected.at({"inputs": outcome}) - convs for outcome in range(3)] == [36 * 3, 36 * 5, 36 * 6]


class ManyInputs(ModelSpace):
    def __init__(self, number, *widths):
        super().__init__()
        self.number = number
        self.layers = nn.ModuleList(nn.Linear(3, width) for width in widths or [3])
        self.choice = InputChoice(number, n_chosen=None, reduction="sum", label="inputs")

    def forward(self, x):
        return self.choice([layer(x) for layer in self.layers] + [x] * (self.number - len(self.layers)))


def test_a_choice_of_any_number_of_many_inputs_of_one_shape_costs_no_listing():
    start = time.process_time()
    expected, _ = flops_of(ManyInputs(40), torch.zeros(2, 3))
    assert expected.labels == () and time.process_time() - start < 2


def test_more_sets_of_inputs_of_different_shapes_than_can_be_told_apart_are_refused_at_once():
    start = time.process_time()
    with pytest.raises(UsageError, match="choice 'inputs': its 1,099,511,627,775 sets of inputs") as refused:
        flops_of(ManyInputs(40, 3, 1), torch.zeros(2, 3))
    assert time.process_time() - start < 2 and "\n" not in str(refused.value)


class Decides(nn.Module):
    def forward(self, x):
        return x.relu() if x.shape[1] % 2 else x


class Widths(ModelSpace):
    """A decision on each of several widths, in the forward of the space or in modules of their own."""

    def __init__(self, number, apart):
        super().__init__()
        widths = [2, *(nni.choice(f"width{i}", [2, 3]) for i in range(number))]
        self.convs = nn.ModuleList(MutableConv2d(a, b, 1) for a, b in zip(widths, widths[1:]))
        self.decides = Decides() if apart else Decides().forward

    def forward(self, x):
        for conv in self.convs:
            x = self.decides(conv(x))
        return x


def test_decisions_on_more_combinations_of_shapes_than_can_be_run_are_refused_in_time():
    start = time.process_time()
    with pytest.raises(
        UsageError, match="module 'Widths': its forward decides in Python on shapes"
    ) as refused:
        flops_of(Widths(20, apart=False), image())
    assert time.process_time() - start < 10 and "\n" not in str(refused.value)


@pytest.mark.parametrize(("number", "apart"), [(3, False), (20, True)])
def test_decisions_on_few_combinations_and_those_in_modules_of_their_own_are_counted(number, apart):
    assert_prices_equal_counts(Widths(number, apart), image(), samples=3)


def test_all_inputs_of_a_choice_are_computed():
    class Inputs(ModelSpace):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.choice = InputChoice(2, n_chosen=None, reduction="sum", label="inputs")

        def forward(self, x):
            return self.choice([self.a(x), self.b(x)])

    expected = assert_prices_equal_counts(Inputs(), torch.zeros(2, 3), samples=[{"inputs": [1]}])
    assert expected.labels == () and expected.at({}) == 24


def test_a_module_that_is_called_twice_costs_twice_and_counts_where_it_is_reached():
    class Twice(ModelSpace):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(3, 3)
            self.first = LayerChoice([shared, nn.Identity()], label="first")
            self.second = LayerChoice([shared, nn.Tanh()], label="second")

        def forward(self, x):
            return self.second(self.first(self.first(x)))

    space = Twice()
    assert_prices_equal_counts(space, torch.zeros(2, 3), samples=everything(space))


def test_a_label_that_occurs_again_inside_is_fixed_there():
    class Nested(ModelSpace):
        def __init__(self):
            super().__init__()
            # The last candidate of the inner choice does not run on what the outer one's first gives.
            inner = LayerChoice([nn.Linear(3, 4), nn.Linear(9, 9)], label="shared")
            self.layers = LayerChoice([nn.Sequential(nn.ReLU(), inner), nn.Linear(3, 4)], label="shared")

        def forward(self, x):
            return self.layers(x)

    assert_prices_equal_counts(Nested(), torch.zeros(2, 3), samples=[{"shared": 0}, {"shared": 1}])


@pytest.mark.parametrize("from_factories", [False, True])
def test_what_follows_a_cell_with_loose_ends_costs_as_much_as_is_loose(from_factories):
    class Loose(ModelSpace):
        def __init__(self):
            super().__init__()
            ops = [nn.Linear(3, 3), nn.Tanh()]
            candidates = [lambda *_, op=op: copy.deepcopy(op) for op in ops] if from_factories else ops
            self.cell = Cell(candidates, 3, 2, 1, "loose_end", label="cell")
            self.activation = nn.SiLU()

        def forward(self, x):
            return self.activation(self.cell(x))

    expected = assert_prices_equal_counts(Loose(), torch.zeros(2, 3), samples=8)
    assert len(max(expected.tables, key=lambda table: len(table.labels)).labels) == 4


# -- formulas ----------------------------------------------------------------------------------------


def test_attention_costs_what_nnis_formula_says():
    attention = nn.MultiheadAttention(8, 2, kdim=3, vdim=5, batch_first=True)
    q, k, v = torch.zeros(3, 4, 8), torch.zeros(3, 6, 3), torch.zeros(3, 6, 5)
    scaling, projections = 4 * 8, 4 * 8 * 9 + 6 * 8 * 4 + 6 * 8 * 6 + 4 * 8 * 9
    assert count_flops(attention, q, k, v) == scaling + projections + 2 * 4 * 6 * (4 + 1 + 4)
    assert count_flops(attention, query=q, key=k, value=v) == count_flops(attention, q, k, v)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_inside_a_transformer_is_counted_once_whatever_comes_first(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 5, batch_first=batch_first)
    x = torch.zeros(3, 4, 8) if batch_first else torch.zeros(4, 3, 8)
    attention = 4 * 8 + 4 * (4 * 8 * 9) + 2 * 4 * 4 * 9
    assert count_flops(layer, x) * len(x) == 3 * (attention + 4 * (5 * 9 + 8 * 6))


class OwnActivation(nn.SiLU):
    pass


@pytest.mark.parametrize(
    "activation", [OwnActivation, nn.Mish, nn.Hardswish, nn.PReLU, nn.Softplus, nn.LogSigmoid]
)
def test_every_activation_costs_one_an_element(activation):
    assert count_flops(activation(), torch.zeros(2, 3, 4)) == 12


# -- refusals ----------------------------------------------------------------------------------------


class OnEntries(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def one_line(space, *inputs):
    with pytest.raises(UsageError) as caught:
        flops_of(space, *inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_forward_that_depends_on_entries_is_refused_by_name():
    space = Space(lambda: nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="a"), OnEntries()))
    assert "module 'net.1': the FLOPs of OnEntries" in one_line(space, torch.zeros(2, 3))


def test_a_module_of_a_persons_own_mutation_hook_is_refused_by_name():
    class Mixed(nn.Module):
        pass

    class Own(BaseSuperNetModule):
        def forward(self, x):
            return x

    def hook(module, name, memo, mutate_kwargs):
        return Own() if isinstance(module, nn.Softsign) else None

    space = Space(lambda: nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="a"), nn.Softsign()))
    distribution = relax(space, [hook])
    with pytest.raises(UsageError, match="module 'net.1': Own comes from a mutation hook"):
        expected_flops(space, distribution, (torch.zeros(2, 3),), {})


def test_more_than_a_million_states_in_one_term_are_refused_by_name():
    def candidate(k):
        return MutableLinear(3, nni.choice(f"width{k}", list(range(1, 12))))

    class TooMany(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(candidate(k) for k in range(6))
            self.layer = LayerChoice([nn.ReLU(), nn.Tanh()], label="activation")
            self.norm = nn.Softmax(-1)

        def forward(self, x):
            return self.norm(torch.cat([layer(x) for layer in self.layers], 1))

    words = one_line(TooMany(), torch.zeros(2, 3))
    assert "module 'TooMany': its FLOPs depend on 1,771,561 combinations of the choices 'width0'" in words


# -- what a search relies on -------------------------------------------------------------------------


def test_the_supernet_is_left_as_it_was():
    space = Mobile()
    distribution = relax(space)
    before = copy.deepcopy(space.state_dict())
    distribution.sample(1.0)
    weights = distribution.joint_sample.weights("width")
    expected_flops(space, distribution, (image(),), {})
    assert distribution.joint_sample.weights("width") is weights and space.training
    assert all(torch.equal(value, before[key]) for key, value in space.state_dict().items())
    assert not any("forward" in vars(module) for module in space.modules())
    distribution.use_architecture({"width": 2, "kernel": 3, "stride": 1, "expansion": 2, "depth": 1})
    space(image(size=8)).sum().backward()


def test_a_label_that_a_network_does_not_use_does_not_change_its_cost():
    space = Mobile()
    expected, distribution = flops_of(space, image())
    sample = {"width": 2, "kernel": 3, "stride": 1, "expansion": 2, "depth": 0}
    assert "expansion" not in used_part(space, sample)
    outcomes = {"width": 0, "kernel": 1, "stride": 0, "depth": 0}
    assert expected.at(outcomes | {"expansion": 0}) == expected.at(outcomes | {"expansion": 1})


def test_the_mnist_space_is_exact_and_its_tables_are_built_in_less_than_a_second():
    space, x = MnistSpace(), torch.zeros(2, 1, 28, 28)
    assert_prices_equal_counts(space, x, samples=20)
    distribution = relax(space)
    start = time.process_time()
    expected_flops(space, distribution, (x,), {})
    assert time.process_time() - start < 2  # 0.2 s on an idle core


class Concatenated(ModelSpace):
    """Forty layers of one width, side by side."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [1, 2, 3, 4])
        self.layers = nn.ModuleList(MutableLinear(3, width) for _ in range(40))
        self.head = MutableLinear(width * 40, 2)

    def forward(self, x):
        return self.head(torch.cat([layer(x) for layer in self.layers], -1))


def test_very_many_tensors_that_depend_on_one_choice_are_followed_together():
    assert_prices_equal_counts(Concatenated(), torch.zeros(2, 3), samples=everything(Concatenated()))


class OfMany(ModelSpace):
    """A choice of seventy widths, and what follows costs as much as is chosen."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice(
            [nn.Sequential(nn.Linear(4, k + 1), nn.ReLU(), nn.Linear(k + 1, 2)) for k in range(70)],
            label="layer",
        )

    def forward(self, x):
        return self.layer(x)


@pytest.mark.slow
def test_a_choice_of_very_many_candidates_is_exact():
    assert_prices_equal_counts(OfMany(), torch.zeros(2, 4), samples=everything(OfMany()))


class ManySizes(ModelSpace):
    """A convolution of 1,536 sizes, after two that its shape depends on, and one that reads its width."""

    def __init__(self):
        super().__init__()
        widths = [nni.choice(label, list(range(2, 34, 2))) for label in ("width0", "width1")]
        strides = [nni.choice(f"stride{i}", [1, 2, 3]) for i in range(3)]
        self.layers = nn.Sequential(
            MutableConv2d(1, widths[0], 1, stride=strides[0]),
            MutableConv2d(widths[0], widths[0], 1, stride=strides[1]),
            MutableConv2d(widths[0], widths[1], nni.choice("kernel", [1, 3]), stride=strides[2], padding=3),
            MutableConv2d(widths[1], 1, 1),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.slow
def test_a_layer_after_one_of_very_many_sizes_reads_the_width_of_its_own_network():
    # As many conditions tell the widths apart; a code of them all had overflown, and widths were mixed up.
    assert_prices_equal_counts(ManySizes(), image(1, 28), samples=10)

"""Cells of modules and of factories, merged in both ways: at a sample the frozen network."""

import pytest
import torch
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, Repeat
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.cell import MixedCell, check_loose_ends
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.testing import assert_supernet_equals_frozen, random_samples

WIDTH = 3


def norm():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))


def made(node, op, source):
    """Another module for another place: wider inside the later the node, rectified for some inputs."""
    hidden = WIDTH + node + op
    middle = nn.ReLU() if source == 0 else nn.Tanh()
    return nn.Sequential(nn.Linear(WIDTH, hidden), middle, nn.Linear(hidden, WIDTH))


def made_plain(node, op, source):
    return nn.Tanh()


def made_with_choice(node, op, source):
    return LayerChoice([norm(), nn.Tanh()], label="in_every_candidate")


class Align(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.layers = nn.ModuleList([norm(), second])

    def forward(self, inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs)]


class Chain(nn.Module):
    """As in the cells of the hub: the next cell wants the outputs of this cell and of the one before it."""

    def __init__(self):
        super().__init__()
        self.layer = norm()

    def forward(self, this, before):
        return [self.layer(before[-1]), this]


def squeeze(this, before):
    return this[:, ::2]


class Cells(ModelSpace):
    """Cells one after another; the outputs go through ``after``."""

    def __init__(self, *make, after=None, predecessors=1):
        super().__init__()
        self.cells = nn.ModuleList(one() for one in make)
        self.after, self._predecessors = after or nn.Identity(), predecessors

    def forward(self, x):
        x = [x * (1 + i) for i in range(self._predecessors)]
        for cell in self.cells:
            x = cell(x)
        return self.after(x)


class Width(nn.Module):
    """Accepts every width."""

    def forward(self, x):
        return torch.stack([x.mean(1), x.square().sum(1)], 1)


OPS = {
    "a list of modules": lambda: [norm(), nn.Tanh()],
    "a dict of modules": lambda: {"norm": norm(), "tanh": nn.Tanh()},
    "a list of factories": lambda: [made, made_plain],
    "a dict of factories": lambda: {"made": made, "plain": made_plain},
    "factories and modules": lambda: {"made": made, "norm": norm()},
    "factories with choices": lambda: {"made": made, "choose": made_with_choice},
    "one function": lambda: lambda: [norm(), nn.Tanh()],
}


def batch(dtype=torch.float64):
    return torch.randn(5, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Directly passing a callable")
@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
@pytest.mark.parametrize("candidates", OPS.values(), ids=OPS)
def test_at_a_sample_it_is_the_frozen_network(candidates, merge_op):
    space = Cells(lambda: Cell(candidates(), 3, 1, 1, merge_op, label="cell"))
    assert_supernet_equals_frozen(space, batch(), 3, continuous=merge_op == "all")


@pytest.mark.parametrize("candidates", [OPS["a dict of modules"], OPS["a dict of factories"]])
@pytest.mark.parametrize(("predecessors", "ops_per_node"), [(2, 1), (2, 2)])
def test_with_other_numbers_of_predecessors_and_operations_it_is_the_frozen_network(
    candidates, predecessors, ops_per_node
):
    space = Cells(
        lambda: Cell(candidates(), 2, ops_per_node, predecessors, label="cell"), predecessors=predecessors
    )
    assert_supernet_equals_frozen(space, batch(), 3)


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
@pytest.mark.parametrize("name", ["a dict of modules", "a dict of factories"])
def test_what_comes_before_and_after_the_nodes_keeps_its_weights(name, merge_op):
    def cell():
        second = norm()
        if name == "a dict of modules":  # NNI's cell from factories does not freeze what comes before
            second = LayerChoice([norm(), nn.Identity()], label="align")
        return Cell(OPS[name](), 2, 1, 2, merge_op, Align(second), Chain(), label="cell")

    space = Cells(cell, predecessors=2)
    assert_supernet_equals_frozen(space, batch(), 3, continuous=merge_op == "all")


@pytest.mark.parametrize("name", ["a dict of modules", "a dict of factories"])
def test_plain_functions_before_and_after_the_nodes_are_called(name):
    def cell():
        return Cell(
            OPS[name](), 2, 1, 2, "loose_end", lambda x: [x[1], x[0]], squeeze, concat_dim=0, label="cell"
        )

    assert_supernet_equals_frozen(Cells(cell, predecessors=2), batch(), 3, continuous=False)


def test_without_a_preprocessor_the_postprocessor_sees_what_it_sees_in_the_frozen_network():
    # NNI's cell appends its nodes to the list of its inputs then.
    def last_node_again(this, before):
        return before[-1] + this[:, :WIDTH]

    def cell():
        return Cell(OPS["a dict of factories"](), 2, postprocessor=last_node_again, label="cell")

    assert_supernet_equals_frozen(Cells(cell), batch(), 3)


@pytest.mark.parametrize("name", ["a list of modules", "a list of factories"])
def test_cells_that_share_a_label_make_the_same_choices(name):
    def cell():
        return Cell(
            OPS[name](), 2, 1, 2, "all", Narrow(), lambda this, before: [before[-1], this], label="cell"
        )

    space = Cells(cell, cell, predecessors=2)
    assert set(space.simplify()) == {f"cell/{kind}_{node}_0" for kind in ("op", "input") for node in (2, 3)}
    assert_supernet_equals_frozen(space, batch(), 3)


class Narrow(nn.Module):
    """Takes as many features as a node has."""

    def forward(self, inputs):
        return [x[:, :WIDTH] for x in inputs]


@pytest.mark.parametrize("name", ["a list of modules", "a list of factories"])
def test_cells_in_a_repeat_of_a_chosen_depth_are_the_frozen_network(name):
    def cells():
        def cell(i):
            return Cell(
                OPS[name](), 2, postprocessor=lambda this, _: this[:, 1 : 1 + WIDTH], label=f"cell{i}"
            )

        return Repeat(cell, (1, 3), label="depth")

    class Deep(Cells):
        def forward(self, x):
            return self.cells[0](x)

    assert_supernet_equals_frozen(Deep(cells), batch(), 3)


def test_a_cell_in_a_candidate_of_a_layer_choice_is_the_frozen_network():
    def choice():
        def last(this, _):
            return this[:, -WIDTH:]

        return LayerChoice(
            {
                "cell": Cell(OPS["a list of factories"](), 2, postprocessor=last, label="cell"),
                "norm": norm(),
            },
            label="outside",
        )

    class Inside(Cells):
        def forward(self, x):
            return self.cells[0](x)

    assert_supernet_equals_frozen(Inside(choice), batch(), 3)


def test_a_node_mixes_each_operation_on_each_input():
    space = Cells(lambda: Cell(OPS["a list of factories"](), 1, 1, 2, label="cell"), predecessors=2)
    v, w = torch.tensor([0.25, 0.75]), torch.tensor([0.4, 0.6])
    relax(space).joint_sample.set({"cell/input_2_0": v, "cell/op_2_0": w})
    x = batch(torch.float32)
    expected = sum(
        v[j] * w[o] * list(space.cells[0].ops[0][0][j])[o](x * (1 + j)) for j in range(2) for o in range(2)
    )
    assert torch.allclose(space(x), expected, atol=1e-6)


def test_a_node_counts_by_the_weight_that_no_later_node_takes_it():
    space = Cells(lambda: Cell([nn.Identity(), nn.Identity()], 3, 1, 1, "loose_end", label="cell"))
    distribution = relax(space)
    ops = {f"cell/op_{i}_0": torch.tensor([0.5, 0.5]) for i in (1, 2, 3)}
    inputs = {
        "cell/input_1_0": torch.tensor([1.0]),
        "cell/input_2_0": torch.tensor([0.5, 0.5]),
        "cell/input_3_0": torch.tensor([0.0, 0.75, 0.25]),
    }
    distribution.joint_sample.set(ops | inputs)
    x = batch(torch.float32)
    # Identities: every node is x.
    expected = torch.cat([0.5 * 0.25 * x, 0.75 * x, x], 1)
    assert torch.allclose(space(x), expected, atol=1e-6)


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
@pytest.mark.parametrize("candidates", OPS.values(), ids=OPS)
@pytest.mark.filterwarnings("ignore:Directly passing a callable")
def test_one_loss_has_a_gradient_in_every_logit(candidates, merge_op):
    space = Cells(lambda: Cell(candidates(), 2, 2, 1, merge_op, label="cell"))
    distribution = relax(space)
    distribution.sample(1.0)
    space(batch(torch.float32)).pow(3).sum().backward()
    for label, logits in distribution.logits.items():
        assert len(logits) == 1 or (logits.grad != 0).all(), label


def test_a_candidate_of_weight_zero_is_not_run():
    space = Cells(lambda: Cell(OPS["a dict of factories"](), 1, 1, 2, label="cell"), predecessors=2)
    distribution = relax(space)
    with torch.no_grad():
        space.cells[0].ops[0][0][0]["made"][0].weight.fill_(float("nan"))
    distribution.joint_sample.set(
        {"cell/input_2_0": torch.tensor([0.0, 1.0]), "cell/op_2_0": torch.ones(2) / 2}
    )
    assert torch.isfinite(space(batch(torch.float32))).all()


def test_the_exported_cell_is_nnis_own():
    space = Cells(lambda: Cell(OPS["a dict of factories"](), 2, 1, 1, "loose_end", label="cell"))
    sample = next(random_samples(space, 1))
    relax(space)
    frozen = space.freeze(sample).cells[0]
    assert type(frozen) is Cell and frozen.op_candidates_factory == space.cells[0].op_candidates_factory


def test_choices_that_only_some_inputs_have_are_refused_in_one_line():
    def factory(node, op, source):
        return nn.Tanh() if source is None else made_with_choice(node, op, source)

    with pytest.raises(
        UsageError, match="choice 'cell/in_every_candidate': a factory of cell 'cell'"
    ) as caught:
        relax(Cells(lambda: Cell([factory, made], 2, label="cell")))
    assert "\n" not in str(caught.value)


def test_different_shapes_of_candidates_are_refused_in_one_line_that_names_the_label():
    def wide(node, op, source):
        return nn.Linear(WIDTH, WIDTH + 1)

    space = Cells(lambda: Cell({"wide": wide, "made": made}, 1, label="cell"))
    relax(space)
    with pytest.raises(UsageError, match=r"'cell/op_1_0': .*'wide' gives \(5, 4\)"):
        space(batch(torch.float32))


# -- what follows loose ends -----------------------------------------------------------------------


def loose(after, number=3):
    return Cells(
        lambda: Cell(OPS["a dict of factories"](), number, 1, 1, "loose_end", label="cell"), after=after
    )


def test_a_consumer_that_accepts_every_width_passes_the_check():
    space = loose(Width())
    distribution = relax(space)
    check_loose_ends(space, distribution, lambda: space(batch(torch.float32)))


def test_a_consumer_of_fixed_width_is_searched_at_full_width_as_in_nnis_supernet_and_one_line_says_so(caplog):
    space, x = loose(nn.Linear(3 * WIDTH, 2)), batch(torch.float32)
    distribution = relax(space)
    check_loose_ends(space, distribution, lambda: space(x))
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        line.startswith("choice 'cell': merge_op 'loose_end'")
        and "cannot be frozen" in line
        and "\n" not in line
    )
    distribution.sample(1.0)
    space(x).sum().backward()
    assert all(len(logits) == 1 or logits.grad.any() for logits in distribution.logits.values())
    distribution.use_architecture(distribution.mode())
    assert space(x).shape == (len(x), 2)


def test_a_cell_of_full_width_is_one_after_its_search_is_resumed():
    first, second = (loose(nn.Linear(3 * WIDTH, 2)) for _ in range(2))
    distribution, x = relax(first), batch(torch.float32)
    check_loose_ends(first, distribution, lambda: first(x))
    relax(second).use_architecture(distribution.mode())
    second.load_state_dict(first.state_dict())
    distribution.use_architecture(distribution.mode())
    assert torch.equal(second(x), first(x))


def test_a_consumer_that_refuses_one_width_in_the_middle_is_found(caplog):
    class AllButTwo(nn.Module):
        def forward(self, x):
            if x.shape[1] == 2 * WIDTH:
                raise RuntimeError("not two")
            return x.sum(1)

    space = loose(AllButTwo())
    distribution = relax(space)
    check_loose_ends(space, distribution, lambda: space(batch(torch.float32)))
    assert "does not accept 2 (RuntimeError: not two)" in caplog.text


def test_the_check_leaves_everything_as_it_was():
    space = loose(nn.Sequential(Width(), nn.BatchNorm1d(2), nn.Dropout()))
    distribution = relax(space)
    space.after[1].eval()
    before = {name: value.clone() for name, value in space.state_dict().items()}
    random_state = torch.get_rng_state()
    draws = {label: distribution.joint_sample.weights(label).clone() for label in distribution.variables}

    def run():
        torch.rand(1)
        assert not space.training and not torch.is_grad_enabled()
        space(batch(torch.float32))

    check_loose_ends(space, distribution, run)
    assert all(torch.equal(before[name], value) for name, value in space.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(distribution.joint_sample.weights(label), draw) for label, draw in draws.items())
    assert space.training and space.after[2].training and not space.after[1].training


def test_a_space_without_loose_ends_is_not_run():
    space = Cells(lambda: Cell(OPS["a dict of factories"](), 2, label="cell"))
    check_loose_ends(space, relax(space), lambda: pytest.fail("it was run"))


# -- planted bugs ----------------------------------------------------------------------------------


def _all_nodes(cell, states):
    return [states[index] for index in cell.output_node_indices]


def _wrong_input(cell, node, k, states):
    return slot(cell, node, k, [states[-1], *states[1:]])


slot = MixedCell._slot


@pytest.mark.parametrize(
    ("method", "planted"),
    [("_outputs", _all_nodes), ("_slot", _wrong_input)],
    ids=["loose ends ignored", "wrong input"],
)
def test_the_check_finds_a_planted_bug(monkeypatch, method, planted):
    monkeypatch.setattr(MixedCell, method, planted)
    with pytest.raises(AssertionError):
        assert_supernet_equals_frozen(loose(nn.Identity()), batch(), 4, continuous=False)

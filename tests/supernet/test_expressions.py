"""Expressions over choices as tables, and the distribution of their values under a joint sample."""

import copy
import itertools

import nni
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import CategoricalMultiple, MutableExpression, MutableList

from nni_gumbel.errors import UsageError
from nni_gumbel.supernet.expressions import Tabulated
from nni_gumbel.supernet.joint_sample import JointSample


def joint_sample_of(**weights):
    joint = JointSample()
    joint.set({label: torch.as_tensor(w, dtype=torch.float64) for label, w in weights.items()})
    return joint


def active(table, joint):
    positions, weights = table.weighted(joint)
    return [(table.distinct[k], weight) for k, weight in zip(positions, weights.unbind())]


def two_choices():
    return nni.choice("a", [1, 2, 3]), nni.choice("b", [2, 4])


def test_values_stand_in_row_major_order_of_the_candidates():
    a, b = two_choices()
    table = Tabulated({"product": a * b, "first": a, "constant": "x"})
    assert table.labels == ("a", "b") and table.index.shape == (3, 2)
    assert [table.distinct[k] for k in table.index.flat] == [
        {"product": x * y, "first": x, "constant": "x"} for x, y in itertools.product([1, 2, 3], [2, 4])
    ]


def test_values_at_a_sample_are_those_of_nni():
    a, b = two_choices()
    expressions = {
        "rounded": MutableExpression.to_int(round(a * 0.7 + 1)) // 2,
        "condition": MutableExpression.condition(a < b, a, b),
        "largest": MutableExpression.max(a, b),
        "list": MutableList([a, b]),
    }
    table = Tabulated(expressions)
    for x, y in itertools.product([1, 2, 3], [2, 4]):
        sample = {"a": x, "b": y, "other": 0}
        assert table.distinct[table.position(sample)] == {
            name: e.freeze(sample) for name, e in expressions.items()
        }


def test_combinations_with_one_value_are_one_entry_with_the_sum_of_their_weights():
    a, b = two_choices()
    joint = joint_sample_of(a=[0.5, 0.3, 0.2], b=[0.9, 0.1])
    values = active(Tabulated({"product": a * b}), joint)
    assert [value["product"] for value, _ in values] == [2, 4, 8, 6, 12]
    expected = [0.45, 0.05 + 0.27, 0.03, 0.18, 0.02]
    assert torch.allclose(torch.stack([w for _, w in values]), torch.tensor(expected, dtype=torch.float64))


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_active_values_have_the_law_of_the_expression(first, second, data):
    a, b = nni.choice("a", first), nni.choice("b", second)
    masks = [data.draw(st.lists(st.booleans(), min_size=len(c), max_size=len(c))) for c in (first, second)]
    weights = [torch.rand(len(mask), dtype=torch.float64) * torch.tensor(mask) for mask in masks]
    weights = [w if w.any() else torch.ones_like(w) for w in weights]
    joint = joint_sample_of(a=weights[0], b=weights[1])
    law = {}
    for (x, p), (y, q) in itertools.product(zip(first, weights[0]), zip(second, weights[1])):
        if p * q:
            law[x * y] = law.get(x * y, 0) + float(p * q)
    got = {value["v"]: float(weight) for value, weight in active(Tabulated({"v": a * b}), joint)}
    assert got == pytest.approx(law)


def test_only_active_candidates_count_also_when_others_were_active_before():
    a, b = two_choices()
    table = Tabulated({"sum": a + b})
    active(table, joint_sample_of(a=[0.2, 0.3, 0.5], b=[0.5, 0.5]))
    ((value, weight),) = active(table, joint_sample_of(a=[0.0, 1.0, 0.0], b=[0.0, 1.0]))
    assert value == {"sum": 6} and weight == 1


def test_weights_carry_gradients_to_every_label():
    a, b = two_choices()
    logits = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    joint = JointSample()
    joint.set({"a": logits[0].softmax(0), "b": logits[1].softmax(0)})
    values = active(Tabulated({"product": a * b}), joint)
    sum(value["product"] * weight for value, weight in values).backward()
    assert all(vector.grad.abs().sum() > 0 for vector in logits)


def test_without_a_choice_there_is_one_value_of_weight_one():
    ((value, weight),) = active(Tabulated({"width": 8}), JointSample())
    assert value == {"width": 8} and weight == 1


def test_numbers_that_are_equal_are_one_value_and_true_is_none_of_them():
    assert len(Tabulated({"v": nni.choice("a", [2, 3]) * 1.0}).distinct) == 2
    switch = MutableExpression.condition(nni.choice("a", [0, 1]) > 0, 2.0, 2)
    assert len(Tabulated({"v": switch}).distinct) == 1
    assert (
        len(Tabulated({"v": MutableExpression.condition(nni.choice("a", [0, 1]) > 0, 1, True)}).distinct) == 2
    )


def test_lists_can_be_values():
    table = Tabulated({"kernel": nni.choice("k", [[1, 3], [3, 3]])})
    assert table.distinct[table.position({"k": [3, 3]})] == {"kernel": [3, 3]} and len(table.distinct) == 2


def test_a_copy_of_a_supernet_shares_the_table():
    table = Tabulated({"width": nni.choice("a", [1, 2])})
    assert copy.deepcopy(table) is table


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ({"p": nni.uniform("p", 0, 1)}, r"'p' depends on choice 'p', a Numerical; only nni.choice"),
        (
            {"k": CategoricalMultiple([1, 2], n_chosen=1, label="k")},
            r"'k' depends on choice 'k', a CategoricalMultiple",
        ),
        ({"kernel": (3, nni.choice("k", [1, 3]))}, r"'kernel' hides choice 'k' in a tuple, where NNI"),
        ({"kernel": {"x": [nni.choice("k", [1, 3])]}}, r"'kernel' hides choice 'k' in a dict"),
        (
            {"width": 8 // nni.choice("d", [2, 0])},
            r"'width' = 8 // d cannot be evaluated at d=0: ZeroDivisionError",
        ),
        (
            {"width": sum(nni.choice(f"c{i}", list(range(11))) for i in range(4))},
            r"14,641 combinations of the choices 'c0', 'c1', 'c2', 'c3'; let it depend on fewer \(at most 10,000",
        ),
    ],
)
def test_what_cannot_be_tabulated_is_refused_in_one_line(expressions, message):
    with pytest.raises(UsageError, match=message) as caught:
        Tabulated(expressions, "module 'conv'")
    assert str(caught.value).startswith("module 'conv': ") and "\n" not in str(caught.value)


def test_a_sample_outside_the_table_is_refused():
    table = Tabulated({"width": nni.choice("a", [1, 2])})
    with pytest.raises(UsageError, match="choice 'a': 3 is none of its candidates; give one of"):
        table.position({"a": 3})
    with pytest.raises(UsageError, match="choice 'a': nothing is none of its candidates"):
        table.position({})

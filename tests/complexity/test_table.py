"""Tables tell apart only the outcomes that differ, whatever they were made of; their expectations are exact."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nni_gumbel.complexity import table
from nni_gumbel.complexity.table import ONE, ExpectedSum, Table, elementwise_maximum
from nni_gumbel.errors import UsageError

SIZES = {"a": 2, "b": 3, "c": 4}
quick = settings(deadline=None, max_examples=60)


@st.composite
def dense_tables(draw):
    """Labels in any order, and whole numbers, few of them different, for each combination of outcomes."""
    labels = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True))
    return labels, draw(arrays(np.int64, [SIZES[label] for label in labels], elements=st.integers(-1, 1)))


def dense(one):
    """An axis for each label over all its outcomes."""
    return one.values[np.ix_(*one.classes)] if one.labels else one.values


def spread(labels, values):
    """An axis for each of all labels, also for those that it does not depend on."""
    if not isinstance(values, np.ndarray):
        values = np.array(values)
    order = sorted(range(len(labels)), key=lambda axis: labels[axis])
    ordered = np.transpose(values, order).reshape([SIZES[label] if label in labels else 1 for label in SIZES])
    return np.broadcast_to(ordered, list(SIZES.values()))


def assert_is(one, expected):
    """It has the numbers of a dense array, and is reduced."""
    assert (spread(one.labels, dense(one)) == expected).all()
    assert list(one.labels) == sorted(one.labels) and one.values.ndim == len(one.labels) == len(one.classes)
    for axis, classes in enumerate(one.classes):
        slices = [entry.tobytes() for entry in np.moveaxis(one.values, axis, 0)]
        assert len(set(slices)) == len(slices) > 1
        assert list(dict.fromkeys(classes.tolist())) == list(range(len(slices)))  # by first appearance


@given(dense_tables())
@quick
def test_a_table_has_the_numbers_that_it_is_made_of_and_an_entry_for_each_class_of_outcomes(given_table):
    assert_is(Table.of(*given_table), spread(*given_table))


@given(dense_tables(), dense_tables(), dense_tables())
@quick
def test_arithmetic_is_that_of_the_dense_numbers_and_its_results_are_reduced(first, second, third):
    x, y, z = (Table.of(*one) for one in (first, second, third))
    dense_x, dense_y, dense_z = (spread(*one) for one in (first, second, third))
    assert_is(x * y, dense_x * dense_y)
    assert_is(x + y, dense_x + dense_y)
    assert_is(-x, -dense_x)
    assert_is(x * 3, dense_x * 3)
    assert_is(x * y + z, dense_x * dense_y + dense_z)
    assert_is(x.map(np.abs), np.abs(dense_x))
    assert_is(elementwise_maximum([x, y, z]), np.maximum(np.maximum(dense_x, dense_y), dense_z))
    assert_is(x.summed_over("b", 3), np.broadcast_to(dense_x.sum(1, keepdims=True), dense_x.shape))
    assert_is(x.largest_over({"b"}), np.broadcast_to(dense_x.max(1, keepdims=True), dense_x.shape))


@given(st.lists(dense_tables(), max_size=6), st.integers(0, 99))
@quick
def test_an_expected_sum_is_the_sum_over_all_networks_and_at_each_it_is_the_sum_of_the_tables(several, seed):
    expected = ExpectedSum(Table.of(*one) for one in several)
    generator = torch.Generator().manual_seed(seed)
    probabilities = {
        label: torch.rand(size, generator=generator, dtype=torch.float64).softmax(0)
        for label, size in SIZES.items()
    }
    total = sum((spread(*one) for one in several), np.zeros(list(SIZES.values())))
    joint = torch.einsum("a,b,c->abc", *probabilities.values())
    assert float(expected(probabilities)) == pytest.approx(float((joint * torch.from_numpy(total)).sum()))
    for outcomes in itertools.product(*map(range, SIZES.values())):
        assert expected.at(dict(zip(SIZES, outcomes))) == total[outcomes]
    labels = [one.labels for one in expected.tables]
    assert len(set(labels)) == len(labels)


def test_the_gradient_goes_to_every_outcome_of_a_class():
    expected = ExpectedSum([Table.of(("c",), [5, 2, 5, 2]) * Table.of(("b",), [0, 1, 1])])
    p, q = torch.full((3,), 1 / 3, requires_grad=True), torch.full((4,), 1 / 4, requires_grad=True)
    expected({"b": p, "c": q}).backward()
    assert torch.allclose(q.grad, 2 / 3 * torch.tensor([5.0, 2, 5, 2]))
    assert torch.allclose(p.grad, 3.5 * torch.tensor([0.0, 1, 1]))


def test_a_number_that_depends_on_nothing_is_its_own_expectation():
    constant = Table.of(("a", "b"), np.full((2, 3), 7))
    assert constant.labels == () and isinstance(constant.values, np.ndarray)
    assert float(ExpectedSum([constant])({"a": torch.tensor([0.5, 0.5])})) == 7
    assert ExpectedSum([constant, ONE]).at({}) == 8


def test_tables_may_be_asked_at_many_outcomes_at_a_time():
    one = Table.of(("b", "a"), [[1, 2], [1, 2], [3, 4]])
    assert one.at({"a": np.array([0, 1, 0]), "b": np.array([0, 1, 2])}).tolist() == [1, 2, 3]


def test_a_label_may_be_missing_only_where_the_number_does_not_depend_on_it():
    one = Table.of(("a", "b"), [[7, 7, 7], [1, 1, 3]])
    assert one.at({"a": 0}) == 7
    for outcomes, label in (({"a": 1}, "b"), ({"b": 0}, "a"), ({}, "a")):
        with pytest.raises(UsageError, match=f"choice '{label}': the cost depends on it"):
            one.at(outcomes)


def test_minus_zero_is_zero():
    assert (-Table.of(("a",), [0.0, 1.0]) * Table.of(("a",), [1.0, 0.0])).labels == ()


def test_only_classes_of_outcomes_count_toward_the_largest_table():
    taken = [Table.of((f"input {i}",), np.arange(100) == 7).map(np.int64) for i in range(8)]
    product = ONE
    for one in taken:
        product *= one
    assert product.values.size == 2**8
    different = [Table.of((f"input {i}",), np.arange(101)) for i in range(3)]
    with pytest.raises(UsageError, match="choices input 0, input 1, input 2: .* 1,030,301 combinations"):
        different[0] * different[1] * different[2]


def test_the_limit_is_checked_before_the_numbers_are_computed(monkeypatch):
    monkeypatch.setattr(table, "MOST_COMBINATIONS", 5)

    def never(*values):
        raise AssertionError("computed")

    with pytest.raises(UsageError, match="6 combinations"):
        table.combined(never, [Table.of(("a",), [0, 1]), Table.of(("b",), [0, 1, 2])])


def test_a_label_that_very_many_tables_tell_apart_keeps_its_outcomes():
    # A code for the outcomes that grew with every table would have overflown.
    one_hot = [
        Table.of(("many",), np.arange(70) == k).map(lambda values: values.astype(np.int64)) for k in range(70)
    ]
    weighted = table.combined(lambda *values: sum(k * v for k, v in enumerate(values)), one_hot)
    assert dense(weighted).tolist() == list(range(70))

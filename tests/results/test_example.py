"""What a network is called with survives a bundle, whatever its form."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError
from nni_gumbel.results.example import Example

A, B = torch.arange(6.0).reshape(3, 2), torch.arange(3)


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [(A, (A,), {}), ((A, B), (A, B), {}), ([A, (B, None)], (A, (B, None)), {}),
     ({"b": B, "a": A}, (), {"a": A, "b": B})],
)  # fmt: skip
def test_inputs_of_a_batch_come_back_from_json_and_tensors(inputs, args, kwargs):
    described, tensors = Example.of(inputs).to_tensors()
    again = Example.from_tensors(described, tensors)
    assert len(again.args) == len(args) and set(again.kwargs) == set(kwargs)
    found = tree_leaves([list(again.args), sorted(again.kwargs.items())])
    for one, other in zip(found, tree_leaves([list(args), sorted(kwargs.items())])):
        assert (
            one is other
            if other is None
            else one == other
            if isinstance(one, str)
            else torch.equal(one, other)
        )


def test_the_first_of_a_batch_are_cut_from_every_tensor_that_is_as_long():
    first = Example((A, torch.ones(5)), {"b": B, "flag": True}).first(2)
    assert first.args[0].shape == (2, 2) and first.args[1].shape == (5,)
    assert first.kwargs["b"].tolist() == [0, 1] and first.kwargs["flag"] is True


def test_what_json_and_tensors_cannot_hold_is_refused_in_one_line():
    with pytest.raises(UsageError, match="forward: it takes a str, which a bundle cannot keep"):
        Example((A, "word")).to_tensors()

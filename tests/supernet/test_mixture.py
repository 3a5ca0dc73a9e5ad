"""What may be in a mixture: floating-point tensors are added, all else passes through where candidates agree."""

from collections import OrderedDict

import nni
import pytest
import torch
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableGRU,
    MutableLSTM,
    Repeat,
)
from one_choice import OneChoice
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from nni_gumbel import UsageError, relax
from nni_gumbel.testing import assert_supernet_equals_frozen

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


class Returns(nn.Module):
    """Its input, and something beside it."""

    def __init__(self, beside, scale=1.0):
        super().__init__()
        self.beside, self.scale = beside, scale

    def forward(self, x):
        return x * self.scale, self.beside


def mixed(*candidates):
    """The output of a mixture of equal weights."""
    space = OneChoice(list(candidates))
    relax(space)
    return space(X)


AGREED = {
    "mask": lambda: torch.tensor([True, False]),
    "index": lambda: torch.tensor([3, 1, 2]),
    "number": lambda: 3,
    "float": lambda: 0.5,
    "word": lambda: "gelu",
    "nothing": lambda: None,
    "shape": lambda: torch.Size([2, 3]),
    "flags": lambda: {"is_causal": True, "window": (1, 2)},
}


@pytest.mark.parametrize("make", AGREED.values(), ids=AGREED)
def test_what_is_no_floating_point_tensor_passes_through_unchanged_where_candidates_agree(make):
    output, beside = mixed(Returns(make(), 1.0), Returns(make(), 3.0))
    assert torch.allclose(output, 2 * X)
    expected = make()
    assert type(beside) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert beside.dtype == expected.dtype
        assert torch.equal(beside, expected)
    else:
        assert beside == expected


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            torch.tensor([True, False]),
            torch.tensor([True, True]),
            "0 gives bool (2,), 1 gives another bool (2,)",
        ),
        (torch.tensor([1, 2]), torch.tensor([1, 2, 3]), "0 gives int64 (2,), 1 gives int64 (3,)"),
        (3, 4, "0 gives 3, 1 gives 4"),
        (0.0, torch.tensor(0.0), "0 gives 0.0, 1 gives float32 ()"),
        ("a", "b", "0 gives 'a', 1 gives 'b'"),
        (None, torch.ones(2), "0 gives None, 1 gives float32 (2,)"),
    ],
    ids=["mask", "index", "number", "number and tensor", "word", "nothing and tensor"],
)
def test_candidates_that_disagree_in_what_cannot_be_mixed_are_refused_in_one_line(one, other, told):
    with pytest.raises(UsageError, match="choice 'layer': .* cannot be mixed") as caught:
        mixed(Returns(one), Returns(other))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tuples_of_different_lengths_are_refused_in_one_line():
    with pytest.raises(UsageError, match="0 gives a tuple of 2, 1 gives a tuple of 3"):
        mixed(Returns(None), type("Three", (Returns,), {"forward": lambda self, x: (x, x, x)})(None))


def test_a_mixture_of_dicts_is_of_their_type():
    class Named(nn.Module):
        def forward(self, x):
            return OrderedDict(last=x, hidden=2 * x)

    output = mixed(Named(), Named())
    assert type(output) is OrderedDict
    assert torch.allclose(output["hidden"], 2 * X)


def test_inputs_that_are_indices_are_chosen_where_they_agree_and_refused_where_not():
    class Indices(ModelSpace):
        def __init__(self):
            super().__init__()
            self.choice = InputChoice(2, label="source")

        def forward(self, a, b):
            return self.choice([a, b])

    space, places = Indices(), torch.arange(3)
    relax(space)
    assert torch.equal(space(places, places.clone()), places)
    with pytest.raises(UsageError, match="choice 'source': .* cannot be mixed"):
        space(places, places + 1)


class Masked(nn.Module):
    def forward(self, state):
        x, padded = state
        return x.masked_fill(padded, 0.0).mean(1, keepdim=True) + x, padded.clone()


def test_what_is_masked_stays_so_in_a_mixture_of_depths():
    class Depth(ModelSpace):
        def __init__(self):
            super().__init__()
            self.body = Repeat(lambda i: Masked(), nni.choice("depth", [1, 2, 3]))

        def forward(self, x, padded):
            return self.body((x, padded))[0].masked_fill(padded, 0.0)

    padded = torch.tensor([[[False], [False], [True]]])
    x = torch.randn(1, 3, 2)
    other = torch.where(padded, torch.randn_like(x), x)
    assert_supernet_equals_frozen(Depth(), (x, padded))
    space = Depth()
    relax(space).sample(1.0)
    assert torch.equal(space(x, padded), space(other, padded))


class Packed(ModelSpace):
    """Sequences of different lengths, packed, through a recurrent layer, and its packed output through another."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second = make()

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed = self.first(packed)[0]
        assert isinstance(packed, PackedSequence)
        return pad_packed_sequence(self.second(packed)[0], batch_first=True)[0]


SEQUENCES = (torch.randn(3, 5, 4), torch.tensor([5, 2, 4]))


def test_packed_sequences_go_through_a_choice_of_recurrent_layers():
    def either(label):
        layers = [nn.GRU(4, 4, batch_first=True), nn.RNN(4, 4, batch_first=True)]
        return LayerChoice(layers, label=label)

    assert_supernet_equals_frozen(Packed(lambda: map(either, ("first", "second"))), SEQUENCES)


def test_packed_sequences_go_through_recurrent_layers_of_chosen_sizes():
    def make():
        size = nni.choice("size", [2, 3, 4])
        return MutableGRU(4, size, batch_first=True), MutableLSTM(size, 4, batch_first=True)

    assert_supernet_equals_frozen(Packed(make), SEQUENCES)


def test_a_packed_sequence_with_other_features_than_a_chosen_size_is_refused_in_one_line():
    def make():
        return nn.GRU(4, 5, batch_first=True), MutableGRU(nni.choice("size", [2, 4]), 4, batch_first=True)

    space = Packed(make)
    relax(space)
    with pytest.raises(UsageError, match="module 'second': its input has 5 features .* 'size'"):
        space(*SEQUENCES)

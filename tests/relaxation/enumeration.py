"""Laws small enough to list all their outcomes: the reference that the package is measured against."""

import itertools

import torch
from torch import Tensor

from nni_gumbel.relaxation.categorical import Categorical
from nni_gumbel.relaxation.gates import OpenSubset
from nni_gumbel.relaxation.law import Law
from nni_gumbel.relaxation.subset import KSubset

LOGITS = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.3], dtype=torch.float64)

LAWS = [
    Categorical(1),
    Categorical(4),
    KSubset(1, 1),
    KSubset(4, 1),
    KSubset(4, 2),
    KSubset(5, 3),
    KSubset(4, 4),
    OpenSubset(1),
    OpenSubset(2),
    OpenSubset(4),
    OpenSubset(1, least=0),
    OpenSubset(3, least=0),
]


# Of a choice of one the relaxed sample is drawn at once, not given an outcome.
SUBSETS = [law for law in LAWS if not isinstance(law, Categorical)]


def all_outcomes(law: Law) -> Tensor:
    """``(outcomes, n)``, float64."""
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=law.size)), dtype=torch.float64)
    sizes = sets.sum(-1)
    if isinstance(law, OpenSubset):
        return sets[sizes >= law.least]
    return sets[sizes == (law.k if isinstance(law, KSubset) else 1)]


def probabilities(law: Law, logits: Tensor) -> Tensor:
    """``(outcomes)``, in the order of :func:`all_outcomes`; differentiable."""
    return torch.softmax(all_outcomes(law) @ logits, 0)


def candidates_in(law: Law, draw: Tensor) -> Tensor:
    """``(..., n)``, how much of each candidate is in a draw."""
    return draw.sum(-2) if isinstance(law, KSubset) else draw


def slots(law: Law, outcome: Tensor) -> Tensor:
    """An outcome ``(n)`` as a draw, written out by hand."""
    if not isinstance(law, KSubset):
        return outcome
    matrix = torch.zeros(law.k, law.size, dtype=outcome.dtype)
    for slot, index in enumerate(outcome.nonzero().flatten().tolist()):
        matrix[slot, index] = 1
    return matrix


def counts(law: Law, outcomes: Tensor) -> Tensor:
    """``(outcomes)``, how often each outcome is among ``(count, n)``; fails if one is none of the law's."""
    binary = 2 ** torch.arange(law.size)
    observed = torch.bincount((outcomes.long() * binary).sum(-1), minlength=2**law.size)
    mine = observed[(all_outcomes(law).long() * binary).sum(-1)]
    assert mine.sum() == len(outcomes) and ((outcomes == 0) | (outcomes == 1)).all()
    return mine

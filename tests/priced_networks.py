"""A cost as a sum of tables, compared with what is counted on the networks that NNI freezes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_gumbel.complexity.flops import count_flops, expected_flops
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax
from nni_gumbel.testing import random_samples


def outcomes_of(distribution: Distribution, sample: Mapping[str, Any]) -> dict[str, int]:
    """Per label the index of the outcome that an NNI sample stands for."""
    outcomes = {}
    for label, law in distribution.laws.items():
        members = distribution.outcome(label, sample[label]).nonzero().flatten().tolist()
        outcomes[label] = list(law.sets()).index(tuple(members))
    return outcomes


def frozen_by_nni(space: ModelSpace, sample: Mapping[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(space.freeze(dict(sample)))


def with_random_logits(distribution: Distribution, seed: int = 3) -> Distribution:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in distribution.logits.values():
            logits.copy_(torch.randn(len(logits), generator=generator))
    return distribution.double()


def flops_of(space: ModelSpace, *args: Any, **kwargs: Any) -> tuple[ExpectedSum, Distribution]:
    """The expected FLOPs of a copy of a space, and its distribution."""
    supernet = copy.deepcopy(space)
    distribution = relax(supernet)
    return expected_flops(supernet, distribution, args, kwargs), distribution


def assert_prices_equal_counts(
    space: ModelSpace, *args: Any, samples: int | Sequence[Mapping[str, Any]] = 5, **kwargs: Any
) -> ExpectedSum:
    """At every sample the FLOPs are those of the network that NNI freezes from a never mutated instance."""
    expected, distribution = flops_of(space, *args, **kwargs)
    assert_at_samples(expected, distribution, space, samples, lambda net: count_flops(net, *args, **kwargs))
    return expected


def assert_at_samples(
    expected: ExpectedSum,
    distribution: Distribution,
    space: ModelSpace,
    samples: int | Sequence[Mapping[str, Any]],
    count: Callable[[nn.Module], float],
) -> None:
    for sample in random_samples(space, samples) if isinstance(samples, int) else samples:
        counted = count(frozen_by_nni(space, sample))
        assert expected.at(outcomes_of(distribution, sample)) == counted, sample

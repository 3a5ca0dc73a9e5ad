"""Stability of a search: which choices its seeds agree on, and which choices the accuracy depends on.

Per label, over the networks that searches with equal settings and different seeds have found: how often two seeds
choose alike, and whether that is more than chance. Over many networks, trained or sampled: how much of the spread of
their results a label explains. Plain records in, plain records out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from nni_gumbel.results.record import Record
from nni_gumbel.results.report import chosen_value

# A choice counts as determined where chance would bring about as much agreement in fewer cases than this.
SIGNIFICANT = 0.05
_DRAWS = 20_000
_UNUSED = "not used"


class Sampled(Record):
    """Networks that a search has judged with the weights of its supernet; its trial keeps it in its output directory.

    Args:
        networks: NNI samples with the labels that they use, each with its loss, or with the objective of the search.
    """

    FILE: ClassVar[str] = "sampled.json"

    networks: tuple[tuple[dict[str, Any], float], ...]


@dataclass(frozen=True)
class LabelAgreement:
    """How the searches of an experiment agree on one label.

    Args:
        label, candidates: of the choice, and how many it has.
        chosen: how often each was chosen by the searches, in words; the commonest first. A network that does not use
            the label counts as ``not used``.
        agreement, fleiss_kappa, p_value: see :func:`pairwise_agreement`, :func:`fleiss_kappa`, :func:`chance_of`.
        entropy: of the frequencies within a setting, in nats, mean over the settings; 0 is unanimity.
        verdict: what follows, in words.
    """

    label: str
    candidates: int
    chosen: tuple[tuple[str, int], ...]
    agreement: float | None
    fleiss_kappa: float | None
    entropy: float | None
    p_value: float | None
    verdict: str


def agreements(
    groups: Sequence[Sequence[Mapping[str, Any]]], candidates: Mapping[str, int]
) -> list[LabelAgreement]:
    """How searches agree, label by label.

    Args:
        groups: for each setting, the networks that its searches found, one a seed: NNI samples with the labels used.
        candidates: of every label of the space, how many outcomes it has.
    """
    found = []
    for label, count in candidates.items():
        ratings = [[choice_of(network, label) for network in group] for group in groups]
        counted = Counter(choice for group in ratings for choice in group)
        agreement = pairwise_agreement(ratings)
        several = [group for group in ratings if len(group) > 1]
        p_value = None if agreement is None else chance_of(agreement, list(map(len, ratings)), count)
        row = LabelAgreement(
            label=label,
            candidates=count,
            chosen=tuple(counted.most_common()),
            agreement=agreement,
            fleiss_kappa=fleiss_kappa(ratings),
            entropy=fmean(map(entropy, several)) if several else None,
            p_value=p_value,
            verdict=_verdict(agreement, p_value, counted, count),
        )
        found.append(row)
    return found


def _verdict(agreement: float | None, p_value: float | None, counted: Counter[str], count: int) -> str:
    if agreement is None:
        return "not known: it takes two searches with equal settings and different seeds"
    if p_value is not None and p_value < SIGNIFICANT:
        choice, _ = counted.most_common(1)[0]
        return f"determined by the data: {choice}" if len(counted) == 1 else "determined within a setting"
    if agreement <= 1 / count:
        return "arbitrary: seeds agree no more often than chance"
    return f"not shown: chance agrees as often in {p_value:.0%} of cases; more search_seeds would tell"


def choice_of(network: Mapping[str, Any], label: str) -> str:
    """The choice of a network at a label, as a word."""
    return chosen_value(network[label]) if label in network else _UNUSED


def pairwise_agreement(groups: Sequence[Sequence[str]]) -> float | None:
    """The share of pairs within a group that are equal; ``None`` if no group has a pair."""
    alike = sum(n * (n - 1) for group in groups for n in Counter(group).values())
    pairs = sum(len(group) * (len(group) - 1) for group in groups)
    return alike / pairs if pairs else None


def entropy(choices: Sequence[str]) -> float:
    """``- sum p log p`` of the frequencies, in nats."""
    shares = [count / len(choices) for count in Counter(choices).values()]
    return sum(-share * math.log(share) for share in shares)


def fleiss_kappa(groups: Sequence[Sequence[str]]) -> float | None:
    """Agreement beyond the chance that the frequencies of all choices give.

    ``kappa = (P - P_e) / (1 - P_e)``: ``P`` the mean over the groups of the share of pairs that are equal, ``P_e`` the
    sum of the squared frequencies over all groups.

    Args:
        groups: the subjects, here settings, each rated by its seeds. Groups of one are left out.

    Returns:
        At most 1; ``None`` for fewer than two groups, and where all ratings are the same.

    Source: Fleiss, Psychological Bulletin 76 (1971), equations 1 to 7.
    """
    rated = [group for group in groups if len(group) > 1]
    if len(rated) < 2:
        return None
    observed = fmean(pairwise_agreement([group]) for group in rated)
    counts, total = Counter(choice for group in rated for choice in group), sum(map(len, rated))
    chance = sum((count / total) ** 2 for count in counts.values())
    return None if chance == 1 else (observed - chance) / (1 - chance)


def chance_of(agreement: float, sizes: Sequence[int], candidates: int) -> float:
    """How probable at least so much pairwise agreement is if every choice is drawn uniformly.

    Args:
        agreement: the share of pairs that are equal.
        sizes: of the groups.
        candidates: the number of outcomes, K.

    Returns:
        The share of 20,000 draws with a seed of their own that agree as much; one more is counted, so that it is
        never 0.
    """
    generator = np.random.default_rng(0)
    alike = np.zeros(_DRAWS)
    for size in sizes:
        counts = generator.multinomial(size, [1 / candidates] * candidates, size=_DRAWS)
        alike += (counts * (counts - 1)).sum(1)
    pairs = sum(size * (size - 1) for size in sizes)
    return float((np.count_nonzero(alike / pairs >= agreement - 1e-9) + 1) / (_DRAWS + 1))


def importance(results: Sequence[tuple[str, float]]) -> float | None:
    """How much of the spread of results the choices at one label explain.

    ``epsilon^2 = (SS_b - (k - 1) SS_w / (n - k)) / SS_t``, at least 0: of ``n`` results in ``k`` groups, with the sums
    of squares between them, within them and in total. Unlike ``SS_b / SS_t`` it is 0 on average where the choice plays
    no part, however many candidates there are.

    Args:
        results: the choice and the result of each network.

    Returns:
        0 to 1; ``None`` where it cannot be told: one choice alone, as many choices as networks, or no spread.

    Source: Kelley, PNAS 21 (1935), 554-559.
    """
    groups: dict[str, list[float]] = {}
    for choice, value in results:
        groups.setdefault(choice, []).append(value)
    n, k = len(results), len(groups)
    if k < 2 or n <= k:
        return None
    mean = fmean(value for _, value in results)
    total = sum((value - mean) ** 2 for _, value in results)
    within = sum((value - fmean(group)) ** 2 for group in groups.values() for value in group)
    if total == 0:
        return None
    return min(max((total - within - (k - 1) * within / (n - k)) / total, 0.0), 1.0)


def disagreement(predictions: Sequence[Sequence[int]]) -> float | None:
    """The share of examples on which two networks predict different classes, mean over the pairs.

    Args:
        predictions: of each network the predicted classes of the same examples; others are left out.

    Returns:
        ``None`` for fewer than two.
    """
    longest = max(map(len, predictions), default=0)
    alike = [np.asarray(each) for each in predictions if each and len(each) == longest]
    pairs = [float(np.mean(one != other)) for i, one in enumerate(alike) for other in alike[:i]]
    return fmean(pairs) if pairs else None

"""Finals: the best networks are trained alone, and what they reach corrects what shared weights have said.

Shared weights judge many networks in little time, and lean to one side: what suits every network that shares them. A
training of its own tells what a network reaches, and takes long. Both are observations of one function of the network:

    ``alone(z) = c + f(z) + noise``, ``shared(z) = c' + f(z) + bias(z) + noise``,

with unknown constants, one for each stage. ``f`` is a Gaussian process with the kernel ``s / 2 + exp(-3 (1 - s)) / 2``,
where ``s`` is the part of the choices that two networks have in common; the bias belongs to candidates and has the
kernel ``s / 2``; both are relative to the variance of the objectives. Each finalist is the network with the best
expected ``f``, of those not trained yet. The network found is the one that reached the best objective alone.

Sources: two fidelities of one function: Kennedy, O'Hagan, Biometrika 87 (2000), equation 1; Gaussian processes:
Rasmussen, Williams, Gaussian Processes for Machine Learning (2006), equation 2.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from nni.mutable import Sample

from nni_gumbel.search.population import DISCOUNT, Population, features_of
from nni_gumbel.search.state import Resumable, plain
from nni_gumbel.supernet.distribution import Distribution

# Variances relative to that of the objectives: of a judgement by shared weights, of a training alone, and of the
# constants.
_NOISE_SHARED, _NOISE_ALONE, _CONSTANT = 0.15, 0.25, 100.0
# Networks of the last stages may be trained alone.
_RECENT = 3


class Finals(Resumable):
    """The networks that are trained alone, and what follows from all judgements.

    Args:
        distribution: of the networks.
        population: of the stages.
        allowed: of an NNI sample, the labels that its network uses; ``None`` if it may not be found.
        best: the most probable network that may be found.

    Attributes:
        likely: the network that is being trained.
        networks: those that were, in the order of their trainings.
        objectives: what each has reached.
    """

    _kept = ("likely", "networks", "objectives", "_losses")

    def __init__(
        self,
        distribution: Distribution,
        population: Population,
        allowed: Callable[[Sample], Sample | None],
        best: Callable[[], Sample],
    ) -> None:
        self._distribution, self._population = distribution, population
        self._allowed, self._best = allowed, best
        self.likely: dict[str, Any] = {}
        self.networks: list[dict[str, Any]] = []
        self.objectives: list[float] = []
        self._losses: list[float] = []  # of the current network

    def begin(self) -> None:
        """Choose the next network to be trained alone."""
        order = self._by_expectation(self._pool())
        self.likely = next((one for one in order if one not in self.networks), order[0])

    def network(self, step: int) -> dict[str, Any]:
        """The network that is trained, at each of its steps."""
        return self.likely

    def next_judged(self) -> list[dict[str, Any]]:
        """The network that is judged on the next batch."""
        return [self.likely]

    def judge(self, losses: Sequence[float]) -> None:
        """Take the loss of :meth:`next_judged` on one batch into account."""
        self._losses += losses

    def end(self, objective: Callable[[float, Mapping[str, Any]], float]) -> bool:
        """Take what the current network has reached into account; whether no network before has reached as much.

        ``objective`` is that of a mean loss and a network.
        """
        losses, self._losses = self._losses, []
        if not losses:
            return False
        reached = objective(sum(losses) / len(losses), self.likely)
        is_best = all(reached < other for other in self.objectives)
        self.networks.append(self.likely)
        self.objectives.append(reached)
        return is_best

    def ranked(self) -> list[dict[str, Any]]:
        """The networks that may be found, the best one first: those trained alone, if there are any."""
        if self.networks:
            return _distinct(self.networks[i] for i in np.argsort(self.objectives, kind="stable"))
        return self._by_expectation(self._of_allowed(self._recent()))

    def decide(self) -> dict[str, Any]:
        """Decide every choice as the network found has it; what it does not use, as it is most probable."""
        ranked = self.ranked()
        network = ranked[0] if ranked else plain(self._best())
        self._distribution.settle_at(self._distribution.mode() | network)
        return network

    def _recent(self) -> list[dict[str, Any]]:
        """The networks judged in the last stages."""
        population = self._population
        return _distinct(one for one, age in zip(population.judged, population.ages) if age < _RECENT)

    def _of_allowed(self, samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        mode = self._distribution.mode()
        used = (self._allowed(mode | one) for one in samples)
        return _distinct(plain(one) for one in used if one is not None)

    def _pool(self) -> list[dict[str, Any]]:
        """Networks judged of late, and what differs from the best one in a single choice."""
        recent = self._recent()
        known = _distinct([*self.networks, *self._of_allowed(recent)]) or [plain(self._best())]
        best = self._by_expectation(known)[0]
        values: dict[str, list[Any]] = {}
        for network in recent:
            for label, value in network.items():
                if value not in values.setdefault(label, []):
                    values[label].append(value)
        changed = self._of_allowed(
            best | {label: value} for label, several in values.items() for value in several
        )
        return _distinct([*known, *changed])

    def _by_expectation(self, networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Networks in the order of the mean of ``f`` at each, from all judgements; the best one first."""
        population, new = self._population, len(networks)
        seen = [*population.judged, *self.networks]
        if not seen or not new:
            return networks
        centred = np.array([*population.objectives, *self.objectives])
        features = features_of(self._distribution, [*networks, *seen])
        features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        common = features @ features.T
        kernel = common / 2 + np.exp(-3 * (1 - common)) / 2
        shared = len(population.judged)
        of_seen = kernel[new:, new:].copy()
        of_seen[:shared, :shared] += common[new : new + shared, new : new + shared] / 2
        group = np.array([*population.ages, *[-1] * len(self.networks)])
        of_seen += _CONSTANT * (group[:, None] == group[None])
        of_seen += np.diag(np.where(group < 0, _NOISE_ALONE, _NOISE_SHARED / DISCOUNT ** group.clip(0)))
        for number in {*group.tolist()}:
            centred[group == number] -= centred[group == number].mean()
        expected = kernel[:new, new:] @ np.linalg.solve(of_seen, centred)
        return [networks[i] for i in np.argsort(expected, kind="stable")]


def _distinct(networks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for network in networks:
        if network not in found:
            found.append(network)
    return found

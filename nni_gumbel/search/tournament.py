"""The tournament of a search: which distribution, then which network; see :mod:`~nni_gumbel.search.course`.

It owns where the search is in its course, and hands the module of the search what a step needs to know. The module
makes the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni.mutable import Sample
from pytorch_lightning import LightningModule

from nni_gumbel.complexity.counting import number_of_samples
from nni_gumbel.relaxation.temperature import progress_of
from nni_gumbel.search.course import Kind, Segment, segments, warn_if_short
from nni_gumbel.search.finals import Finals
from nni_gumbel.search.objective import StructureObjective
from nni_gumbel.search.population import Population
from nni_gumbel.search.restart import ShortTrainings
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.search.state import Resumable, of_all_ranks, plain


class Tournament(Resumable):
    """Where a search is, and what it knows.

    Args:
        search: a :class:`~nni_gumbel.search.module.GumbelSearchModule` with a Trainer whose optimisers are set up.
        objective, settings: of the search.
        first: the step after the warm-up.
        steps: how many there are from then on.

    Attributes:
        found: the network found, the labels that it uses; ``None`` before it is.
    """

    _kept = ("_at", "found", "_likeliest", "population", "finals", "_trainings")

    def __init__(
        self, search: LightningModule, objective: StructureObjective, settings: SearchSettings, first: int, steps: int
    ) -> None:  # fmt: skip
        self._search, self._distribution, self._objective = search, search.distribution, objective
        # No more finalists than samples: the networks of a small space have longer, and are told apart better.
        wanted = settings.stages, min(settings.finalists, number_of_samples(self._distribution))
        self._course, self._first = segments(steps, *wanted), first
        if search.trainer.is_global_zero:
            warn_if_short(self._course, *wanted)
        self._at = -1  # before the first segment
        self.found: dict[str, Any] | None = None
        self._likeliest: dict[str, Any] = {}  # of every label: read once a segment, which a device waits for
        self.population = Population(self._distribution, objective.likeliest)
        self.finals = Finals(self._distribution, self.population, objective.allowed, objective.best)
        self._trainings = ShortTrainings(search)

    @property
    def _segment(self) -> Segment:
        return self._course[max(self._at, 0)]

    @property
    def progress(self) -> float:
        """Of the stages, in [0, 1]: the temperature falls from one to the next, and holds behind them."""
        stages = [segment for segment in self._course if segment.kind is Kind.STAGE]
        return progress_of(stages.index(self._segment), len(stages)) if self._segment in stages else 1.0

    @property
    def _players(self) -> Population | Finals:
        return self.population if self._segment.kind is Kind.STAGE else self.finals

    def network(self, step: int) -> Sample:
        """The network that is trained at a step; every label is named."""
        step -= self._first + self._segment.first
        return self._likeliest | (self.found or self._players.network(step))

    @property
    def likely(self) -> Sample:
        """The most probable network in a stage, later the one trained alone, then that found; every label is named."""
        return self._likeliest | (self.found or self._players.likely)

    def judged(self) -> list[Sample]:
        """The networks that are judged on the next batch; every label is named."""
        return [self._likeliest | network for network in self._players.next_judged()]

    def judge(self, losses: Sequence[float]) -> None:
        """Take the losses of :meth:`judged` on one batch into account."""
        self._players.judge(losses)

    def enter(self, step: int) -> None:
        """Go on to the segment of a step."""
        while self._at < 0 or (step - self._first >= self._segment.end and self._at + 1 < len(self._course)):
            self._end()
            self._at += 1
            self._begin()

    def judges(self, step: int) -> bool:
        """Whether the loss of the network counts at a step."""
        return self._segment.judges(step - self._first)

    def advance(self, step: int) -> None:
        """After the weights' update in a step, let their schedules follow; after the last one, end the search."""
        self._trainings.advance(self._segment.trained(step - self._first + 1))
        if step - self._first + 1 == self._course[-1].end:
            self.finish()

    def finish(self) -> None:
        """End a search early or at its end: decide every choice by what is known, and have the weights for it."""
        if self.found is None:
            self._end()
            self.found = plain(self.finals.decide())
            self._likeliest = plain(self._distribution.mode())
            self._trainings.put_back()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the logits have been restored."""
        super().load_state_dict(state)
        self._distribution.refresh_active()

    def _end(self) -> None:
        if self._at >= 0 and self._players.end(self._objective.of_network):
            self._trainings.keep()

    def _begin(self) -> None:
        if self._segment.begins_training:
            self._trainings.begin()
        if self._segment.kind is Kind.STAGE:
            self.population.begin(self._search.temperature)
            # Each process draws its own noise, and all train the same networks.
            self.population.networks = of_all_ranks(self.population.networks, self._search.trainer)[0]
        else:
            self.finals.begin()
        self._likeliest = plain(self._distribution.mode())

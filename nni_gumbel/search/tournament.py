"""The tournament of a search: which distribution, then which network; see :mod:`~nni_gumbel.search.course`.

It owns where the search is in its course, and hands the module of the search what a step needs to know. The module
makes the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni.mutable import Sample
from pytorch_lightning import LightningModule

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.temperature import progress_of
from nni_gumbel.search.course import Kind, Segment
from nni_gumbel.search.finals import Finals
from nni_gumbel.search.population import Population, plain
from nni_gumbel.search.restart import ShortTrainings
from nni_gumbel.search.state import of_all_ranks
from nni_gumbel.supernet.distribution import Distribution


class Tournament:
    """Where a search is, and what it knows.

    Args:
        search: with a Trainer whose optimisers are set up.
        distribution: of the structure.
        course: the segments of the search.
        first: the step after the warm-up.
        likeliest: the most probable network within the budgets.
        best: the most probable network that may be found: it spends a budget that is to be spent.
        allowed: of a sample, the labels that its network uses; ``None`` if it may not be found.
        objective: of a mean loss and a network.
        temperature: of a progress of the stages, in [0, 1].

    Attributes:
        population: the networks that are trained with shared weights.
        finals: the networks that are trained alone.
    """

    def __init__(
        self,
        search: LightningModule,
        distribution: Distribution,
        course: tuple[Segment, ...],
        first: int,
        *,
        likeliest: Callable[[], Sample],
        best: Callable[[], Sample],
        allowed: Callable[[Sample], Sample | None],
        objective: Callable[[float, Mapping[str, Any]], float],
        temperature: Callable[[float], float],
    ) -> None:
        self._search, self._distribution = search, distribution
        self._course, self._first = course, first
        self._objective, self._temperature = objective, temperature
        self._at = -1  # before the first segment
        self._found: dict[str, Any] | None = None
        self._likeliest: dict[str, Any] = {}  # of every label: read once a stage, which a device waits for
        self.population = Population(distribution, likeliest)
        self.finals = Finals(distribution, self.population, allowed, best)
        self._trainings = ShortTrainings(search)

    @property
    def segment(self) -> Segment:
        """The current one."""
        return self._course[max(self._at, 0)]

    @property
    def temperature(self) -> float:
        """That of the current segment: it falls from one stage to the next, and holds behind them."""
        stages = [segment for segment in self._course if segment.kind is Kind.STAGE]
        if self.segment.kind is Kind.STAGE:
            return self._temperature(progress_of(stages.index(self.segment), len(stages)))
        return self._temperature(1.0)

    @property
    def found(self) -> Sample | None:
        """The network found, the labels that it uses; ``None`` before it is."""
        return self._found

    def network(self, step: int) -> Sample:
        """The network that is trained at a step; every label is named."""
        if self.segment.kind is Kind.STAGE:
            return self._complete(self.population.network(step - self._first - self.segment.first))
        return self.likely

    @property
    def likely(self) -> Sample:
        """The most probable network in a stage, later the one trained alone, then that found; every label is named."""
        if self._found is not None:
            return self._complete(self._found)
        is_stage = self.segment.kind is Kind.STAGE
        return self._complete(self.population.networks[0] if is_stage else self.finals.current)

    def judged(self) -> list[Sample]:
        """The networks that are judged on the next batch; every label is named."""
        if self.segment.kind is Kind.FINALIST:
            return [self.likely]
        return [self._complete(network) for network in self.population.next_judged()]

    def judge(self, losses: Sequence[float]) -> None:
        """Take the losses of :meth:`judged` on one batch into account."""
        if self.segment.kind is Kind.FINALIST:
            self.finals.judge(*losses)
        else:
            self.population.judge(losses)

    def begins(self, step: int) -> bool:
        """Whether a segment begins at a step, and has not been entered."""
        return self._at < 0 or (step - self._first >= self.segment.end and self._at + 1 < len(self._course))

    def enter(self, step: int) -> None:
        """Go on to the segment of a step."""
        while self.begins(step):
            self._end()
            self._at += 1
            self._begin()

    def judges(self, step: int) -> bool:
        """Whether the loss of the network counts at a step."""
        return self.segment.judges(step - self._first)

    def advance(self, step: int) -> None:
        """After the weights' update in a step, let their schedules follow; after the last one, end the search."""
        self._trainings.advance(self.segment.trained(step - self._first + 1))
        if step - self._first + 1 == self._course[-1].end:
            self.finish()

    def finish(self) -> None:
        """End a search early or at its end: decide every choice by what is known, and have the weights for it."""
        if self._found is None:
            self._end()
            self._found = plain(self.finals.decide())
            self._likeliest = self._distribution.mode()
            self._trainings.put_back()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {
            "course": self._described(),
            "at": self._at,
            "found": self._found,
            "population": self.population.state_dict(),
            "finals": self.finals.state_dict(),
            "likeliest": plain(self._likeliest),
            "trainings": self._trainings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            UsageError: it is of a search with another course.
        """
        if state["course"] != self._described():
            given, own = _in_words(state["course"]), _in_words(self._described())
            raise UsageError(
                f"stages, finalists: the checkpoint is of a search with {given}, this one has {own}; give it "
                "the length and the settings of the checkpoint, or start anew without it"
            )
        self._at, self._found = state["at"], state["found"]
        self._likeliest = state["likeliest"]
        self.population.load_state_dict(state["population"])
        self.finals.load_state_dict(state["finals"])
        self._trainings.load_state_dict(state["trainings"])
        self._distribution.refresh_active()

    def _end(self) -> None:
        if self._at < 0:
            return
        if self.segment.kind is Kind.STAGE:
            self.population.end(self._objective)
        elif self.finals.end(self._objective):
            self._trainings.keep()

    def _begin(self) -> None:
        if self.segment.begins_training:
            self._trainings.begin()
        # Each process draws its own noise, and all train the same networks.
        if self.segment.kind is Kind.STAGE:
            self.population.begin(self.temperature)
            self.population.networks = of_all_ranks(self.population.networks, self._search.trainer)[0]
        else:
            self.finals.begin()
        self._likeliest = self._distribution.mode()

    def _complete(self, network: Sample) -> Sample:
        return self._likeliest | network

    def _described(self) -> list[list[Any]]:
        return [
            [segment.kind.value, segment.first + self._first, segment.end + self._first]
            for segment in self._course
        ]


def _in_words(course: Sequence[Sequence[Any]]) -> str:
    kinds = [kind for kind, *_ in course]
    stages, finalists = (kinds.count(kind.value) for kind in (Kind.STAGE, Kind.FINALIST))
    return f"{stages} stages and {finalists} finalists in {course[-1][-1]} steps"

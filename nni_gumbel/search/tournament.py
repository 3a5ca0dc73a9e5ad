"""The tournament of a search: which candidates, then which network; see :mod:`~nni_gumbel.search.course`.

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
from nni_gumbel.search.distributed import of_all_ranks
from nni_gumbel.search.evidence import Evidence
from nni_gumbel.search.finals import Finals, plain
from nni_gumbel.search.restart import ShortTrainings
from nni_gumbel.supernet.distribution import Distribution


class Tournament:
    """Where a search is, and what it knows.

    Args:
        search: with a Trainer whose optimisers are set up.
        distribution: of the structure.
        course: the segments of the search.
        first: the step after the warm-up.
        best: the most probable network that may be found.
        objective: of a mean loss and a network.
        temperature: of a progress of the finals, in [0, 1].

    Attributes:
        evidence: of the rounds.
        finals: the networks trained alone.
    """

    def __init__(
        self,
        search: LightningModule,
        distribution: Distribution,
        course: tuple[Segment, ...],
        first: int,
        *,
        best: Callable[[], Sample],
        objective: Callable[[float, Mapping[str, Any]], float],
        temperature: Callable[[float], float],
    ) -> None:
        self._search, self._distribution = search, distribution
        self._course, self._first = course, first
        self._objective, self._temperature = objective, temperature
        self._at = -1  # before the first segment
        self._found: dict[str, Any] | None = None
        self._network: dict[str, Any] | None = None
        self.evidence = Evidence(distribution)
        self.finals = Finals(distribution, self.evidence, best)
        self._trainings = ShortTrainings(search)

    @property
    def segment(self) -> Segment:
        """The current one."""
        return self._course[max(self._at, 0)]

    @property
    def temperature(self) -> float:
        """That of the current segment: it holds in the rounds, and falls from one finalist to the next."""
        finalists = [segment for segment in self._course if segment.kind is Kind.FINALIST]
        if self.segment.kind is Kind.FINALIST:
            return self._temperature(progress_of(finalists.index(self.segment), len(finalists)))
        return self._temperature(0.0 if self.segment.kind is Kind.ROUND else 1.0)

    @property
    def network(self) -> Sample | None:
        """The network that is trained alone; every label is named. ``None`` in a round."""
        return self._network

    def begins(self, step: int) -> bool:
        """Whether a segment begins at a step, and has not been entered."""
        return self._at < 0 or (step - self._first >= self.segment.end and self._at + 1 < len(self._course))

    def enter(self, step: int) -> None:
        """Go on to the segment of a step."""
        while self.begins(step):
            self._end()
            self._at += 1
            self._begin()

    def gathers(self, step: int) -> bool:
        """Whether the gradient of the structure counts at a step."""
        return self.segment.gathers(step - self._first)

    def judges(self, step: int) -> bool:
        """Whether the loss of the network counts at a step."""
        return self.segment.judges(step - self._first)

    def advance(self, step: int) -> None:
        """After the weights' update in a step, let their schedules follow."""
        self._trainings.advance(self.segment.place(step - self._first + 1))

    def finish(self) -> None:
        """End a search early or at its end: decide every choice by what is known."""
        if self._found is None:
            self._end()
            self._decide()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search must know."""
        return {
            "course": self._described(),
            "at": self._at,
            "found": self._found,
            "evidence": self.evidence.state_dict(),
            "finals": self.finals.state_dict(),
            "network": self._network,
            "trainings": self._trainings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            UsageError: it is of a search with another course.
        """
        if state["course"] != self._described():
            raise UsageError(
                f"rounds, finalists: the checkpoint is of a search with {_in_words(state['course'])}, this one has "
                f"{_in_words(self._described())}; give it the length and the settings of the checkpoint, or start "
                "anew without it"
            )
        self._at, self._found, self._network = state["at"], state["found"], state["network"]
        self.evidence.load_state_dict(state["evidence"])
        self.finals.load_state_dict(state["finals"])
        self._trainings.load_state_dict(state["trainings"])
        self._distribution.refresh_rows()

    def _end(self) -> None:
        if self._at < 0:
            return
        if self.segment.kind is Kind.ROUND:
            later = sum(segment.kind is Kind.ROUND for segment in self._course[self._at + 1 :])
            self.evidence.reject(later)
        else:
            self.finals.end(self._objective)

    def _begin(self) -> None:
        self._trainings.begin()
        if self.segment.kind is Kind.FINALIST:
            self.finals.begin(self.temperature)
            # Each process draws its own noise, and all train the same network.
            self.finals.current = of_all_ranks(self.finals.current, self._search.trainer)[0]
        elif self.segment.kind is Kind.FOUND:
            self._decide()
        network = self.finals.current if self.segment.kind is Kind.FINALIST else self._found
        # Once a segment: on a device every label would be waited for.
        self._network = None if network is None else plain(self._distribution.mode() | network)
        self._distribution.copy_to_host()

    def _decide(self) -> None:
        self._found = plain(self.finals.decide())

    def _described(self) -> list[list[Any]]:
        return [
            [segment.kind.value, segment.first + self._first, segment.end + self._first]
            for segment in self._course
        ]


def _in_words(course: Sequence[Sequence[Any]]) -> str:
    kinds = [kind for kind, *_ in course]
    return f"{kinds.count('round')} rounds and {kinds.count('finalist')} finalists in {course[-1][-1]} steps"

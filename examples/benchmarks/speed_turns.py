"""Turns of living processes, and the ratios between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import fmean, median
from typing import Any

from speed_modes import RANDOM, Mode, serve

# Of glibc, for the living processes: memory is kept. How often it is given back and faulted in again depends on what
# else a process holds, and took up to a third of a step of one process and nothing of another's.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
LEAST_NETWORKS = 6  # in a turn of a mode that draws them


@dataclass(frozen=True)
class Turn:
    """A turn of one mode on one space; it measures either times or memory.

    Attributes:
        space: its name.
        mode: its name.
        number: of the alternation.
        milliseconds: by part, of one step; ``both`` is a structure and a weight step, ``pair`` what lies between
            the starts of two batches.
        wall: the same on the wall.
        megabytes: by part, saved for the backward pass and in gradients.
        peak: megabytes of the GPU; 0 without one.
        steps: measured.
    """

    space: str
    mode: str
    number: int
    milliseconds: dict[str, float]
    wall: dict[str, float]
    megabytes: dict[str, float]
    peak: float
    steps: int


class Worker:
    """The living process of a mode.

    Attributes:
        name: of the mode.
        mode: what the process trains.
        reason: why it cannot train the space that was opened last; ``None`` if it can.
    """

    def __init__(self, name: str, mode: Mode, options: dict[str, Any]) -> None:
        self.name, self.mode = name, mode
        self.reason: str | None = None
        self._space, self._pairs = "", 1
        os.environ.update(_KEEP_MEMORY)
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, name, mode, options), daemon=True)
        self._process.start()
        other.close()

    def begin_to_open(self, space: str) -> None:
        """Let the process build a space; :meth:`wait_until_open` waits for it, so that all of them build together."""
        self._space, self.reason = space, None
        self._connection.send({"kind": "open", "space": space})

    def wait_until_open(self) -> None:
        self._answer()

    def set_length(self, seconds: float) -> None:
        """Let turns take about so long, on the wall; takes the first steps of the space, which do not count."""
        answer = self._ask(kind="time", pairs=2, warm=1)
        if self.reason is None:
            least = LEAST_NETWORKS if self.mode.varies else 1
            self._pairs = max(int(seconds / min(answer["wall"]["pair"])), least)

    def turn(self, number: int, memory: bool) -> Turn | None:
        """Take a turn; ``None`` if the space cannot be trained.

        Args:
            number: of the alternation.
            memory: measure memory, not times.
        """
        pairs = self._pairs if self.mode.varies or not memory else 1
        # New networks are trained once before they are timed.
        warm = pairs if self.name == RANDOM else 0
        kind = "memory" if memory else "time"
        answer = self._ask(kind=kind, pairs=pairs, warm=warm)
        if self.reason is not None:
            return None
        kept = {part: fmean(values) / 1e6 for part, values in answer["bytes"].items()}
        times = ({}, {}) if memory else (self._step(answer["seconds"]), self._step(answer["wall"]))
        return Turn(self._space, self.name, number, *times, kept, answer["peak"] / 1e6, pairs)

    def close(self) -> None:
        """Leave the space."""
        reason = self.reason
        self._ask(kind="close")
        self.reason = reason

    def end(self) -> None:
        """Let the process end."""
        self._connection.send({"kind": "end"})
        self._process.join()

    def _step(self, seconds: dict[str, list[float]]) -> dict[str, float]:
        # Of a mode whose steps all do the same, a disturbed step does not count; where they differ, each does.
        middle: Callable[[list[float]], float] = fmean if self.mode.varies else median
        step = {part: 1000 * middle(values) for part, values in seconds.items()}
        return {**step, "both": step["structure"] + step["weight"]} if "structure" in step else step

    def _ask(self, **message: Any) -> dict[str, Any]:
        self._connection.send(message)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer = self._connection.recv()
        self.reason = answer.get("reason", self.reason)
        return answer


def measure(space: str, workers: Sequence[Worker], alternations: int, seconds: float) -> list[Turn]:
    """Turns of all modes on one space, times first and then memory; a mode that cannot train it has no turns.

    Args:
        space: its name.
        workers: one a mode.
        alternations: turns of each, that measure times.
        seconds: of a turn, about.
    """
    for worker in workers:
        worker.begin_to_open(space)
    for worker in workers:
        worker.wait_until_open()
    for worker in workers:
        if worker.reason is None:
            worker.set_length(seconds)
    turns: list[Turn | None] = []
    for number in range(alternations + 1):
        for worker in reversed(workers) if number % 2 else workers:
            if worker.reason is None:
                turns.append(worker.turn(number, memory=number == alternations))
    for worker in workers:
        worker.close()
    return [turn for turn in turns if turn is not None]


def ratios(
    turns: Iterable[Turn],
    space: str,
    mode: tuple[str, str],
    baseline: tuple[str, str],
    what: str = "milliseconds",
) -> list[float]:
    """Per alternation, a part of a mode divided by a part of another one.

    Args:
        turns: of any spaces.
        space: the one that counts.
        mode: name and part.
        baseline: name and part of what is divided by.
        what: ``milliseconds`` or ``megabytes``.
    """
    found: dict[str, dict[int, float]] = {"over": {}, "under": {}}
    for turn in turns:
        values = getattr(turn, what)
        for place, (name, part) in (("over", mode), ("under", baseline)):
            if turn.space == space and turn.mode == name and part in values:
                found[place][turn.number] = values[part]
    return [value / found["under"][k] for k, value in found["over"].items() if k in found["under"]]

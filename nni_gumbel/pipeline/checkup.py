"""The doctor's look at a trial command: what it names is built and tried, in the order in which it would fail."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gumbel.data import DIRECTORY_FIELD, DOWNLOADED, FILE_PREFIX, PACKAGED
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.host import FAIL, OK, WARN, Finding, finding_of
from nni_gumbel.pipeline.manager import trial_command_of
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.search.settings import SearchSettings, without_effect

if TYPE_CHECKING:
    from nni_gumbel.results.example import Example

# What torchvision's sets hold, channels first.
DOWNLOADED_SHAPES = {
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist"), (1, 28, 28)),
    **dict.fromkeys(("cifar10", "cifar100"), (3, 32, 32)),
}


def command_and_data_findings(
    config: Mapping[str, Any], metric: str | None, searches: Sequence[SearchSettings]
) -> Iterator[Finding]:
    """The trial command: its words, its space (which is built and tried), its data, its evaluator and its costs."""
    try:
        command, directory = trial_command_of({"params": config})
        command.check(directory)
        named = ((config.get("tuner") or {}).get("classArgs"), config.get("searchSpace"))
        command.check_cost([name for names in named if isinstance(names, Mapping) for name in names])
    except UsageError as error:
        yield Finding(FAIL, "trial command", str(error))
        return
    yield Finding(OK, "trial command", f"runs in {directory}")
    with _inside(directory):
        found = [finding_of("space", lambda: _space(command)), finding_of("data", lambda: _data(command))]
        yield from found
        if all(finding.level == OK for finding in found):
            rehearsed = finding_of("rehearsal", lambda: _rehearsal(command, searches))
            yield rehearsed
            if rehearsed.level == OK and searches:
                yield finding_of("costs", lambda: _costs(command, searches))
    own_cost = command.cost is not None
    lines = dict.fromkeys(line for settings in searches for line in without_effect(settings, own_cost))
    yield from (Finding(WARN, "costs", line) for line in lines)
    yield finding_of("evaluator", lambda: _evaluator(command, metric))


def _space(command: TrialCommand) -> str:
    reference = SpaceReference.parse(command.space, command.space_arguments)
    with warnings.catch_warnings():
        # NNI wonders about classes that torch has added since; nobody can do anything about it.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"nni\.nas")
        labels = reference.build().simplify()
    return f"{reference}, {len(labels)} choices"


def _rehearsal(command: TrialCommand, searches: Sequence[SearchSettings]) -> str:
    from nni_gumbel.pipeline.rehearsal import rehearse
    from nni_gumbel.search.module import check_estimator
    from nni_gumbel.supernet.mutation import relax

    reference = SpaceReference.parse(command.space, command.space_arguments)
    space = reference.build()
    distribution = relax(space)
    for settings in searches:
        check_estimator(distribution, settings)
    if not _data_is_at_hand(command):
        return "every choice can be relaxed; the first trial tries the space on its data"
    example, classes = _example(command)
    rehearse(space, distribution, reference, example, None if command.evaluator else classes)
    return "every choice can be relaxed, and the space takes the data"


def _costs(command: TrialCommand, searches: Sequence[SearchSettings]) -> str:
    from nni_gumbel.pipeline.rehearsal import check_costs
    from nni_gumbel.supernet.mutation import relax

    space = SpaceReference.parse(command.space, command.space_arguments).build()
    example = _example(command)[0] if _data_is_at_hand(command) else _stand_in(command)
    check_costs(space, relax(space), searches, command.own_cost(), example)
    left = {"max_latency_ms": any(settings.max_latency_ms is not None for settings in searches)}
    left["max_flops"] = example is None and any(settings.max_flops is not None for settings in searches)
    later = " and ".join(name for name in ("max_flops", "max_latency_ms") if left[name])
    priced = command.cost or ", ".join(dict.fromkeys(settings.cost for settings in searches))
    return f"{priced}; every budget can be met" + (
        f", but for {later}, which the first search tells" * bool(later)
    )


def _stand_in(command: TrialCommand) -> Example | None:
    """Blank images of the shape of a data set that is not here yet; ``None`` if only its own code knows it."""
    import torch

    from nni_gumbel.results.example import Example

    if command.data not in DOWNLOADED_SHAPES:
        return None
    return Example((torch.zeros(2, *DOWNLOADED_SHAPES[command.data]),))


def _data_is_at_hand(command: TrialCommand) -> bool:
    """Whether looking at the data downloads nothing and runs nobody's code."""
    return command.data == PACKAGED or str(command.data).startswith(FILE_PREFIX)


def _example(command: TrialCommand) -> tuple[Example, int]:
    """Two inputs, and the number of classes."""
    import torch

    from nni_gumbel.data.sources import read_parts
    from nni_gumbel.results.example import Example

    parts = read_parts(command.data, command.data_dir)
    return Example((torch.from_numpy(parts.validation.pixels[:2]).float(),)), int(
        parts.train.labels.max()
    ) + 1


def _evaluator(command: TrialCommand, metric: str | None) -> str:
    if command.evaluator is None and metric not in (None, "acc", "loss"):
        raise UsageError(
            f"metric: the built-in classification logs acc and loss, not {metric!r}; set metric: acc, "
            "or name an --evaluator of your own"
        )
    return command.evaluator or "the built-in classification"


def _data(command: TrialCommand) -> str:
    name, folder = command.data, Path(command.data_dir).expanduser()
    if name is None:
        return "the evaluator's own"
    if name in DOWNLOADED:
        # The nearest folder that exists is the one in which the others would be made.
        existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UsageError(
                f"{DIRECTORY_FIELD}: {existing} cannot be written; give a directory that can, or that holds {name}"
            )
        return f"{name}, which the first trial downloads unless it is in {folder}"
    if name == PACKAGED or name.startswith(FILE_PREFIX):
        from nni_gumbel.data.sources import read_parts

        parts = read_parts(name, command.data_dir)
        sizes = (
            f"{len(parts.train)} training, {len(parts.validation)} validation, {len(parts.test)} test images"
        )
        return f"{name}, {sizes} of shape {parts.train.pixels.shape[1:]}"
    return name


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Work in the trial code directory, where a trial finds modules and files."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path

"""What is known of an experiment, for its report: from NNI's trials, their output directories, and the space.

An output directory has TensorBoard's events of a search, the bundle and the stability of a training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.export import priced_by, with_stability
from nni_gumbel.pipeline.manager import plan_of
from nni_gumbel.pipeline.task import TENSORBOARD, Trial
from nni_gumbel.results.agreement import choice_of
from nni_gumbel.results.choice import Choice, Network, choose
from nni_gumbel.results.pictures import SearchHistory
from nni_gumbel.results.space import canonical
from nni_gumbel.results.stability import FILE as STABILITY
from nni_gumbel.results.stability import Stability, read_stability

logger = logging.getLogger(__name__)


class Records:
    """What is known of an experiment; read when it is asked for.

    Args:
        profile: the experiment, as NNI's manager tells it.
        trials: all of them.
        outputs: the folder with their output directories.
        command: the trial command. This process works in the trial code directory.
        export: the output directory of the export; ``None`` if there is none yet.

    Raises:
        UsageError: no training has finished.
    """

    def __init__(
        self,
        profile: Mapping[str, Any],
        trials: Sequence[Trial],
        outputs: Path,
        command: TrialCommand,
        export: Path | None,
    ) -> None:
        self.id, self.params = profile["id"], profile["params"]
        self.trials, self.outputs, self.command, self.export = trials, outputs, command, export
        self.plan = plan_of(profile)
        self.metric, self.mode = self.plan.settings.metric, self.plan.settings.optimize_mode
        self.priced = priced_by(command, self.plan)
        self.networks = with_stability(self.plan.networks(trials), outputs)
        if not self.networks:
            raise UsageError(
                f"ID: experiment {self.id} has no finished training yet, so there is nothing to report; "
                f"`nni-gumbel wait {self.id}` follows it"
            )
        self.choice: Choice = choose(
            self.networks, self.metric, self.mode, self.priced, self.plan.settings.choice_rule
        )
        self.searches = self.plan.searches(trials)

    @cached_property
    def candidates(self) -> dict[str, tuple[list[str], int]]:
        """The candidates of every label of the space, and how many outcomes it has.

        Where the space cannot be built, they are those that searches have found.
        """
        from nni_gumbel.supernet.distribution import law_of  # imports torch, as the space does

        try:
            variables = self.command.reference.build().simplify()
        except UsageError as error:
            logger.warning("the candidates are those that searches have found: %s", first_line(error))
            found: dict[str, dict[str, None]] = {}
            for _, _, trial in self.searches:
                for label in trial.report.architecture:
                    found.setdefault(label, {})[choice_of(trial.report.architecture, label)] = None
            return {label: (list(words), len(words)) for label, words in found.items()}
        return {
            label: (
                [choice_of({label: value}, label) for value in variable.values],
                law_of(label, variable).outcomes,
            )
            for label, variable in variables.items()
        }

    @cached_property
    def history(self) -> dict[str, SearchHistory]:
        """What each search reported, by its trial."""
        return {
            trial.id: _history_of(
                f"search {trial.id}, seed {task.seed}", self.outputs / trial.id / TENSORBOARD
            )
            for _, task, trial in self.searches
        }

    def kept(self, network: Network) -> list[Stability]:
        """What the trainings of a network kept of its stability; a damaged file was warned of before."""
        kept = []
        for run in network.runs:
            if run.stability is not None and (
                found := read_stability(self.outputs / run.trial_id / STABILITY)
            ):
                kept.append(found)
        return kept

    @cached_property
    def groups(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The settings that were varied, and the networks that their searches found, one a seed."""
        groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for combination, _, trial in self.searches:
            _, found = groups.setdefault(canonical(combination), (combination, []))
            found.append(trial.report.architecture)
        return list(groups.values())

    @cached_property
    def test_stability(self) -> Stability | None:
        """Of the exported network, on the test part."""
        try:
            return None if self.export is None else read_stability(self.export / STABILITY)
        except UsageError as error:
            logger.warning("%s", error)
            return None

    @cached_property
    def experiment(self) -> str:
        """The experiment as a file that starts it again."""
        service = self.params.get("trainingService") or {}
        names = (
            "experimentName",
            "searchSpace",
            "trialConcurrency",
            "maxTrialNumber",
            "maxExperimentDuration",
        )
        text = {name: self.params[name] for name in names if self.params.get(name) is not None}
        text["trialCommand"] = service.get("trialCommand") or self.params.get("trialCommand")
        # Where the space lies; the person who reads this may have it elsewhere.
        text["trialCodeDirectory"] = "."
        text["tuner"] = self.params["tuner"]
        text["trainingService"] = {"platform": "local"}
        return yaml.safe_dump(text, sort_keys=False)


def _history_of(name: str, events: Path) -> SearchHistory:
    """What a search wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, list[float]] = {}
    probabilities: dict[str, dict[str, list[float]]] = {}
    if events.is_dir():
        found = EventAccumulator(str(events), size_guidance={"scalars": 0})
        found.Reload()
        for tag in found.Tags()["scalars"]:
            values = [event.value for event in found.Scalars(tag)]
            kind, _, rest = tag.partition("/")
            if kind == "probability":
                # A label may hold slashes, the word of a candidate not.
                label, _, candidate = rest.rpartition("/")
                probabilities.setdefault(label, {})[candidate] = values
            else:
                curves[tag] = values
    return SearchHistory(name, curves, probabilities)

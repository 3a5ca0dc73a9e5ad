"""A search with NNI's training service: what the strategy does by itself elsewhere, as trials of an experiment.

NNI's engine runs any ``ExecutableModelSpace`` that is submitted, and shows it in the portal. So the search is one: it
goes to a trial as the space's and the evaluator's constructors with their arguments, and comes back as the networks
found, best first. Of these the best are trained from scratch, each by a trial of its own.

NNI turns all this into text and back by pickle, in the trial and in the process of the person.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni
import pytorch_lightning as pl
from nni.common.serializer import SerializableObject
from nni.experiment.data import TrialJob
from nni.nas.execution import TrainingServiceExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ModelStatus, SimplifiedModelSpace
from nni.nas.space.metrics import Metrics
from nni.runtime.trial_command_channel import (
    TrialCommandChannel,
    get_default_trial_command_channel,
    set_default_trial_command_channel,
)
from torch import nn

from nni_gumbel.results.space import canonical, network_of, sample_of

if TYPE_CHECKING:
    from nni_gumbel.search.strategy import GumbelSearch

# Of a search, in its final metric: the networks that it found, as JSON.
_NETWORKS = "networks"
_INTERVAL = 2.0  # seconds between two looks at the trials
_SUCCEEDED, _FAILED = "SUCCEEDED", ("FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")
_LOOKS_FOR_A_METRIC = 15  # the final metric of a trial may be later than the news of its end


class StageTrial(SimplifiedModelSpace):
    """What one trial does: the search, or the training of one network from scratch.

    Args:
        model: an instance of the space, or its constructor with arguments.
        evaluator: of the search and of the training.
        seed: of all random numbers.
        strategy: the class of the search and its arguments; ``None`` in a training.
        sample: the network of a training; labels that it does not use may be missing.
    """

    def __init__(
        self,
        model: ModelSpace | SerializableObject,
        evaluator: Any,
        seed: int,
        *,
        strategy: tuple[type[GumbelSearch], dict[str, Any]] | None = None,
        sample: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, {}, evaluator)
        self.seed, self.strategy, self.sample = seed, strategy, sample
        self.status = ModelStatus.Frozen
        self.metrics = Metrics(strict=False)  # as they are told, by an evaluator without a `default`, too

    @property
    def key(self) -> str:
        """What is to be done, by which a resumed experiment knows it again."""
        if self.sample is None:
            return "search"
        return f"train-{hashlib.sha256(canonical(self.sample).encode()).hexdigest()[:8]}"

    def space(self) -> ModelSpace:
        """A fresh instance of the space."""
        return self.model.trace_copy().get(traceable=False)

    def executable_model(self) -> nn.Module:
        """The network of a training, with new weights."""
        return network_of(self.space(), self.sample)

    def execute(self) -> None:
        """What the trial runs; both stages report every epoch."""
        pl.seed_everything(self.seed)
        if self.strategy is None:
            self.evaluator.evaluate(self.executable_model())
            return
        kind, arguments = self.strategy
        search = kind(**arguments)
        supernet = search.mutate_model(self.space())
        evaluator = search.mutate_evaluator(self.evaluator)
        module = evaluator.module
        reports = _Reports(get_default_trial_command_channel(), module.structure_summary)
        set_default_trial_command_channel(reports)
        try:
            evaluator.evaluate(supernet)
        finally:
            set_default_trial_command_channel(reports.channel)
        networks = module.finalists() or [module.export()]
        nni.report_final_result(
            {**reports.latest, **module.structure_summary(), _NETWORKS: json.dumps(networks)}
        )

    # -- as text, by NNI -------------------------------------------------------------------------

    def _dump(self) -> dict[str, Any]:
        own = {"key": self.key, "seed": self.seed, "strategy": self.strategy}
        return {**own, **super()._dump()}

    @classmethod
    def _load(cls, **attributes: Any) -> StageTrial:
        given = (attributes[f"model_{name}"] for name in ("symbol", "args", "kwargs"))
        strategy = attributes["strategy"]
        return cls(
            SerializableObject(*given),
            attributes["evaluator"],
            attributes["seed"],
            strategy=None if strategy is None else tuple(strategy),
            sample=attributes["sample"],
        )


class _Reports(TrialCommandChannel):
    """What the evaluator reports of a search, with the state of the structure; its final result waits for ours.

    NNI keeps the first final metric of a trial alone.
    """

    def __init__(self, channel: TrialCommandChannel, summary: Callable[[], dict[str, float]]) -> None:
        self.channel, self._summary = channel, summary
        self.latest: dict[str, Any] = {}

    def receive_parameter(self) -> Any:
        return self.channel.receive_parameter()

    def send_metric(self, *, type: str, value: Any, **message: Any) -> None:
        self.latest = dict(value) if isinstance(value, Mapping) else {"default": value}
        if type == "PERIODICAL":
            self.channel.send_metric(type=type, value={**self.latest, **self._summary()}, **message)


def run_stages(search: StageTrial, engine: TrainingServiceExecutionEngine) -> list[StageTrial]:
    """Search, and train networks that are found; a trial that the experiment has already is not run again.

    The best network is trained; where ``max_trial_number`` of the experiment is above 2, so are the next ones of those
    that the search has trained alone, as many as it leaves.

    Args:
        search: the trial of the search.
        engine: of a running experiment.

    Returns:
        The trainings, the best network first as the search tells; ``metric`` is what each reached, ``None`` if it
        failed or the experiment has ended before.

    Raises:
        RuntimeError: the search failed.
    """
    experiment = engine.nodejs_binding
    (told,) = _final_metrics([search], engine)
    if told is None:
        folder = Path(experiment.config.canonical_copy().experiment_working_directory, experiment.id)
        raise RuntimeError(f"the search has failed; the log of its trial is in {folder / 'environments'}")
    networks = json.loads(told[_NETWORKS])[: max((experiment.config.max_trial_number or 2) - 1, 1)]
    space, parts = search.space(), (search.model, search.evaluator, search.seed)
    trainings = [StageTrial(*parts, sample=sample_of(space, network)) for network in networks]
    for trial, metric in zip(trainings, _final_metrics(trainings, engine)):
        trial.status = ModelStatus.Failed if metric is None else ModelStatus.Trained
        trial.metrics.final = metric
    return trainings


def _final_metrics(wanted: Sequence[StageTrial], engine: TrainingServiceExecutionEngine) -> list[Any]:
    """Submit trials, wait until they are done, and return what they told last; ``None`` for one that failed.

    The manager's list is asked: of an experiment that is resumed the engine is told nothing, because NNI's thread that
    would listen ends at a message that it does not know.
    """
    binding = engine.nodejs_binding
    failed = {job.trialJobId for job in binding.list_trial_jobs() if job.status in _FAILED}

    def jobs() -> dict[str, TrialJob]:
        found = [job for job in binding.list_trial_jobs() if job.trialJobId not in failed]
        return {job.hyperParameters[0].parameters.get("key"): job for job in found if job.hyperParameters}

    known = jobs()
    for trial in wanted:
        if trial.key not in known:
            engine.submit_models(trial)
    looks = _LOOKS_FOR_A_METRIC
    while True:
        is_over = binding.get_status() in ("DONE", "STOPPED", "ERROR")
        known = jobs()
        found = [known.get(trial.key) for trial in wanted]
        ended = [job for job in found if job and job.status in (_SUCCEEDED, *_FAILED)]
        if len(ended) == len(found) or is_over:
            looks -= 1
            done = [job.finalMetricData for job in ended if job.status == _SUCCEEDED]
            if all(done) or not looks:
                is_told = [job and job.status == _SUCCEEDED and job.finalMetricData for job in found]
                return [told[-1].data if told else None for told in is_told]
        time.sleep(_INTERVAL)

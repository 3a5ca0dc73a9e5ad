"""A search with NNI's training service: what the strategy does by itself elsewhere, as trials of an experiment.

NNI's engine runs any ``ExecutableModelSpace`` that is submitted, and shows it in the portal. So the search is one: it
goes to a trial as the space's and the evaluator's constructors with their arguments, and comes back as the networks
found, best first. Of these the best are trained from scratch, each by a trial of its own.

NNI turns all this into text and back by pickle, in the trial and in the process of the person.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni
import numpy as np
import pytorch_lightning as pl
from nni.common.serializer import SerializableObject, is_traceable
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
from torch import Tensor, nn

from nni_gumbel.results.space import canonical, network_of, sample_of

if TYPE_CHECKING:
    from nni_gumbel.search.strategy import GumbelSearch

# Of a search, in its final metric: the networks that it found, as JSON.
_NETWORKS = "networks"
_INTERVAL = 2.0  # seconds between two looks at the trials
_SUCCEEDED = "SUCCEEDED"
_ENDED = (_SUCCEEDED, "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")
_LOOKS_FOR_A_METRIC = 15  # the final metric of a trial may be later than the news of its end
# Entries of an array that is a setting, like the weights of classes; a larger one is data.
_LARGEST_SETTING = 1000
_SEEDS = 2**32  # those that can be given; torch draws its own from 64 bits
_logger = logging.getLogger(__name__)


class StageTrial(SimplifiedModelSpace):
    """What one trial does: the search, or the training of one network from scratch.

    Args:
        model: an instance of the space, or its constructor with arguments.
        evaluator: of the search and of the training.
        seed: of all random numbers, modulo 2**32; one above that is torch's own of a process that nobody has seeded.
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

    @cached_property
    def key(self) -> str:
        """The stage and a hash of all that it is made of, by which a resumed experiment knows it again."""
        stage, sample = ("search", None) if self.sample is None else ("train", canonical(self.sample))
        seed = self.seed if self.seed < _SEEDS else None
        text = repr(_description([self.model, self.evaluator, seed, self.strategy, sample], {}))
        return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def space(self) -> ModelSpace:
        """A fresh instance of the space."""
        return self.model.trace_copy().get(traceable=False)

    def executable_model(self) -> nn.Module:
        """The network of a training, with new weights."""
        return network_of(self.space(), self.sample)

    def execute(self) -> None:
        """What the trial runs; both stages report every epoch."""
        pl.seed_everything(self.seed % _SEEDS)
        try:
            if self.strategy is None:
                self.evaluator.evaluate(self.executable_model())
            else:
                self._search(*self.strategy)
        except SystemExit as end:
            # Lightning ends a training at SIGTERM without a code, which the manager takes for a success.
            raise SystemExit(end.code or 128 + signal.SIGTERM) from end

    def _search(self, kind: type[GumbelSearch], arguments: dict[str, Any]) -> None:
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
        own = {"key": self.key, "seed": self.seed % _SEEDS, "strategy": self.strategy}
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
    keys = _keys(experiment.list_trial_jobs()).values()
    if search.key not in keys and any(str(key).startswith("search") for key in keys):
        _logger.warning(
            "the search of this experiment had another space, evaluator, seed or settings: one begins anew"
        )
    (failure,) = _run(engine, [search])
    if failure:
        folder = Path(experiment.config.canonical_copy().experiment_working_directory, experiment.id)
        raise RuntimeError(f"the search {failure}; the logs of trials are in {folder / 'environments'}")
    networks = json.loads(search.metrics.final[_NETWORKS])
    networks = networks[: max((experiment.config.max_trial_number or 2) - 1, 1)]
    space, parts = search.space(), (search.model, search.evaluator, search.seed)
    trainings = [StageTrial(*parts, sample=sample_of(space, network)) for network in networks]
    for trial, failure in zip(trainings, _run(engine, trainings)):
        if failure:
            _logger.warning("the training of %s %s", trial.sample, failure)
    return trainings


def _run(engine: TrainingServiceExecutionEngine, wanted: Sequence[StageTrial]) -> list[str]:
    """Submit the trials that have no metric yet, wait until they are done, and set their status and final metric.

    The manager's list is asked: of an experiment that is resumed the engine is told nothing, because NNI's thread that
    would listen ends at a message that it does not know.

    Returns:
        What has become of each trial without a metric; empty for one that has it.
    """
    binding, keys = engine.nodejs_binding, [trial.key for trial in wanted]
    jobs = binding.list_trial_jobs()
    before = {job.trialJobId for job in jobs if job.status in _ENDED}
    metrics = _final_metrics(jobs)
    running = [key for job in jobs if job.trialJobId not in before and (key := _key(job)) in keys]
    missing = [trial for trial in wanted if trial.key not in (*metrics, *running)]
    # A running trial whose own parameters have a metric already runs those of another.
    missing = missing[sum(key in metrics for key in running) :]
    engine.submit_models(*missing)
    looks = _LOOKS_FOR_A_METRIC
    while True:
        status = binding.get_status()
        jobs = binding.list_trial_jobs()
        metrics = _final_metrics(jobs)
        own = [job for job in jobs if job.trialJobId not in before and _key(job) in keys]
        is_ended = len(own) >= len(running) + len(missing) and all(job.status in _ENDED for job in own)
        if all(key in metrics for key in keys):
            break
        if is_ended or status in ("DONE", "STOPPED", "ERROR"):
            looks -= 1
            if not looks or all(job.finalMetricData for job in own if job.status == _SUCCEEDED):
                break
        time.sleep(_INTERVAL)
    ends = {_key(job): "has failed" if job.status in _ENDED else "has not ended" for job in own}
    cause = "max_trial_number is used up" if status == "DONE" else f"the experiment is {status}"
    for trial in wanted:
        trial.metrics.final = metrics.get(trial.key)
        trial.status = ModelStatus.Trained if trial.key in metrics else ModelStatus.Failed
    return ["" if key in metrics else ends.get(key, f"was not started: {cause}") for key in keys]


def _key(job: TrialJob) -> str | None:
    """What a trial was submitted for."""
    return job.hyperParameters[0].parameters.get("key") if job.hyperParameters else None


def _keys(jobs: Sequence[TrialJob]) -> dict[str, str | None]:
    """What trials were submitted for, by the id of their parameters."""
    return {str(job.hyperParameters[0].parameter_id): _key(job) for job in jobs if job.hyperParameters}


def _final_metrics(jobs: Sequence[TrialJob]) -> dict[str | None, Any]:
    """By key, what trials that succeeded told last.

    A metric names the parameters that were run. Those recorded for its trial may be others, because trials that start
    together may get each other's.
    """
    keys = _keys(jobs)
    told = (metric for job in jobs if job.status == _SUCCEEDED for metric in job.finalMetricData)
    return {keys.get(str(metric.parameterId)): metric.data for metric in told}


def _description(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """What a value is made of, in words and numbers that are the same in every process, as a pickle is not.

    Classes and functions count by their names, and weights and large arrays by their shapes.

    Args:
        value: of any type.
        seen: objects before this one with their numbers, by ``id``; they are kept alive, so that no ``id`` returns.
    """
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return value
    if hasattr(value, "__qualname__") and not isinstance(value, types.MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    if id(value) in seen:
        return f"object {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value

    def described(part: Any) -> Any:
        return _description(part, seen)

    if is_traceable(value, must_be_instance=True):
        return [described(part) for part in (value.trace_symbol, value.trace_args, value.trace_kwargs)]
    if isinstance(value, Mapping):
        return [[described(key), described(held)] for key, held in value.items()]
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(described(part)) for part in value)
    if isinstance(value, (Tensor, np.ndarray)):
        is_setting = not isinstance(value, nn.Parameter) and math.prod(value.shape) <= _LARGEST_SETTING
        return [str(value.dtype), list(value.shape), value.tolist() if is_setting else None]
    try:
        parts = value.__reduce_ex__(4)
    except Exception:  # of a lock, or of what else cannot be told to another process
        return described(type(value))
    if isinstance(parts, str):
        return parts
    kind, arguments, *state = parts
    return [described(kind), described(arguments), *(described(_listed(part)) for part in state)]


def _listed(part: Any) -> Any:
    """Entries that ``__reduce_ex__`` gives as an iterator."""
    return list(part) if isinstance(part, Iterator) else part

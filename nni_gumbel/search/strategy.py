"""``GumbelSearch``: the search as an NNI one-shot strategy.

A drop-in for NNI's ``DARTS`` and ``GumbelDARTS``: ``NasExperiment(space, evaluator,
GumbelSearch()).run()``. It subclasses ``DARTS`` because NNI's hub asks for that class; how NNI runs a one-shot
strategy is inherited, and nothing of how DARTS searches. With NNI's training service, which theirs do not take, it
searches in a trial; see :mod:`~nni_gumbel.search.trials`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni.nas.strategy  # noqa: F401  (first of all of NNI: see nni_gumbel.supernet)
from nni.nas.evaluator.pytorch import Lightning, LightningModule
from nni.nas.execution import SequentialExecutionEngine, TrainingServiceExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.oneshot.pytorch.strategy import MutationHook
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import DARTS
from torch import initial_seed, nn

from nni_gumbel.complexity.budget import ranked_within
from nni_gumbel.copies import copied
from nni_gumbel.errors import UsageError
from nni_gumbel.search.costs import SearchCosts
from nni_gumbel.search.data import take_over
from nni_gumbel.search.module import GumbelSearchModule
from nni_gumbel.search.nni_arguments import described_penalty, settings_of
from nni_gumbel.search.settings import SearchSettings, without_effect
from nni_gumbel.search.steps import dropout_rates
from nni_gumbel.search.trials import StageTrial, run_stages
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.mutation import relax

if TYPE_CHECKING:
    from nni_gumbel.complexity.latency import LatencyTable

_logger = logging.getLogger(__name__)


class GumbelSearch(DARTS):
    """Searches a space by gradient descent on a relaxation of its choices.

    Args:
        mutation_hooks: hooks of one's own, run before ours; see NNI's ``OneShotStrategy``. The modules that they
            return read the weights of their candidates from ``mutate_kwargs["joint_sample"]``.
        penalty: what the structure costs, as NNI's ``DARTS`` takes it; see
            :func:`~nni_gumbel.search.nni_arguments.described_penalty`.
        cost: what ``cost_weight`` prices: a word of the settings, or a function of one's own, see
            :class:`~nni_gumbel.complexity.own_cost.OwnCost`.
        latency_table: times of candidates, as ``cost="latency"`` and ``max_latency_ms`` need them; without one
            they are measured when the search begins.
        **settings: the fields of :class:`~nni_gumbel.search.settings.SearchSettings`, and NNI's ``temperature``;
            see :func:`~nni_gumbel.search.nni_arguments.settings_of`.

    Raises:
        UsageError: an argument is unknown or out of its range.
    """

    def __init__(
        self,
        *,
        mutation_hooks: list[MutationHook] | None = None,
        penalty: dict[str, Any] | ExpectationProfilerPenalty | None = None,
        cost: str | Callable[..., Any] = "params",
        latency_table: LatencyTable | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(mutation_hooks, (list, tuple, type(None))):
            raise UsageError(f"mutation_hooks: {mutation_hooks!r} is no list; give a list of hooks")
        parts = {"mutation_hooks": mutation_hooks, "penalty": penalty, "latency_table": latency_table}
        # For a trial that is to search likewise.
        self._arguments = {name: value for name, value in parts.items() if value is not None}
        self._arguments |= {"cost": cost, **settings}
        described = described_penalty(penalty)
        self._own_cost = cost if callable(cost) else None
        if self._own_cost is None:
            settings["cost"] = cost
        self._latency_table = latency_table
        self.settings = SearchSettings(**settings_of(settings))
        super().__init__(
            mutation_hooks=mutation_hooks,
            penalty=described,
            arc_learning_rate=self.settings.arc_learning_rate,
            gradient_clip_val=self.settings.gradient_clip_val or None,
            log_prob_every_n_step=self.settings.log_prob_every_n_step,
            warmup_epochs=self.settings.warmup_epochs,
        )
        self._distribution: Distribution | None = None  # until `mutate_model`, as the next one
        self._costs: SearchCosts | None = None
        self._search_trial: StageTrial | None = None  # with a training service, as the next one
        self._trainings: list[StageTrial] = []

    @property
    def distribution(self) -> Distribution:
        """The logits of the space; available after ``mutate_model``."""
        if self._distribution is None:
            raise RuntimeError("the strategy has no distribution before mutate_model() or run()")
        return self._distribution

    # -- before the search -----------------------------------------------------------------------

    def mutate_model(self, model: ModelSpace) -> ModelSpace:
        """Turn the space into a supernet, in place, with fresh logits.

        Raises:
            UsageError: it is no space, it has a choice that cannot be relaxed, or no network of it has as few
                parameters as it may.
        """
        if not isinstance(model, ModelSpace):
            raise UsageError(
                f"space: {type(model).__name__} is no ModelSpace; let its class inherit nni.nas.nn.pytorch.ModelSpace"
            )
        of_the_space = model.extra_oneshot_hooks(self) if hasattr(model, "extra_oneshot_hooks") else []
        hooks = [hook for hook in (*self.extra_mutation_hooks, *of_the_space) if not _is_of_nni(hook)]
        self._distribution = relax(model, [*map(_explained, hooks)])
        self._costs = SearchCosts(
            model, self._distribution, self.settings, self._own_cost, self._latency_table,
            "params" if self.penalty is None else self.penalty.word,
        )  # fmt: skip
        for line in without_effect(self.settings, self._own_cost is not None):
            _logger.warning(line)
        rates = [] if self.settings.stages else dropout_rates(model)
        if rates:
            _logger.warning(
                "dropout rate %s: the gradient of the structure does not depend on it; leave stages and finalists "
                "above 0, which train networks with each rate", ", ".join(map(repr, rates)),
            )  # fmt: skip
        return model

    def configure_oneshot_module(self, training_module: LightningModule) -> GumbelSearchModule:
        parts = self.distribution, self._costs, self.settings, self.penalty
        return GumbelSearchModule(training_module, *parts)

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Wrap the evaluator for the search; see :func:`~nni_gumbel.search.data.take_over`."""
        return take_over(evaluator, self.configure_oneshot_module)

    # -- with NNI's training service -------------------------------------------------------------

    def _initialize(
        self,
        model_space: ExecutableModelSpace,
        engine: SequentialExecutionEngine | TrainingServiceExecutionEngine,
    ) -> ExecutableModelSpace:
        if not isinstance(engine, TrainingServiceExecutionEngine):
            return super()._initialize(model_space, engine)
        if not isinstance(model_space, SimplifiedModelSpace):
            raise UsageError(
                f"model_format: {type(model_space).__name__} cannot be sent to a trial; give "
                "NasExperimentConfig('ts', 'simplified', 'local')"
            )
        number = engine.nodejs_binding.config.max_trial_number
        if number is not None and number < 2:
            raise UsageError(
                f"max_trial_number: {number} leaves no trial for a training after the search; give at least 2"
            )
        strategy = type(self), self._arguments
        search = StageTrial(model_space.model, model_space.evaluator, initial_seed(), strategy=strategy)
        # A mistake is told before there is a trial.
        rehearsal = type(self)(**self._arguments)
        rehearsal.mutate_model(search.space())
        rehearsal.mutate_evaluator(search.evaluator)
        self._search_trial = search
        return search

    def _run(self) -> None:
        if self._search_trial is None:
            super()._run()
        else:
            self._trainings = run_stages(self._search_trial, self.engine)

    # -- resuming --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the last checkpoint of the search is, or will be if it is killed later.

        NNI saves this before the search and when it is stopped. A search that has written no checkpoint names the
        ``folder`` where its ``ModelCheckpoint`` will, with the ``older`` files that are there, and the checkpoint that
        it goes on from itself.
        """
        if self._mutated_model_space is None:
            return {}
        evaluator = self._mutated_model_space.evaluator
        callback, resumed_from = evaluator.trainer.checkpoint_callback, evaluator.fit_kwargs.get("ckpt_path")
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return {"ckpt_path": path}
        state = {"ckpt_path": resumed_from} if resumed_from else {}
        if getattr(callback, "dirpath", None):
            older = [file.name for file in Path(callback.dirpath).glob("*.ckpt")]
            state |= {"folder": str(callback.dirpath), "older": older}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next ``run`` go on at the last checkpoint that a state leads to, if there is one."""
        if self._search_trial is not None:
            return  # the experiment knows its trials
        if self._mutated_model_space is None:
            raise RuntimeError("the strategy has nothing to resume before initialize()")
        evaluator = self._mutated_model_space.evaluator
        files = Path(state_dict["folder"]).glob("*.ckpt") if "folder" in state_dict else ()
        new = [file for file in files if file.name not in state_dict["older"]]
        latest = max(new, key=lambda file: file.stat().st_mtime_ns, default=None)
        path = state_dict.get("ckpt_path") if latest is None else str(latest)
        given = evaluator.fit_kwargs.get("ckpt_path")
        if given is not None:
            _logger.warning("ckpt_path is set in the evaluator already: %s", given)
        elif path is not None:
            # Not in place: a later training with the person's evaluator does not start from this checkpoint.
            evaluator.fit_kwargs = {**evaluator.fit_kwargs, "ckpt_path": path}
        else:
            _logger.warning("There is no checkpoint to resume from: the search starts anew.")

    # -- after it --------------------------------------------------------------------------------

    def list_models(
        self, sort: bool = True, limit: int | None = 1
    ) -> Iterator[RawFormatModelSpace] | Iterator[StageTrial]:
        """Distinct networks within the budgets: those that were trained alone, or else the one that is found, first.

        The best is the first of them, and all others follow in the order of their probability. Networks that differ in
        labels alone that they do not use are the same network. Each is found when it is asked for, so ``limit=None``
        is an iterator over the whole space. With a training service they are those that were trained, or were to be:
        ``metric`` is what that reached, and ``executable_model()`` has new weights.

        Args:
            sort: has no effect: the best are always first.
            limit: how many networks.

        Returns:
            Frozen spaces: ``sample`` is the NNI sample, ``executable_model()`` the network with the weights that
            it has in the supernet.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"limit: {limit} is no number of networks; give at least 1, or None for all")
        if self._search_trial is not None:
            yield from self._trainings[:limit]
            return
        networks, module = _Networks(self.supernet, self.model_space.evaluator), self.oneshot_module
        first = module.finalists() or [module.export()]
        ranked = ranked_within(self.supernet, self.distribution, self._costs.limits)
        others = (sample for sample, _ in ranked if sample not in first)
        for sample in islice(chain(first, others), limit):
            yield networks.freeze(sample)


class _Networks(RawFormatModelSpace):
    """A trained supernet, as NNI's experiments export networks from it."""

    def executable_model(self) -> nn.Module:
        """The network, with weights of its own: what NNI freezes shares those of its choices with the supernet."""
        return copied(super().executable_model())


def _is_of_nni(hook: MutationHook) -> bool:
    """Whether a hook builds on the internals of NNI's DARTS: every module that it knows has a hook of ours."""
    return getattr(getattr(hook, "__self__", hook), "__module__", "").split(".")[0] == "nni"


def _explained(hook: MutationHook) -> MutationHook:
    """The hook; where it asks for what NNI's DARTS hands out, a line says what there is instead."""

    def run(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        try:
            return hook(module, name, memo, mutate_kwargs)
        except KeyError as error:
            raise UsageError(
                f"mutation_hooks: a hook asks for {error} at {name!r}; hooks get no logits and no softmax here, but "
                "mutate_kwargs['joint_sample'], whose weights(label) are the weights of the candidates"
            ) from error

    return run

"""A search with NNI's training service: which trials an experiment is asked for, and whose a metric is."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Regression
from nni.nas.execution import TrainingServiceExecutionEngine
from nni.nas.space import SimplifiedModelSpace
from small_searches import QUIET, OneCandidate, loader, regression

from nni_gumbel import GumbelSearch, UsageError
from nni_gumbel.search import trials
from nni_gumbel.search.trials import StageTrial, _run, run_stages

NETWORKS = '[{"only": 0}]'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(trials, "_INTERVAL", 0)


class Engine(TrainingServiceExecutionEngine):
    """An experiment without a manager: each trial that it has room for ends at once, and reports a number."""

    def __init__(self, *jobs, room=9, status="RUNNING", failing=()):
        self.jobs, self.room, self.status, self.failing = list(jobs), room, status, failing
        self.submitted = []
        self.nodejs_binding = SimpleNamespace(
            list_trial_jobs=lambda: list(self.jobs), get_status=lambda: self.status, id="ID",
            config=SimpleNamespace(max_trial_number=2, canonical_copy=lambda: SimpleNamespace(
                experiment_working_directory="experiments"
            )),
        )  # fmt: skip

    def submit_models(self, *models):
        for model in models:
            stage = model.key.split("-")[0]
            self.submitted.append(stage)
            if len(self.jobs) >= self.room:
                self.status = "DONE"
                continue
            metric = {"networks": NETWORKS} if stage == "search" else 0.5
            ending = {"status": "FAILED", "metric": None} if stage in self.failing else {"metric": metric}
            self.jobs.append(job(len(self.jobs), model.key, **ending))


def job(number, key, status="SUCCEEDED", metric=None, ran=None):
    """A trial of the manager's list; ``ran`` is the id of the parameters that it ran, if not of its own."""
    told = SimpleNamespace(data=metric, parameterId=str(number if ran is None else ran))
    return SimpleNamespace(
        trialJobId=f"trial{number}", status=status, finalMetricData=[] if metric is None else [told],
        hyperParameters=[SimpleNamespace(parameters={"key": key}, parameter_id=number)],
    )  # fmt: skip


def trial(sample=None, evaluator=None, seed=0, **settings):
    """A search, or the training of a network."""
    strategy = None if sample else (GumbelSearch, settings)
    return StageTrial(OneCandidate(), evaluator or regression(), seed, strategy=strategy, sample=sample)


A, B = trial({"only": 0}), trial({"only": 1})


def test_a_metric_belongs_to_the_parameters_that_it_names_and_not_to_those_of_its_trials_record():
    engine = Engine(job(1, A.key, metric=0.91, ran=2), job(2, B.key, metric=0.0, ran=1))
    assert _run(engine, [A, B]) == ["", ""]
    assert (A.metric, B.metric) == (0.0, 0.91)
    assert engine.submitted == []


def test_a_running_trial_with_the_parameters_of_one_that_is_done_is_waited_for_as_the_other():
    engine = Engine(job(1, A.key, metric=0.91, ran=2), job(2, B.key, "RUNNING"))
    engine.nodejs_binding.get_status = lambda: engine.jobs.__setitem__(1, job(2, B.key, metric=0.8, ran=1))
    assert _run(engine, [A, B]) == ["", ""]
    assert (A.metric, B.metric) == (0.8, 0.91)
    assert engine.submitted == []


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "USER_CANCELED"])
def test_a_trial_that_ended_without_a_metric_is_run_again(status):
    engine = Engine(job(1, A.key, status))
    assert _run(engine, [A]) == [""]
    assert engine.submitted == ["train"]
    assert A.metric == 0.5


def test_what_has_succeeded_is_not_run_again():
    engine = Engine()
    assert [each.metric for each in run_stages(trial(), engine)] == [0.5]
    assert [each.metric for each in run_stages(trial(), engine)] == [0.5]
    assert engine.submitted == ["search", "train"]


def test_a_search_that_fails_is_told_with_the_folder_of_its_log():
    with pytest.raises(RuntimeError, match=r"the search has failed; .*experiments.ID.environments"):
        run_stages(trial(), Engine(failing=("search",)))


@pytest.mark.parametrize(
    "engine, reason",
    [
        (Engine(failing=("train",)), "has failed"),
        (Engine(job(0, trial().key, "FAILED"), room=2), "was not started: max_trial_number is used up"),
    ],
    ids=["failed", "not started"],
)
def test_a_training_without_a_metric_is_told_with_its_reason(engine, reason, caplog):
    (training,) = run_stages(trial(), engine)
    assert training.metric is None
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"the training of {{'only': 0}} {reason}"]


@pytest.mark.parametrize(
    "changed",
    [
        {"cost_weight": 1.0}, {"seed": 1}, {"evaluator": regression(max_epochs=3)},
        {"evaluator": Regression(train_dataloaders=loader(16), val_dataloaders=loader(seed=1), **QUIET, max_epochs=2)},
        {"evaluator": regression(callbacks=[pl.callbacks.EarlyStopping("val_mse", patience=5)])},
    ],
    ids=["settings", "seed", "Trainer", "data", "callbacks"],
)  # fmt: skip
def test_a_search_that_is_to_run_otherwise_is_another_and_the_log_says_so(changed, caplog):
    engine = Engine(job(0, trial().key, metric={"networks": NETWORKS}))
    run_stages(trial(**changed), engine)
    assert engine.submitted == ["search", "train"]
    assert "one begins anew" in caplog.text


def test_without_a_seed_a_search_is_known_again_in_a_process_with_another_seed_of_torchs_own():
    assert trial(seed=2**40).key == trial(seed=2**41).key != trial(seed=1).key


_SCRIPT = """
import pytorch_lightning as pl, torch
from test_trials import GumbelSearch, OneCandidate, StageTrial, regression
class Own(pl.Callback):
    def __init__(self):
        self.words, self.weights = {"one", "two", "three"}, torch.ones(2)
        self.layer, self.itself = torch.nn.Linear(2, 2), self
class Strategy(GumbelSearch):
    pass
settings = {"cost": lambda distribution: 0.0, "temperature": (1.0, 0.3)}
key = StageTrial(OneCandidate(), regression(callbacks=[Own()]), 0, strategy=(Strategy, settings)).key
"""


@pytest.mark.slow
def test_a_key_is_the_same_in_every_process_with_classes_of_the_script_too():
    here = {"__name__": "__main__"}
    exec(_SCRIPT, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{_SCRIPT}print(key)"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert there.stdout.strip() == here["key"]


def _ignore(model):
    pass


@pytest.mark.parametrize(
    "evaluator, max_trial_number, message",
    [
        (FunctionalEvaluator(_ignore), 2, "evaluator: .* is no Lightning evaluator"),
        (regression(), 1, "max_trial_number: 1 leaves no trial for a training"),
    ],
    ids=["evaluator", "max_trial_number"],
)
def test_a_mistake_is_told_before_there_is_a_trial(evaluator, max_trial_number, message):
    engine = Engine()
    engine.nodejs_binding.config.max_trial_number = max_trial_number
    with pytest.raises(UsageError, match=message):
        GumbelSearch().initialize(SimplifiedModelSpace.from_model(OneCandidate(), evaluator), engine)


def test_the_evaluator_is_left_as_it_is_by_the_check_before_the_trial():
    evaluator = regression()
    module, before = evaluator.module, dict(vars(evaluator.module))
    GumbelSearch().initialize(SimplifiedModelSpace.from_model(OneCandidate(), evaluator), Engine())
    assert evaluator.module is module and dict(vars(module)) == before


class Terminates(pl.Callback):
    def on_train_batch_end(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("sample", [None, {"only": 0}], ids=["search", "training"])
@pytest.mark.filterwarnings("ignore")
def test_a_trial_that_is_terminated_does_not_end_with_the_code_of_a_success(sample):
    evaluator = regression(callbacks=[Terminates()])
    with pytest.raises(SystemExit) as end:
        trial(sample, evaluator, preset="gradual").execute()
    assert end.value.code == 143

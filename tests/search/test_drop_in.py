"""A script that used NNI's ``GumbelDARTS`` changes one import: mutation, export, resuming, penalty, logs."""

import functools
import math
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch.nasnet import NDSStageDifferentiable
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.profiler.pytorch.flops import FlopsProfiler
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import DARTS
from nni.tools.nnictl.config_utils import Experiments
from small_searches import Records, regression
from torch import nn

from nni_gumbel import GumbelSearch, UsageError


class Space(ModelSpace):
    """12 networks: ``inner`` is only part of those that take ``nested``."""

    def __init__(self):
        super().__init__()
        nested = LayerChoice({"tanh": nn.Tanh(), "none": nn.Identity()}, label="inner")
        self.layer = LayerChoice(
            {"wide": nn.Linear(4, 4), "nested": nested, "erase": nn.Linear(4, 4)}, label="layer"
        )
        self.inputs = InputChoice(2, n_chosen=None, reduction="sum", label="inputs")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inputs([x, self.layer(x)]))


def evaluator(epochs=2, **trainer):
    return regression(learning_rate=0.05, max_epochs=epochs, **trainer)


def initialised(strategy, space=None, evaluate=None):
    """What NNI's experiment does before the search."""
    raw = RawFormatModelSpace(space or Space(), evaluate or evaluator())
    strategy.initialize(raw, SequentialExecutionEngine())
    return strategy


def searched(space=None, evaluate=None, **arguments):
    """A strategy after its search."""
    pl.seed_everything(0, verbose=False)
    strategy = initialised(GumbelSearch(**arguments), space, evaluate)
    strategy.run()
    return strategy


# -- mutation and its hooks ----------------------------------------------------------------------


def test_the_space_becomes_a_supernet_in_place():
    space, strategy = Space(), GumbelSearch()
    labels = list(space.simplify())
    assert strategy.mutate_model(space) is space
    assert is_supernet(space) and list(space.simplify()) == labels == list(strategy.distribution.logits)


def test_what_is_no_space_and_what_is_no_lightning_evaluator_is_refused_in_one_line():
    with pytest.raises(UsageError, match="space: Linear is no ModelSpace"):
        GumbelSearch().mutate_model(nn.Linear(1, 1))
    with pytest.raises(UsageError, match="evaluator: FunctionalEvaluator is no Lightning evaluator"):
        initialised(GumbelSearch(), evaluate=FunctionalEvaluator(print))


class Tripled(nn.Module):
    def forward(self, x):
        return 3 * x


class MixedTripled(BaseSuperNetModule):
    """Someone's own supermodule: 3 x, and of that as much as the first candidate of ``layer`` weighs."""

    def __init__(self, joint_sample):
        super().__init__()
        self._joint_sample = joint_sample

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        return cls(mutate_kwargs["joint_sample"]) if type(module) is Tripled else None

    def forward(self, x):
        return 3 * self._joint_sample.weights("layer")[0] * x


class WithTripled(Space):
    def __init__(self):
        super().__init__()
        self.tripled = Tripled()

    def forward(self, x):
        return self.tripled(super().forward(x))


def test_a_hook_of_ones_own_comes_first_and_reads_the_joint_sample():
    space = WithTripled()
    GumbelSearch(mutation_hooks=[MixedTripled.mutate]).mutate_model(space)
    assert isinstance(space.tripled, MixedTripled)
    x = torch.randn(2, 4)
    assert torch.allclose(space(x), Space.forward(space, x))  # 3 times a third


def test_a_hook_that_wants_the_logits_of_nnis_darts_is_told_what_there_is():
    def hook(module, name, memo, mutate_kwargs):
        return memo["layer"]

    with pytest.raises(UsageError, match="mutation_hooks: a hook asks for 'layer' at 'layer'.*joint_sample"):
        GumbelSearch(mutation_hooks=[hook]).mutate_model(Space())


class WithHooksOfNni(Space):
    """Like the spaces of NNI's hub."""

    @classmethod
    def extra_oneshot_hooks(cls, strategy):
        assert isinstance(strategy, DARTS)
        return [NDSStageDifferentiable.mutate, DifferentiableMixedLayer.mutate]


@pytest.mark.parametrize("space", [Space, WithHooksOfNni])
def test_hooks_of_nni_itself_which_only_know_nnis_darts_do_no_harm(space):
    supernet = GumbelSearch(mutation_hooks=[DifferentiableMixedLayer.mutate]).mutate_model(space())
    assert not any(isinstance(module, DifferentiableMixedLayer) for module in supernet.modules())


# -- export ---------------------------------------------------------------------------------------


def test_models_are_listed_by_their_probability_each_network_once():
    strategy = initialised(GumbelSearch())
    with torch.no_grad():
        for logits in strategy.distribution.logits.values():
            logits.normal_()
    samples = [model.sample for model in strategy.list_models(limit=None)]
    # 3 of layer, one of which has 2 inside; times 3 subsets that are not empty.
    assert len(samples) == len({str(sample) for sample in samples}) == 4 * 3
    assert all(("inner" in sample) == (sample["layer"] == "nested") for sample in samples)
    probabilities = [math.exp(probability_of(sample, strategy.distribution)) for sample in samples]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert [model.sample for model in strategy.list_models(limit=2)] == samples[:2]
    assert [model.sample for model in strategy.list_models()] == samples[:1]


def probability_of(sample, distribution):
    return sum(
        float(law.log_prob(distribution.logits[label], distribution.outcome(label, sample[label])))
        for label, law in distribution.laws.items()
        if label in sample
    )


def test_a_limit_below_one_is_refused():
    with pytest.raises(UsageError, match="limit: 0 is no number of networks"):
        list(initialised(GumbelSearch()).list_models(limit=0))


def test_exported_networks_have_the_weights_of_the_supernet_and_share_none():
    strategy = searched()
    networks = [model.executable_model() for model in strategy.list_models(limit=None)]
    trained = {name: p for name, p in strategy.supernet.named_parameters()}
    seen = {p.data_ptr() for p in trained.values()}
    for sample, network in zip((m.sample for m in strategy.list_models(limit=None)), networks):
        assert not is_supernet(network)
        assert torch.equal(network.head.weight, trained["head.weight"])
        if sample["layer"] == "wide":
            assert torch.equal(network.layer.weight, trained["layer.wide.weight"])
        pointers = {p.data_ptr() for p in network.parameters()}
        assert not pointers & seen
        seen |= pointers


def test_weights_survive_a_freeze_after_the_search():
    strategy = searched()
    before = {name: p.clone() for name, p in strategy.supernet.named_parameters()}
    frozen = strategy.supernet.freeze({"layer": "erase", "inputs": [1]})
    assert torch.equal(frozen.layer.weight, before["layer.erase.weight"])
    assert all(torch.equal(p, before[name]) for name, p in strategy.supernet.named_parameters())


def test_nothing_is_exported_before_there_is_a_search():
    for ask in (lambda s: s.supernet, lambda s: list(s.list_models()), lambda s: s.distribution):
        with pytest.raises(RuntimeError):
            ask(GumbelSearch())


# -- the experiment -------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Makes experiments that leave nothing in the home directory."""
    manifest = functools.partial(Experiments, str(tmp_path))
    for module in ("nni.nas.experiment.experiment", "nni.experiment.experiment"):
        monkeypatch.setattr(f"{module}.Experiments", manifest)
    started = []

    def make(strategy, evaluate, id=None):
        pl.seed_everything(0, verbose=False)
        made = NasExperiment(Space(), evaluate, strategy, id=id)
        made.config.experiment_working_directory = str(tmp_path)
        started.append(made)
        return made

    yield make
    for made in started:
        made.stop()


@pytest.mark.filterwarnings("ignore")
def test_an_experiment_exports_as_many_networks_as_it_is_asked_for(experiment):
    made = experiment(GumbelSearch(), evaluator())
    assert made.run(port=8099) is not False
    samples = made.export_top_models(top_k=3, formatter="dict")
    assert len(samples) == 3 and len({str(sample) for sample in samples}) == 3
    assert [type(n).__name__ for n in made.export_top_models(top_k=3, formatter="instance")] == ["Space"] * 3


class StopAfter(pl.Callback):
    """A person's interrupt in the middle of a search."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_experiment_that_was_interrupted_resumes_and_ends_like_one_that_was_not(experiment, tmp_path):
    def checkpointing(folder, *callbacks):
        saving = pl.callbacks.ModelCheckpoint(tmp_path / folder, save_top_k=-1)
        return evaluator(4, enable_checkpointing=True, callbacks=[saving, *callbacks])

    whole = experiment(GumbelSearch(), checkpointing("whole"))
    whole.run(port=8099)
    stopped = experiment(GumbelSearch(), checkpointing("stopped", StopAfter(2)))
    with pytest.raises((KeyboardInterrupt, SystemExit)):  # which of the two depends on Lightning's version
        stopped.run(port=8099)
    stopped.stop()
    resumed = experiment(GumbelSearch(), checkpointing("stopped"), id=stopped.id)
    resumed.resume(port=8099)
    assert (
        resumed.strategy.oneshot_module.trainer.global_step
        == whole.strategy.oneshot_module.trainer.global_step
    )
    assert_same_logits(whole.strategy, resumed.strategy)
    assert resumed.export_top_models(formatter="dict") == whole.export_top_models(formatter="dict")


def assert_same_logits(one, other):
    for label, logits in one.distribution.logits.items():
        assert torch.equal(logits, other.distribution.logits[label])


# -- the state of a strategy ------------------------------------------------------------------------


def with_checkpoints(folder, epochs=2, **options):
    saving = pl.callbacks.ModelCheckpoint(folder, **options)
    return evaluator(epochs, enable_checkpointing=True, callbacks=[saving])


def test_the_state_after_a_search_is_its_last_checkpoint(tmp_path):
    strategy = searched(evaluate=with_checkpoints(tmp_path, save_last=True))
    assert strategy.state_dict() == {"ckpt_path": str(tmp_path / "last.ckpt")}
    resumed = initialised(GumbelSearch(), evaluate=with_checkpoints(tmp_path))
    resumed.load_state_dict(strategy.state_dict())
    resumed.run()
    assert_same_logits(strategy, resumed)


@pytest.mark.slow
def test_a_search_that_was_killed_resumes_from_the_checkpoint_that_it_left(tmp_path):
    whole = searched(evaluate=evaluator(3))
    (tmp_path / "somebody-elses.ckpt").write_bytes(b"")
    os.utime(tmp_path / "somebody-elses.ckpt", (2**31, 2**31))  # and newer than all
    killed = with_checkpoints(tmp_path, 3, save_top_k=-1)
    killed.trainer.callbacks.append(StopAfter(2))
    pl.seed_everything(0, verbose=False)
    strategy = initialised(GumbelSearch(), evaluate=killed)
    before = strategy.state_dict()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        strategy.run()
    resumed = initialised(GumbelSearch(), evaluate=with_checkpoints(tmp_path, 3))
    resumed.load_state_dict(before)
    assert Path(resumed.state_dict()["ckpt_path"]).name.startswith("epoch=1")
    # It may be killed again before it has written a checkpoint of its own.
    again = initialised(GumbelSearch(), evaluate=with_checkpoints(tmp_path, 3))
    again.load_state_dict(resumed.state_dict())
    again.run()
    assert_same_logits(whole, again)


def test_a_state_that_leads_to_no_checkpoint_says_that_the_search_starts_anew(caplog):
    strategy = initialised(GumbelSearch())
    assert strategy.state_dict() == {}
    with caplog.at_level("WARNING", logger="nni_gumbel"):
        strategy.load_state_dict({})
    assert "starts anew" in caplog.text
    with pytest.raises(RuntimeError, match="before initialize"):
        GumbelSearch().load_state_dict({})


# -- what is logged, and the penalty ------------------------------------------------------------------


def test_probabilities_are_logged_every_n_steps_without_noise():
    records = Records()
    strategy = searched(evaluate=evaluator(logger=records), preset="gradual", log_prob_every_n_step=7)  # of 8
    uniform = {"layer/wide": 1 / 3, "layer/nested": 1 / 3, "layer/erase": 1 / 3, "inner/tanh": 1 / 2}
    first, last = records.seen
    # Each at most one step of the logits away, 0.05; noise would be another order of magnitude.
    for name, probability in uniform.items():
        assert first[f"prob/{name}"] == pytest.approx(probability, abs=0.03)
    for label, probabilities in strategy.oneshot_module.export_probs().items():
        for value, probability in probabilities.items():
            assert last[f"prob/{label}/{value}"] == pytest.approx(probability, abs=0.03)


class Widths(ModelSpace):
    """Two layers, of which one costs much and is no better."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice({"cheap": nn.Linear(4, 4), "dear": Dear()}, label="layer")
        self.head = MutableLinear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x))


class Dear(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.second(self.first(x))


def dear_after(**arguments):
    # The structure learns from the penalty alone: a loss of 0 has no gradient.
    strategy = searched(
        space=Widths(), evaluate=evaluator(4), entropy_weight_start=0.0, entropy_weight_end=0.0, **arguments
    )
    return float(strategy.distribution.probs()["layer"][1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_penalty_reaches_the_logits(kind):
    profiler = FlopsProfiler(Widths(), torch.zeros(1, 4)) if kind == "flops" else "params"
    free = dear_after(cost_weight=0.0)
    punished = dear_after(penalty={"profiler": profiler, "baseline": 100.0, "scale": 10.0})
    assert punished < min(free, 0.5) - 0.1


def test_the_numbers_of_the_penalty_are_logged_as_nni_does():
    strategy = searched(
        space=Widths(), penalty={"profiler": "params", "baseline": 10.0, "nonlinear": "positive"}
    )
    logged = strategy.oneshot_module.trainer.callback_metrics
    names = {"loss_original", "penalty", "normalized_penalty", "loss_final"}
    assert {f"penalty/{name}" for name in names} <= set(logged)
    assert float(logged["penalty/normalized_penalty"]) == pytest.approx(
        float(logged["penalty/penalty"]) / 10 - 1, rel=1e-4
    )

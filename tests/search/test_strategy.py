"""The search as people use it: NNI's own experiment, and NNI's own evaluator with its metrics and hooks."""

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from nni.nas.strategy import DARTS
from small_searches import Minimal, regression
from small_searches import evaluator as small_evaluator
from small_searches import search as small_search
from torch import nn

from nni_gumbel import GumbelSearch, UsageError


class Space(ModelSpace):
    """Only ``good`` can pass the input on: the others erase or scramble it."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice({"erase": Erase(), "good": nn.Identity(), "square": Square()}, label="first")
        self.second = LayerChoice([nn.Linear(4, 4), nn.Identity()], label="second")
        self.inputs = InputChoice(2, n_chosen=1, label="inputs")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.inputs([x, self.second(x)]))


class Erase(nn.Module):
    def forward(self, x):
        return x * 0


class Square(nn.Module):
    def forward(self, x):
        return x**2


def evaluator(**trainer):
    return regression(learning_rate=0.05, **trainer)


def search(evaluate=None, **settings):
    return small_search(evaluate or evaluator(), Space, **settings)


class Temperatures(pl.Callback):
    """Every step's temperature."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(module.temperature)


@pytest.mark.filterwarnings("ignore")
def test_it_runs_as_a_strategy_of_nnis_experiment_and_finds_the_only_good_candidate(tmp_path):
    pl.seed_everything(0, verbose=False)
    experiment = NasExperiment(Space(), evaluator(max_epochs=8), GumbelSearch())
    experiment.config.experiment_working_directory = str(tmp_path)
    assert experiment.run(port=8099) is not False
    sample = experiment.export_top_models(formatter="dict")[0]
    assert sample["first"] == "good"
    assert isinstance(experiment.export_top_models(formatter="instance")[0], nn.Module)
    experiment.stop()


def test_it_is_a_darts_strategy_for_the_spaces_of_nnis_hub_that_ask():
    assert isinstance(GumbelSearch(), DARTS)


def test_the_temperature_falls_step_by_step_exactly_to_its_end():
    temperatures = Temperatures()
    search(evaluator(callbacks=[temperatures]), temperature_start=4.0, temperature_end=0.5)
    assert len(temperatures.seen) == 8
    assert temperatures.seen[0] == 4.0 and temperatures.seen[-1] == 0.5
    assert temperatures.seen == sorted(temperatures.seen, reverse=True)


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": 50, "max_steps": 8}])
def test_a_warm_up_as_long_as_the_search_is_refused(limit):
    with pytest.raises(UsageError, match="warmup_epochs: 2 leaves no epoch of 2 "):
        search(evaluator(**limit), warmup_epochs=2)


def test_a_higher_cost_weight_leaves_fewer_expected_parameters():
    expected = [search(cost_weight=weight).structure_summary()["expected_params"] for weight in (0.0, 10.0)]
    assert expected[1] < expected[0]


def test_the_structure_step_leaves_the_weights_alone_and_the_weight_step_the_logits():
    module = search()
    weights = [p for p in module.training_module.parameters()]
    logits = list(module.distribution.logits.values())
    assert not set(map(id, weights)) & set(map(id, logits))
    optimizers = [*module.trainer.optimizers, module._update.optimizer]
    optimised = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    assert optimised == [set(map(id, weights)), set(map(id, logits))]


class Validated(pl.Callback):
    """How candidates are weighted in a validation, and how probable they are."""

    def __init__(self):
        self.pairs = []

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        distribution = module.distribution
        self.pairs.append(
            (distribution.joint_sample.weights("first"), distribution.probs()["first"].detach())
        )


def test_validation_runs_on_the_noise_free_mixture():
    validated = Validated()
    search(evaluator(callbacks=[validated]), estimator="straight-through-gumbel")
    assert len(validated.pairs) == 8
    assert all(torch.equal(weights, probabilities) for weights, probabilities in validated.pairs)


def test_what_the_evaluator_logs_is_of_its_weight_steps():
    told = []

    class Telling(Minimal):
        def training_step(self, batch, batch_idx):
            self.log("inputs", batch[0].sum(), on_epoch=True)
            told.append(float(batch[0].sum()))
            return super().training_step(batch, batch_idx)

    given = small_evaluator(Telling(), max_epochs=1, limit_train_batches=1)
    assert float(search(given).trainer.callback_metrics["inputs_epoch"]) == told[-1] != told[-2]


def test_a_scheduler_that_follows_the_loss_is_refused():
    plateau = evaluator()
    plain = plateau.module.configure_optimizers

    def configure():
        optimizer = plain()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}

    plateau.module.configure_optimizers = configure
    with pytest.raises(UsageError, match="ReduceLROnPlateau cannot follow a search"):
        search(plateau)


def test_the_evaluators_own_validation_hooks_run():
    calls, own = [], evaluator()
    own.module.on_validation_epoch_end = lambda: calls.append("end")
    search(own)
    assert calls == ["end", "end"]


@pytest.mark.gpu
def test_a_search_runs_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    module = search(evaluator(accelerator="gpu"))
    assert module.export()["first"] in {"erase", "good", "square"}

"""The search as people use it: NNI's own experiment, any Lightning evaluator, reproducible to the bit."""

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader, Regression
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from nni.nas.strategy import DARTS
from torch import nn
from torch.utils.data import TensorDataset

from nni_gumbel import GumbelSearch, UsageError

QUIET = dict(
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    accelerator="cpu",
)


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


def loaders(seed=0, count=256):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    y = x.sum(1, keepdim=True)
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def evaluator(epochs=4, **trainer):
    return Regression(
        learning_rate=0.05,
        train_dataloaders=loaders(0),
        val_dataloaders=loaders(1),
        max_epochs=epochs,
        **{**QUIET, **trainer},
    )


def search(epochs=4, seed=0, evaluate=None, trainer=None, **settings):
    """Search and return the mutated evaluator's module."""
    pl.seed_everything(seed, verbose=False)
    strategy = GumbelSearch(**settings)
    supernet = strategy.mutate_model(Space())
    mutated = strategy.mutate_evaluator(evaluate or evaluator(epochs, **(trainer or {})))
    mutated.evaluate(supernet)
    return mutated.module


class Temperatures(pl.Callback):
    """Every step's temperature."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(module.temperature)


@pytest.mark.filterwarnings("ignore")
def test_it_runs_as_a_strategy_of_nnis_experiment_and_finds_the_only_good_candidate(tmp_path):
    pl.seed_everything(0, verbose=False)
    experiment = NasExperiment(Space(), evaluator(), GumbelSearch(warmup_epochs=0))
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
    search(epochs=2, trainer={"callbacks": [temperatures]}, temperature_start=4.0, temperature_end=0.5)
    assert len(temperatures.seen) == 16
    assert temperatures.seen[0] == 4.0 and temperatures.seen[-1] == 0.5
    assert temperatures.seen == sorted(temperatures.seen, reverse=True)


def test_the_same_seed_gives_the_same_logits_to_the_bit():
    first, second = (search(epochs=2).distribution.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_structure_rests_during_the_warm_up():
    module = search(
        epochs=2, warmup_epochs=1, trainer={"limit_train_batches": 4, "callbacks": [UniformAtFirst()]}
    )
    assert any(logits.abs().max() > 0 for logits in module.distribution.logits.values())


class UniformAtFirst(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            assert all(
                torch.equal(logits, torch.zeros_like(logits))
                for logits in module.distribution.logits.values()
            )


def test_a_warm_up_as_long_as_the_search_is_refused():
    with pytest.raises(UsageError, match="warmup_epochs: 2 leaves no epoch"):
        search(epochs=2, warmup_epochs=2)


def test_a_higher_cost_weight_leaves_fewer_expected_parameters():
    expected = [
        search(epochs=3, warmup_epochs=0, cost_weight=weight).structure_summary()["expected_params"]
        for weight in (0.0, 10.0)
    ]
    assert expected[1] < expected[0]


def test_the_structure_step_leaves_the_weights_alone_and_the_weight_step_the_logits():
    module = search(epochs=1, warmup_epochs=0)
    weights = [p for p in module.training_module.parameters()]
    logits = list(module.distribution.logits.values())
    assert not set(map(id, weights)) & set(map(id, logits))
    optimised = [
        {id(p) for group in o.param_groups for p in group["params"]} for o in module.trainer.optimizers
    ]
    assert optimised == [set(map(id, weights)), set(map(id, logits))]


def test_validation_runs_on_the_noise_free_mixture():
    module = search(epochs=1)
    x = torch.randn(3, 4)
    outputs = []
    for _ in range(2):
        module.distribution.use_probabilities()
        outputs.append(module(x))
    assert torch.equal(*outputs)
    assert "val_mse" in module.trainer.callback_metrics


def test_the_metrics_of_the_two_steps_do_not_mix():
    logged = search(epochs=1, warmup_epochs=0).trainer.callback_metrics
    assert {"train_mse", "structure/train_mse"} <= set(logged)


def test_learning_rate_schedulers_of_the_evaluator_advance():
    decaying = evaluator(epochs=3)
    plain = decaying.module.configure_optimizers

    def configure():
        optimizer = plain()
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    decaying.module.configure_optimizers = configure
    module = search(evaluate=decaying)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 8)


def test_a_scheduler_that_follows_the_loss_is_refused():
    plateau = evaluator(epochs=1)
    plain = plateau.module.configure_optimizers

    def configure():
        optimizer = plain()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}

    plateau.module.configure_optimizers = configure
    with pytest.raises(UsageError, match="ReduceLROnPlateau cannot follow a search"):
        search(evaluate=plateau)


def test_the_evaluators_own_validation_hooks_run():
    calls, own = [], evaluator(epochs=2)
    own.module.on_validation_epoch_end = lambda: calls.append("end")
    search(evaluate=own)
    assert calls == ["end", "end"]


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_a_limit_of_steps_ends_the_fall_of_the_temperature_too(warmup_epochs):
    temperatures = Temperatures()
    search(
        epochs=50,
        trainer={"callbacks": [temperatures], "max_steps": 40},
        warmup_epochs=warmup_epochs,
        temperature_end=0.5,
    )
    assert temperatures.seen[-1] == 0.5 and temperatures.seen.count(0.5) == 1


def test_a_resumed_search_goes_on_at_its_temperature(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1)
    whole, rest = Temperatures(), Temperatures()
    search(trainer={"enable_checkpointing": True, "callbacks": [whole, saving]})
    resumed = evaluator(callbacks=[rest])
    resumed.fit_kwargs["ckpt_path"] = str(next(tmp_path.glob("epoch=1*")))
    search(evaluate=resumed)
    assert rest.seen == whole.seen[-16:]


@pytest.mark.gpu
def test_a_search_runs_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    module = search(epochs=2, trainer={"accelerator": "gpu"})
    assert module.export()["first"] in {"erase", "good", "square"}


def test_a_loss_that_is_not_finite_is_told_in_one_line():
    x = torch.full((64, 4), float("nan"))
    bad = DataLoader(TensorDataset(x, torch.zeros(64, 1)), batch_size=32)
    broken = Regression(train_dataloaders=bad, val_dataloaders=bad, max_epochs=1, **QUIET)
    with pytest.raises(UsageError, match="loss: nan in the structure step 0 is not finite"):
        search(evaluate=broken)

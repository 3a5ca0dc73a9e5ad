"""Small searches for the tests: seconds of a real Trainer on a space that computes next to nothing."""

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Regression, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.utils.data import TensorDataset

from nni_gumbel.search.strategy import GumbelSearch

QUIET = dict(
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0, accelerator="cpu",
)  # fmt: skip


class Nested(ModelSpace):
    """A choice inside a candidate, a BatchNorm, and dropout: all that has a state or draws."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.Linear(4, 4), nn.Dropout(0.5)], label="inner")
        self.outer = LayerChoice([nn.Sequential(inner, nn.Tanh()), nn.Identity()], label="outer")
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.norm(self.outer(x)))


class OneCandidate(ModelSpace):
    """Nothing to choose: a search of it is a training."""

    def __init__(self):
        super().__init__()
        self.only = LayerChoice([nn.Linear(4, 8)], label="only")
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.only(x)))


def loader(count=32, seed=0, batch_size=8, shuffle=True, **kwargs):
    """Regression data: the sum of four numbers."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size, shuffle=shuffle, **kwargs)


class Minimal(LightningModule):
    """An evaluator's module of one's own, as short as it can be."""

    def __init__(self, optimizer=None):
        super().__init__()
        self._optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.model(x), y))

    def configure_optimizers(self):
        return self._optimizer(self.parameters())


def evaluator(module=None, train="default", val="default", **trainer):
    """An evaluator with data of four batches for each part."""
    return Lightning(
        module or Minimal(),
        Trainer(**{**QUIET, "max_epochs": 2, **trainer}),
        train_dataloaders=loader() if train == "default" else train,
        val_dataloaders=loader(seed=1) if val == "default" else val,
    )


def search(evaluate=None, space=Nested, seed=0, **settings):
    """Search and return the search's module.

    ``space`` is a space, or what makes one: then its weights come from the seed. The settings are those of
    ``GumbelSearch``; unless they say otherwise the logits follow their
    gradient at every step (``preset: gradual``), which is what most tests of the steps look at.
    """
    pl.seed_everything(seed, verbose=False)
    strategy = GumbelSearch(**{"preset": "gradual", **settings})
    supernet = strategy.mutate_model(space if isinstance(space, nn.Module) else space())
    mutated = strategy.mutate_evaluator(evaluate or evaluator())
    mutated.evaluate(supernet)
    return mutated.module


def numbers(module):
    """Every weight, buffer and logit of a search."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def regression(**kwargs):
    """NNI's own evaluator, whose metric is a torchmetrics object."""
    return Regression(
        train_dataloaders=loader(), val_dataloaders=loader(seed=1), **{**QUIET, "max_epochs": 2, **kwargs}
    )


class Records(pl.loggers.Logger):
    """What is logged under ``prob/``, record by record."""

    name, version = "records", 0

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("prob/") for name in metrics):
            self.seen.append(metrics)

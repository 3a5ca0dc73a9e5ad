"""A task of one's own: regression. The space, the data and the evaluator that regression.yml names."""

from __future__ import annotations

import torch
from nni.nas.evaluator.pytorch import Lightning, Regression
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class RegressionSpace(ModelSpace):
    """A multilayer perceptron: the activation of each layer, and whether a layer is skipped."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.first_activation = LayerChoice(activations(), label="first_activation")
        self.second = nn.Linear(width, width)
        self.second_activation = LayerChoice(activations(), label="second_activation")
        self.skip = InputChoice(2, n_chosen=1, label="skip")
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first_activation(self.first(x))
        second = self.second_activation(self.second(first))
        return self.head(self.skip([second, first + second]))


def activations() -> dict[str, nn.Module]:
    return {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "identity": nn.Identity()}


class Waves(LightningDataModule):
    """``y = sin(3 a) cos(2 b)`` with a little noise: 600 points to train, 200 to validate, 200 to test."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1000, 2, generator=generator) * 2 - 1
        y = torch.sin(3 * x[:, :1]) * torch.cos(2 * x[:, 1:])
        y = y + 0.05 * torch.randn(y.shape, generator=generator)
        self.parts = [
            TensorDataset(x[part], y[part]) for part in (slice(600), slice(600, 800), slice(800, None))
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=self.batch_size)


def evaluator(epochs: int, batch_size: int, learning_rate: float, weight_decay: float) -> Lightning:
    """NNI's own regression evaluator; it logs ``val_mse``, so ``metric: mse`` and ``optimize_mode: minimize``."""
    return Regression(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        datamodule=Waves(batch_size),
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )

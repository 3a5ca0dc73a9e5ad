"""What a single trial needs: a trial code directory with a space and data, and somebody who takes its report."""

import nni
import numpy as np
import pytest

SPACE = """
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning import LightningDataModule

class Widths(ModelSpace):
    def __init__(self):
        super().__init__()
        layers = [torch.nn.Sequential(torch.nn.Linear(64, n), torch.nn.Linear(n, 2)) for n in (1, 5, 20)]
        self.width = LayerChoice(layers, label="width")
        self.activation = LayerChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, label="activation")

    def forward(self, x):
        return self.activation(self.width(x.flatten(1)))

class Tied(ModelSpace):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(64, 64, bias=False)
        again = [torch.nn.Sequential(self.first, torch.nn.Tanh()), self.first]
        self.again = LayerChoice(again, label="again")
        self.head = torch.nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.again(self.first(x.flatten(1))))

def fewest(sample):
    return 1.0 + sample["width"]

class Table(ModelSpace):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(8, 3)
        relu = torch.nn.Sequential(torch.nn.Linear(7, 8), torch.nn.ReLU())
        self.layer = LayerChoice([torch.nn.Linear(7, 8), relu], label="layer")

    def forward(self, categories, numbers):
        return self.head(self.layer(torch.cat([self.embedding(categories), numbers], 1)))

class View(torch.nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)

class ViewInTraining(torch.nn.Module):
    def forward(self, x):
        return x.view(len(x), -1) if self.training else x.flatten(1)

class InPlace(torch.nn.Module):
    def forward(self, x):
        x = x * 1
        x.reshape(len(x), -1).mul_(2)
        return x.flatten(1)

class Images(ModelSpace):
    are_contiguous = set()

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Linear(192, 2)
        ways = {"flatten": torch.nn.Flatten(), "view": View(), "in_training": ViewInTraining(), "in_place": InPlace()}
        self.flat = LayerChoice(ways, label="flat")

    def forward(self, x):
        x = self.conv(x)
        if isinstance(x, torch.Tensor) and x.requires_grad:
            Images.are_contiguous.add((type(self.flat).__name__, x.is_contiguous()))
        return self.head(self.flat(x))

class Rows(LightningDataModule):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def setup(self, stage):
        rows = [(torch.randint(0, 5, ()), torch.randn(4), torch.randint(0, 3, ())) for _ in range(32)]
        arrange = {
            "flat": lambda a, b, y: (a, b, y),
            "pairs": lambda a, b, y: ((a, b), y),
            "named": lambda a, b, y: ({"numbers": b, "categories": a}, y),
        }[self.kind]
        self.rows = [arrange(*row) for row in rows]

    def train_dataloader(self):
        return DataLoader(self.rows, 8)

    val_dataloader = test_dataloader = train_dataloader

def flat(): return Rows("flat")
def pairs(): return Rows("pairs")
def named(): return Rows("named")

class OwnSteps(LightningModule):
    def training_step(self, batch, batch_idx):
        *inputs, labels = batch
        return torch.nn.functional.cross_entropy(self.model(*inputs), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", -self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

def own(data, epochs):
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    return Lightning(OwnSteps(), trainer, datamodule=data)

def by_default(data, epochs):
    return Lightning(OwnSteps(), Trainer(max_epochs=epochs, accelerator="cpu"), datamodule=data)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The trial code directory, in which a trial works."""
    (tmp_path / "spaces_of_trials.py").write_text(SPACE)
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8)).astype(np.uint8)
    np.savez(
        tmp_path / "tiny.npz",
        x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:],
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NNI_EXP_ID", "EXP")
    return tmp_path


@pytest.fixture
def reported(monkeypatch):
    """The final metric that a trial reports."""
    kept = {}
    monkeypatch.setattr(nni, "report_final_result", kept.update)
    # A search in this process, by NNI's own engine, leaves its parameters behind; evaluators then report by themselves.
    monkeypatch.setattr("nni.trial._params", None)
    return kept

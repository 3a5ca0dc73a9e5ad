"""A small convolutional search space for 28 x 28 images, in plain NNI syntax.

A strided stem, four layers and a classifier. Every layer chooses its operation and its activation;
the last two layers also choose whether an earlier output is added to their input.
"""

from __future__ import annotations

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import Tensor, nn


def operations(channels: int) -> dict[str, nn.Module]:
    """Operations that keep the shape of their input."""

    def conv(kernel: int, dilation: int = 1) -> nn.Module:
        padding = dilation * (kernel - 1) // 2
        return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, bias=False)

    def separable(kernel: int) -> nn.Module:
        depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1, bias=False))

    return {
        "conv1x1": conv(1),
        "conv3x3": conv(3),
        "conv5x5": conv(5),
        "conv7x7": conv(7),
        "dilated3x3": conv(3, dilation=2),
        "separable3x3": separable(3),
        "separable5x5": separable(5),
        "max_pool": nn.MaxPool2d(3, stride=1, padding=1),
        "avg_pool": nn.AvgPool2d(3, stride=1, padding=1),
        "identity": nn.Identity(),
    }


def activations() -> dict[str, nn.Module]:
    return {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(0.1),
        "elu": nn.ELU(),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "mish": nn.Mish(),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "identity": nn.Identity(),
    }


class Layer(nn.Module):
    """Operation, normalisation, activation."""

    def __init__(self, channels: int, name: str) -> None:
        super().__init__()
        self.operation = LayerChoice(operations(channels), label=f"{name}_operation")
        self.norm = nn.BatchNorm2d(channels)
        self.activation = LayerChoice(activations(), label=f"{name}_activation")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.operation(x)))


class MnistSpace(ModelSpace):
    """10 operations and 9 activations in each of 4 layers, 6 ways to connect them: 3.9e8 networks."""

    def __init__(self, channels: int = 20, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.layer1 = Layer(channels, "layer1")
        self.layer2 = Layer(channels, "layer2")
        self.layer3 = Layer(channels, "layer3")
        self.layer4 = Layer(channels, "layer4")
        self.skip3 = InputChoice(2, n_chosen=1, label="layer3_input")
        self.skip4 = InputChoice(3, n_chosen=1, label="layer4_input")
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer1(self.stem(x))
        second = self.layer2(first)
        third = self.layer3(self.skip3([second, second + first]))
        fourth = self.layer4(self.skip4([third, third + second, third + first]))
        return self.classifier(fourth.mean(dim=(2, 3)))

"""A search space for very small image classifiers: width, depth, operation, normalisation and activation everywhere.

Stages of blocks; every stage but the first halves height and width. A stage chooses how many channels it has and how
many blocks, a block what it computes. The best small networks mix dense convolutions of few channels with depthwise
ones of large kernels, and spend nothing on the rest: what is best depends on the budget, so all of it is searched.
"""

from __future__ import annotations

from typing import Any

import nni
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLinear,
    Repeat,
)
from torch import Tensor, nn


def operations(width: Any) -> dict[str, nn.Module]:
    """Operations that keep the shape of their input; ``width`` is its channels, a number or a choice."""

    def conv(kernel: int, dilation: int = 1) -> nn.Module:
        return MutableConv2d(
            width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False
        )

    def depthwise(kernel: int, dilation: int = 1) -> nn.Module:
        padding = dilation * (kernel // 2)
        return MutableConv2d(
            width, width, kernel, padding=padding, dilation=dilation, groups=width, bias=False
        )

    return {
        "conv3x3": conv(3),
        "pointwise": conv(1),
        "separable3x3": nn.Sequential(depthwise(3), conv(1)),
        "separable7x7": nn.Sequential(depthwise(7), conv(1)),
        "dilated_separable3x3": nn.Sequential(depthwise(3, dilation=2), conv(1)),
        "depthwise3x3": depthwise(3),
        "max_pool": nn.MaxPool2d(3, stride=1, padding=1),
    }


def activations() -> dict[str, nn.Module]:
    return {
        "relu": nn.ReLU(), "hardswish": nn.Hardswish(), "silu": nn.SiLU(), "gelu": nn.GELU(), "mish": nn.Mish(),
        "tanh": nn.Tanh(), "identity": nn.Identity(),
    }  # fmt: skip


class Block(nn.Module):
    """Operation, normalisation, activation, attention to channels, and whether the input is added."""

    def __init__(self, width: Any, name: str, operation: str | None, activation: str | None) -> None:
        super().__init__()
        self.operation = _choice(operations(width), f"{name}_operation", operation)
        self.norm = MutableBatchNorm2d(width)
        self.activation = _choice(activations(), f"{name}_activation", activation)
        self.attention = LayerChoice(
            {"none": nn.Identity(), "squeeze_excite": SqueezeExcite(width)}, label=f"{name}_attention"
        )
        self.skip = InputChoice(2, n_chosen=1, label=f"{name}_skip")

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.activation(self.norm(self.operation(x))))
        return self.skip([y, y + x])


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say (arXiv 1709.01507), through four numbers."""

    def __init__(self, width: Any) -> None:
        super().__init__()
        self.down, self.up = MutableConv2d(width, 4, 1), MutableConv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * self.up(self.down(means).relu()).sigmoid()


class TinySpace(ModelSpace):
    """Three stages of one to three blocks.

    Args:
        in_channels: of the images.
        num_classes: of the classifier.
        width: most channels of a stage, which chooses between an eighth and all of them.
        blocks: most blocks in a stage.
        operation: that of every block, where operations are not searched.
        activation: that of every block, where activations are not searched.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        width: int = 32,
        blocks: int = 3,
        operation: str | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [width * eighths // 8 for eighths in (1, 2, 3, 4, 6, 8)]
        before: Any = in_channels
        for k in (1, 2, 3):
            name, channels = f"stage{k}", nni.choice(f"stage{k}_width", widths)
            layers += [
                MutableConv2d(before, channels, 3, stride=1 if k == 1 else 2, padding=1, bias=False),
                MutableBatchNorm2d(channels),
                _choice(activations(), f"{name}_activation", activation),
                Repeat(
                    lambda i, channels=channels, name=name: Block(
                        channels, f"{name}_block{i}", operation, activation
                    ),
                    (1, blocks),
                    label=f"{name}_depth",
                ),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.classifier = MutableLinear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.layers(images).mean(dim=(2, 3)))


def _choice(candidates: dict[str, nn.Module], label: str, fixed: str | None) -> nn.Module:
    return LayerChoice(candidates, label=label) if fixed is None else candidates[fixed]

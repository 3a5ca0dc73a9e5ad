"""The spaces of the speed benchmark, their batches, and the largest network of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

CHANNELS, LAYERS, CLASSES = 16, 4, 10
# In equal shares from 4 candidates on; with 2 the largest and the smallest, so that (a) is the same for all K.
KERNELS = (7, 1, 5, 3)
# Where only time tells candidates apart, the slowest on CPUs.
SLOWEST_ACTIVATION = "mish"


class ConvChain(ModelSpace):
    """Choices between dense convolutions, one behind the other."""

    def __init__(self, candidates: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(LAYERS):
            kernels = {f"{k}_conv{KERNELS[k % 4]}": KERNELS[k % 4] for k in range(candidates)}
            convolutions = {
                name: nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, bias=False)
                for name, kernel in kernels.items()
            }
            layers += [LayerChoice(convolutions, label=f"layer{place}"), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean(dim=(2, 3)))


class ActivationChain(ModelSpace):
    """Choices between the activations of the MNIST space alone, behind fixed 1x1 convolutions."""

    def __init__(self) -> None:
        from search_spaces.mnist import activations

        super().__init__()
        layers: list[nn.Module] = []
        for place in range(LAYERS):
            layers += [
                nn.Conv2d(CHANNELS, CHANNELS, 1),
                LayerChoice(activations(), label=f"layer{place}"),
            ]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean(dim=(2, 3)))


@dataclass(frozen=True)
class Task:
    """A space and what it is trained on.

    Attributes:
        space: makes an instance.
        shape: (channels, height, width) of an example.
        batch: examples in a batch.
        largest: from a label and its values, the value of the largest network, by multiply-adds, then by time.
    """

    space: Callable[[], ModelSpace]
    shape: tuple[int, int, int]
    batch: int
    largest: Callable[[str, Sequence[Any]], Any]

    def batches(self, number: int, seed: int, scale: float = 1) -> list[tuple[Tensor, Tensor]]:
        """Random examples and classes; the same seed gives the same ones."""
        random = torch.Generator().manual_seed(seed)
        size = max(2, round(self.batch * scale))
        return [
            (
                torch.randn(size, *self.shape, generator=random),
                torch.randint(CLASSES, (size,), generator=random),
            )
            for _ in range(number)
        ]

    def largest_network(self) -> dict[str, Any]:
        """The NNI sample of (a)."""
        return {label: self._largest(label, variable) for label, variable in self.space().simplify().items()}

    def _largest(self, label: str, variable: Any) -> Any:
        value = self.largest(label, list(variable.values))
        return [value] if hasattr(variable, "n_chosen") else value


def task_of(name: str) -> Task:
    """The task of a name: ``mnist``, ``nasbench201``, ``activations`` or ``chain`` with a number of candidates."""
    if name.startswith("chain"):
        candidates = int(name.removeprefix("chain"))
        largest = next(f"{k}_conv{KERNELS[k % 4]}" for k in range(candidates) if KERNELS[k % 4] == 7)
        return Task(lambda: ConvChain(candidates), (CHANNELS, 28, 28), 32, lambda label, values: largest)
    if name == "activations":
        return Task(ActivationChain, (CHANNELS, 28, 28), 32, lambda label, values: SLOWEST_ACTIVATION)
    if name == "mnist":
        from search_spaces.mnist import MnistSpace

        return Task(MnistSpace, (1, 28, 28), 64, _largest_of_mnist)
    from nni.nas.hub.pytorch import NasBench201

    return Task(
        lambda: NasBench201(stem_out_channels=16, num_modules_per_stack=1), (3, 32, 32), 16,
        lambda label, values: "conv_3x3",
    )  # fmt: skip


def _largest_of_mnist(label: str, values: Sequence[Any]) -> Any:
    if label.endswith("_input"):
        return values[-1]
    return "conv7x7" if label.endswith("_operation") else SLOWEST_ACTIVATION

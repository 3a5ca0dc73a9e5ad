"""A search in a training loop of one's own, without Lightning: some ten seconds on one core.

python examples/own_loop.py [--steps 400]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from nni_gumbel import relax
from nni_gumbel.data import build_data
from nni_gumbel.relaxation.temperature import progress_of, temperature_at


class Space(ModelSpace):
    """A multilayer perceptron on 14 x 14 pixels: a normalisation, two activations, and a shortcut."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(14 * 14, width)
        self.norm = LayerChoice({"layer": nn.LayerNorm(width), "none": nn.Identity()}, label="norm")
        self.first = LayerChoice(activations(), label="first_activation")
        self.hidden = nn.Linear(width, width)
        self.second = LayerChoice(activations(), label="second_activation")
        self.shortcut = InputChoice(2, n_chosen=1, label="shortcut")
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(self.norm(self.stem(avg_pool2d(images, 2).flatten(1))))
        second = self.second(self.hidden(first))
        return self.head(self.shortcut([second, first + second]))


def activations() -> dict[str, nn.Module]:
    return {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "identity": nn.Identity()}


def search(space: ModelSpace, training: Iterator, validation: Iterator, steps: int) -> dict[str, Any]:
    """The whole method: structure and weights take turns, each on data and with a sample of its own."""
    distribution = relax(space)
    structure = torch.optim.Adam(distribution.parameters(), lr=0.02, betas=(0.5, 0.999))
    weights = torch.optim.Adam(space.parameters(), lr=1e-2)
    for step in range(steps):
        temperature = temperature_at(progress_of(step, steps), 3.0, 0.1, "exponential")
        for optimizer, batches in ((structure, validation), (weights, training)):
            images, labels = next(batches)
            distribution.sample(temperature)
            optimizer.zero_grad()
            cross_entropy(space(images), labels).backward()
            optimizer.step()
    return distribution.mode()


def endless(loader: Any) -> Iterator:
    while True:
        yield from loader


@torch.no_grad()
def accuracy(network: nn.Module, loader: Any) -> float:
    network.eval()
    right = [network(images).argmax(1) == labels for images, labels in loader]
    return float(torch.cat(right).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    data = build_data("mnist5k", data_dir="data", batch_size=64, seed=0)
    space = Space()
    found = search(
        space, endless(data.train_dataloader()), endless(data.structure_dataloader()), arguments.steps
    )
    network = space.freeze(found)  # a plain torch module with the weights of the search

    print("the most probable network:")
    for label, value in found.items():
        print(f"  {label:20} {value}")
    print(
        f"validation accuracy with the weights of the search: {accuracy(network, data.val_dataloader()):.3f}"
    )


if __name__ == "__main__":
    main()

"""Spaces whose networks differ in size, for tests of budgets."""

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn


def candidates():
    return {
        "none": nn.Identity(),
        "small": nn.Linear(4, 4, bias=False),
        "medium": nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)),
        "large": nn.Sequential(nn.Linear(4, 10, bias=False), nn.Linear(10, 4, bias=False)),
    }


class Sized(ModelSpace):
    """Three layers of 0, 16, 40 or 80 parameters, and 5 that are always there."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(LayerChoice(candidates(), label=str(i)) for i in range(3)))
        self.inputs = InputChoice(2, n_chosen=1, label="inputs")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inputs([self.layers(x), x]))


class Torn(ModelSpace):
    """A layer of 96 or 1,000 parameters, and nothing between."""

    def __init__(self):
        super().__init__()
        sizes = {"small": 12, "large": 125}
        layers = {
            name: nn.Sequential(nn.Linear(4, n, bias=False), nn.Linear(n, 4, bias=False))
            for name, n in sizes.items()
        }
        self.layer = LayerChoice(layers, label="layer")
        self.other = LayerChoice([nn.Identity(), nn.Tanh()], label="other")

    def forward(self, x):
        return self.other(self.layer(x)).sum(1, keepdim=True)

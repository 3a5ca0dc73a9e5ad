"""A space of one layer choice."""

from nni.nas.nn.pytorch import LayerChoice, ModelSpace


class OneChoice(ModelSpace):
    def __init__(self, candidates):
        super().__init__()
        self.layer = LayerChoice(candidates, label="layer")

    def forward(self, x):
        return self.layer(x)

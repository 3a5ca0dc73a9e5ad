"""Neighbours of a network: those that differ from it in a single choice, and what each of them reaches.

Where many neighbours reach what the network reaches, the structure lies flat: these choices could be others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from nni_gumbel.results.record import Record
from nni_gumbel.results.space import variables_of

if TYPE_CHECKING:
    from nni.nas.nn.pytorch import ModelSpace
    from torch import Tensor, nn


class Neighbour(BaseModel):
    """A network that differs in one choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    choice: str  # in words
    parameters: int | None  # as it would be exported; None where it cannot be built
    value: float | None  # of the metric; None where the weights do not fit, or where it could not be trained

    def __str__(self) -> str:
        return f"{self.label}={self.choice}"


class Neighbours(Record):
    """What the neighbours of a network reach; an export trial keeps it in its output directory."""

    FILE: ClassVar[str] = "neighbours.json"

    name: str  # of the network
    retrained: bool  # whether each was trained from scratch, as the network was, or has its trained weights
    examples: int | None  # of the validation part, for each value
    value: float  # of the network itself
    found: tuple[Neighbour, ...]


def neighbours_of(space: ModelSpace, architecture: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The label and the value of every single choice that could be another one.

    Of a choice of k inputs one is exchanged for another; of a choice of any number one is added or left out.

    Args:
        space: mutated or not.
        architecture: an NNI sample; labels that it does not name are not used, and have no neighbours.
    """
    for label, variable in variables_of(space).items():
        if label not in architecture:
            continue
        chosen = architecture[label]
        if not hasattr(variable, "n_chosen"):
            yield from ((label, value) for value in variable.values if value != chosen)
            continue
        chosen = chosen if isinstance(chosen, (list, tuple)) else [chosen]
        fewer = [{*chosen} - {value} for value in chosen]
        others = [value for value in variable.values if value not in chosen]
        if variable.n_chosen is None:
            sets = [each for each in fewer if each or len(variable.values) == 1]
            sets += [{*chosen, value} for value in others]
        else:
            sets = [each | {value} for each in fewer for value in others]
        yield from ((label, [value for value in variable.values if value in each]) for each in sets)


def take_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Give a network the trained weights that fit it, by name and shape.

    Args:
        network: without choices.
        weights: a ``state_dict``, of another network of the space.

    Returns:
        Whether it has all of its weights from there.
    """
    own = network.state_dict()
    fitting = {
        name: value for name, value in weights.items() if name in own and own[name].shape == value.shape
    }
    network.load_state_dict(fitting, strict=False)
    return len(fitting) == len(own)

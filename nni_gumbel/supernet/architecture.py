"""Which labels of a sample a frozen network really uses.

A label inside a candidate that was not chosen leaves no trace in the frozen network: two samples that
differ in such labels alone are the same network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableModule
from torch import nn


def used_part(space: ModelSpace, sample: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``sample`` that the network frozen at it uses, in the order of the space.

    Args:
        space: the model space, mutated to a supernet or not.
        sample: an NNI sample with an entry for every label.
    """
    used = set(_used_labels(space, sample))
    return {label: sample[label] for label in space.simplify() if label in used}


def _used_labels(module: nn.Module, sample: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(module, MutableModule):
        for mutable in module.mutables:
            yield from mutable.simplify()
    if isinstance(module, LayerChoice):
        yield from _used_labels(module[module.choice.freeze(sample)], sample)
    else:
        for child in module.children():
            yield from _used_labels(child, sample)

"""What a network is called with, a few examples as the evaluator's own steps hand them over, and in which mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from nni_gumbel.errors import UsageError


@dataclass(frozen=True)
class Example:
    """A batch of inputs of a network.

    Args:
        args, kwargs: of its forward: tensors, also in nested tuples, lists and dicts; the first dimension of the
            first tensor is the batch, and so is that of every other tensor where it is as long.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> Example:
        """Of what stands for the inputs in a batch: a tensor, a tuple or list of several, or a dict by name."""
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))

    def __call__(self, network: nn.Module) -> Any:
        """What a network returns for it."""
        return network(*self.args, **self.kwargs)

    def first(self, count: int) -> Example:
        """So many of its examples."""
        return self.select(slice(count))

    def select(self, examples: slice) -> Example:
        """Some of its examples."""
        size = batch_size(self.args, self.kwargs)
        return self.map(lambda value: value[examples] if value.dim() and len(value) == size else value)

    def map(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same with every tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Example(tree_map(changed, tuple(self.args)), tree_map(changed, dict(self.kwargs)))

    def cpu(self) -> Example:
        """The same on the CPU, without a graph."""
        return self.map(lambda value: value.detach().cpu())

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def shapes(self) -> str:
        """The shapes of its tensors without the batch, for messages: ``(1, 28, 28)``, ``(2,) and (4,)``."""
        return " and ".join(str(tuple(tensor.shape[1:])) for tensor in self.tensors)

    def to_tensors(self) -> tuple[Any, dict[str, Tensor]]:
        """It as JSON, in which a name stands for each tensor, and the tensors by name.

        Raises:
            UsageError: it holds what is neither a tensor nor a number, a truth value or nothing.
        """
        leaves, spec = tree_flatten([list(self.args), dict(self.kwargs)])
        names, tensors = [], {}
        for leaf in leaves:
            if not (isinstance(leaf, Tensor) or leaf is None or isinstance(leaf, (bool, int, float))):
                raise UsageError(
                    f"forward: it takes a {type(leaf).__name__}, which a bundle cannot keep; take tensors and numbers"
                )
            names.append(f"input.{len(tensors)}" if isinstance(leaf, Tensor) else leaf)
            if isinstance(leaf, Tensor):
                tensors[names[-1]] = leaf.clone().contiguous()
        return tree_unflatten(names, spec), tensors

    @classmethod
    def from_tensors(cls, described: Any, tensors: Mapping[str, Tensor]) -> Example:
        """What :meth:`to_tensors` described; a tuple comes back as a list."""
        args, kwargs = tree_map(lambda leaf: tensors[leaf] if isinstance(leaf, str) else leaf, described)
        return cls(tuple(args), kwargs)


def batch_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The first dimension of the first tensor that a forward takes.

    Raises:
        UsageError: there is none.
    """
    for leaf in tree_leaves((tuple(args), dict(kwargs))):
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf):
            return len(leaf)
    raise UsageError(
        "example: it holds no tensor with a first dimension; give a batch that the network takes"
    )


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever the body does, each module is in training or in evaluation afterwards as it was before."""
    modes = {module: module.training for module in modules}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Run the body with a network in ``eval()``; the modes of all its modules are as before afterwards."""
    with modes_kept(network.modules()):
        network.eval()
        yield

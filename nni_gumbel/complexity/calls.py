"""Run a relaxed space once, with all its networks at a time, and price every call of a layer.

Abstract interpretation with finite sets: the supernet's forward runs on PyTorch's meta device, where tensors
have shapes and no entries; a tensor whose shape depends on choices is carried along as its alternatives
(:mod:`nni_gumbel.complexity.varying`). A call of a layer is run, and priced, once for every distinct
combination of the shapes of its inputs. What a module of ours computes is replaced by its cases: each
candidate runs where it is chosen, each block of a ``Repeat`` where the depth reaches it, each size of a
module with choices in its arguments where it is the size; a label that occurs again inside is fixed there.
What a case computes in no network is not computed at all. So every call counts with the exact set of
networks that make it, whatever Python a person's forward is made of, as long as it depends on shapes and
not on entries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
from nni.nas.nn.pytorch.choice import ChosenInputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from nni_gumbel.complexity.loose_ends import loose_nodes, readers_of_loose_ends
from nni_gumbel.complexity.table import MOST_COMBINATIONS, Table, TooManyCombinations, where
from nni_gumbel.complexity.varying import JointValues, Split, VaryingNumber, VaryingTensor, kind_of
from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.supernet.arguments import MixedArguments
from nni_gumbel.supernet.cell import MixedCell
from nni_gumbel.supernet.depth import MixedRepeat
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.inputs import MixedInput
from nni_gumbel.supernet.layer import MixedLayer
from nni_gumbel.supernet.structure import children, depths_of

# How often the forward of one module is run for the values of numbers that its Python code asks for: each number
# multiplies that, and a run takes 0.1 s or more in a network of a usual size.
MOST_RUNS = 64
# Outcomes of one label that are told apart: the subsets of 14 inputs. What depends on one label alone must be added up
# over all of them at every step.
MOST_OUTCOMES = 20_000

Price = Callable[[nn.Module, tuple, Mapping[str, Any], Any], float]

_REMEDY = "price params or a cost of your own"


def prices_of_calls(
    supernet: nn.Module,
    distribution: Distribution,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_priced: Callable[[nn.Module], bool],
    price: Price,
    what: str,
) -> list[Table]:
    """The prices of the calls of layers in a forward pass: tables whose sum is the price of a network.

    Args:
        supernet: a relaxed space; nothing in it changes.
        distribution: its distribution; the logits do not matter.
        args, kwargs: what its forward takes; only shapes and dtypes are read.
        is_priced: whether a module is a layer whose calls have a price.
        price: of one call of such a layer, from the layer in ``eval()`` without weights, its arguments and its
            output, all of plain meta tensors.
        what: is counted, in the words of errors: ``FLOPs``.

    Raises:
        UsageError: the forward depends on the entries of tensors, or on more choices at once than can be
            tabulated, or a module comes from a person's own mutation hook; names the module.
    """
    interpreter = _Interpreter(distribution, is_priced, price, what)
    root = interpreter.prepared(supernet, "")
    interpreter.readers.update(readers_of_loose_ends(root))
    inputs, named = tree_map(_on_meta, (tuple(args), dict(kwargs)))
    # The output may be a number that depends on choices: all calls have been priced by then.
    with suppress(Split), torch.no_grad(), torch.device("meta"), interpreter:
        root(*inputs, **named)
    return interpreter.terms


class _Interpreter(JointValues):
    """See the module; the arguments are those of :func:`prices_of_calls`.

    Attributes:
        terms: the price of each call so far, 0 in the networks that do not make it.
        readers: layers that are as wide as their input, whatever they are in the supernet.
    """

    def __init__(
        self, distribution: Distribution, is_priced: Callable[[nn.Module], bool], price: Price, what: str
    ) -> None:
        super().__init__()
        self.terms: list[Table] = []
        self.readers: set[nn.Module] = set()
        self._is_priced, self._price, self._what = is_priced, price, what
        self._laws = distribution.laws
        self._variants: dict[tuple[nn.Module, int], nn.Module] = {}
        self._runs: dict[str, int] = {}  # by path, in how many parts the networks have been split up

    def prepared(self, module: nn.Module, name: str) -> nn.Module:
        """A copy on the meta device, in ``eval()``, whose modules run by the rules here."""
        owners = [vars(inner) for inner in module.modules()]
        tensors = [leaf for owner in owners for leaf in tree_leaves(owner) if isinstance(leaf, Tensor)]
        copied = copy.deepcopy(module, {id(tensor): _on_meta(tensor) for tensor in tensors}).eval()
        for path, inner in copied.named_modules(prefix=name):
            inner.forward = partial(self._call, inner, path, inner.forward)
        return copied

    def _call(self, module: nn.Module, path: str, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        """A call of a module; one that asks for a plain value where there are several is run once for each."""
        priced, self.unanswered = len(self.terms), None
        name = path or type(module).__name__
        try:
            return self._run(module, path, forward, args, kwargs)
        except TooManyCombinations as error:
            raise UsageError(
                f"module {name!r}: its {self._what} depend on {error.number:,} combinations of the choices "
                f"{', '.join(map(repr, error.labels))}; let fewer choices meet there (at most {MOST_COMBINATIONS:,} "
                "combinations)"
            ) from error
        except UsageError:
            raise
        except Exception as error:  # whatever a person's forward raises
            # Torch asks whether an argument can be a whole number, and makes an error of its own of a split.
            split = error if isinstance(error, Split) else self.unanswered
            if split is None:
                raise UsageError(
                    f"module {name!r}: the {self._what} of {type(module).__name__} cannot be counted ahead of a "
                    f"forward pass ({first_line(error)}); let its forward depend on the shapes of tensors alone, or "
                    f"{_REMEDY}"
                ) from error
        del self.terms[priced:]
        conditions = split.conditions()
        again = partial(self._call, module, path, forward, *args, **kwargs)
        before = self._runs.get(path, 1)
        self._runs[path] = before * len(conditions)
        try:
            if self._runs[path] > MOST_RUNS:
                raise UsageError(
                    f"module {name!r}: its forward decides in Python on shapes that depend on choices, in more than "
                    f"{MOST_RUNS} ways, so its {self._what} would take long to count; move each decision into a module "
                    f"of its own, or {_REMEDY}"
                )
            return self.cases((condition, again) for condition in conditions)
        finally:
            self._runs[path] = before

    def _run(
        self, module: nn.Module, path: str, forward: Callable, args: tuple, kwargs: Mapping[str, Any]
    ) -> Any:
        if isinstance(module, MixedLayer):
            candidates = children(module)
            return self.cases((where(when), partial(one, *args, **kwargs)) for one, when in candidates)
        if isinstance(module, MixedRepeat):
            return self._repeat(module, *args, **kwargs)
        if isinstance(module, MixedInput):
            return self._input(module, *args, **kwargs)
        if isinstance(module, MixedCell):
            return self._cell(module, *args, **kwargs)
        if isinstance(module, MixedArguments):
            return self._arguments(module, path, args, kwargs)
        if isinstance(module, BaseSuperNetModule):
            raise UsageError(
                f"module {path!r}: {type(module).__name__} comes from a mutation hook, so which {self._what} its "
                f"networks have is not known; {_REMEDY}"
            )
        if self._is_priced(module):
            return self._layer(module, forward, args, kwargs)
        return forward(*args, **kwargs)

    def _layer(self, module: nn.Module, forward: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        if not type(module).__module__.startswith("torch."):
            # One that only hands on what it gets is no layer; what it gets may have little in common.
            functions = self.functions
            output = forward(*args, **kwargs)
            if self.functions == functions:
                return output

        def priced(*args: Any, **kwargs: Any) -> tuple[Any, float]:
            layer, run = module, forward
            if module in self.readers:
                layer = _reading(module, args[0].shape[1])
                run = layer.forward
            elif _keeps_shape(module):
                run = torch.empty_like
            output = run(*args, **kwargs)
            return output, self._price(layer, args, kwargs, output)

        output, price = self.evaluate(priced, args, kwargs)
        prices = self.numbers(price) if isinstance(price, VaryingNumber) else price
        self.terms.append(self.presence * prices)
        return output

    def _repeat(self, module: MixedRepeat, x: Any) -> Any:
        candidates, depths = depths_of(module)
        depth = Table.of(tuple(candidates), depths)
        cases = [(depth.equals(0), lambda x=x: x)]
        for number, block in enumerate(module.blocks, start=1):
            with self.where(depth.map(lambda depths, number=number: np.int64(depths >= number))) as possible:
                if not possible:
                    break
                x = block(x)
            cases.append((depth.equals(number), partial(module.of_depth, number, x)))
        return self.cases(cases)

    def _input(self, module: MixedInput, candidate_inputs: Sequence[Any]) -> Any:
        def reduced(chosen: tuple[int, ...]) -> Any:
            return ChosenInputs(list(chosen), module.reduction)(candidate_inputs)

        # Inputs of one shape are alike: not every set of them has to be tried.
        are_plain = (isinstance(x, Tensor) and not isinstance(x, VaryingTensor) for x in candidate_inputs)
        kinds = [kind_of(x) if is_plain else id(x) for x, is_plain in zip(candidate_inputs, are_plain)]
        law = self._laws[module.label]
        if len(set(kinds)) == 1:
            return reduced(next(law.sets()))
        if law.outcomes > MOST_OUTCOMES:
            raise UsageError(
                f"choice {module.label!r}: its {law.outcomes:,} sets of inputs lead to different {self._what} (at most "
                f"{MOST_OUTCOMES:,} can be told apart); give it inputs of one shape, fewer of them or an n_chosen"
            )
        groups: dict[tuple[Any, ...], tuple[int, tuple[int, ...]]] = {}
        alike = ((tuple(kinds[i] for i in chosen), chosen) for chosen in law.sets())
        numbers = [groups.setdefault(these, (len(groups), chosen))[0] for these, chosen in alike]
        group = Table.of((module.label,), numbers)
        return self.cases(
            (group.equals(number), partial(reduced, chosen)) for number, chosen in groups.values()
        )

    def _cell(self, module: MixedCell, *inputs: Any) -> Any:
        conditions = {child: where(condition) for child, condition in children(module)}
        predecessors = preprocess_cell_inputs(module.num_predecessors, *inputs)
        states = module.preprocessor(predecessors)

        def slot(node: int, k: int) -> Any:
            if module.op_candidates_factory is None:
                return module.ops[node][k](module.inputs[node][k](states))
            choices = zip(module.ops[node][k], states)
            return self.cases((conditions[choice], partial(choice, state)) for choice, state in choices)

        def concatenated(nodes: Sequence[int]) -> Tensor:
            return torch.cat([states[node] for node in nodes], module.concat_dim)

        for node in range(module.num_nodes):
            slots = [slot(node, k) for k in range(module.num_ops_per_node)]
            states.append(torch.sum(torch.stack(slots), 0))
        if module.merge_op == "all":
            outputs = concatenated(module.output_node_indices)
        else:
            loose = loose_nodes(module).items()
            outputs = self.cases((condition, partial(concatenated, nodes)) for nodes, condition in loose)
        return module.postprocessor(outputs, predecessors)

    def _arguments(self, module: MixedArguments, path: str, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        table = module.variants.table

        def run(k: int) -> Any:
            if (module, k) not in self._variants:
                self._variants[module, k] = self.prepared(module.variants.templates[k], path)
                if module in self.readers:
                    self.readers.add(self._variants[module, k])
            return self._variants[module, k](*args, **kwargs)

        variant = Table.of(table.labels, table.index)
        return self.cases((variant.equals(k), partial(run, k)) for k in range(len(table.distinct)))


def _reading(layer: nn.Conv2d | nn.Linear, width: int) -> nn.Module:
    """A layer that reads ``width`` of its inputs."""
    narrow = copy.copy(layer)
    del vars(narrow)["forward"]
    narrow._parameters = dict(layer._parameters) | {"weight": nn.Parameter(layer.weight[:, :width])}
    setattr(narrow, "in_features" if isinstance(layer, nn.Linear) else "in_channels", width)
    return narrow


def _keeps_shape(layer: nn.Module) -> bool:
    """Whether it is a batch norm or an elementwise activation, whose forward takes 10 ms on the meta device."""
    if type(layer).__module__ == nn.ReLU.__module__:
        return not isinstance(layer, (nn.GLU, nn.MultiheadAttention))
    return type(layer).forward is _BatchNorm.forward


def _on_meta(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta") if isinstance(value, Tensor) else value

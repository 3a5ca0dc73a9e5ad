"""How long a forward pass takes: read from a table of layers, expected for a distribution over networks.

The latency of a network is the sum of what its layers take on their own, each measured once: on real data of
the shapes that it gets, in ``eval()`` and without gradients, warm, on one thread that is alone on one core as far
as the operating system allows; the median of many calls. The calls go round all layers, as in a network: called
again and again on its own, a layer finds the processor's caches full of itself and takes half the time.

With the table saved, the same network has the same latency for ever; how long the whole network really takes is
measured apart (:func:`measure_latency`). What the sum leaves out are functions that a forward calls itself (``x + y``,
``torch.cat``, ``F.relu``). Layers are all modules without children, pooling and activations among them, and
attentions; one that only hands on its input is free.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nni_gumbel.complexity.calls import prices_of_calls
from nni_gumbel.complexity.flops import is_counted
from nni_gumbel.complexity.table import ExpectedSum
from nni_gumbel.errors import UsageError, first_line, user_code
from nni_gumbel.results.example import in_eval
from nni_gumbel.supernet.distribution import Distribution

# The median of fewer than 20 calls moves from one measurement to the next; the rest is a matter of patience.
FEWEST_CALLS, MOST_CALLS, SECONDS_A_LAYER = 20, 500, 0.1

# What ``repr`` tells completely, and the same in every process.
_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), slice, range, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size,
)  # fmt: skip

# What every module has, an interpreter's own forward, and NNI's record of a constructor's arguments: none of it is a
# setting of the layer.
_OF_EVERY_MODULE = {*vars(nn.Module()), "forward", "trace_symbol", "trace_args", "trace_kwargs"}

_Call = tuple[Callable[..., Any], tuple, Mapping[str, Any]]


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a call of a layer, by :func:`signature_of` the call."""

    milliseconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what :meth:`save` wrote; a ``UsageError`` where there is no such file, or another one."""
        try:
            read = json.loads(Path(path).read_text(encoding="utf-8"))["milliseconds"]
            return cls({str(signature): float(number) for signature, number in read.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"latency table: {str(path)!r} cannot be read ({first_line(error)}); measure the layers anew"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write a JSON file: the layers in alphabetical order."""
        text = json.dumps({"milliseconds": dict(sorted(self.milliseconds.items()))}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")


def signature_of(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """The key of a call in a table: type and settings of a layer, shapes and dtypes of its tensors and inputs.

    Raises:
        UsageError: the layer holds, or is given, what is not the same text in every process; names it.

    Example:
        >>> signature_of(nn.Flatten(), (torch.zeros(2, 3, 4),), {})
        'torch.nn.modules.flatten.Flatten(end_dim=-1, start_dim=1) of (2, 3, 4) float32'
    """
    owner = f"{type(layer).__name__} is given"
    given = [_described(value, owner) for value in args]
    given += [f"{name}={_described(value, owner)}" for name, value in kwargs.items()]
    return f"{_described(layer, owner)} of {', '.join(given)}"


def expected_latency(
    supernet: nn.Module,
    distribution: Distribution,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    table: LatencyTable | None = None,
) -> tuple[ExpectedSum, LatencyTable]:
    """The expected milliseconds of one forward pass, exact for the table and differentiable, and the table.

    What is not known is measured: every layer and every size of its inputs once.

    Args:
        supernet: a relaxed space; it is not run, and nothing in it changes.
        distribution: its distribution.
        args, kwargs: what its forward takes: a batch.
        table: what is known, which stays as it is; nothing if omitted.

    Raises:
        UsageError: a layer cannot be run on its own; also see :func:`~nni_gumbel.complexity.calls.prices_of_calls`.
    """
    numbers: dict[str, int] = {}  # by signature, from 1 on: calls that a network does not make have 0
    missing: dict[str, _Call] = {}
    milliseconds = dict(table.milliseconds) if table else {}

    def number(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> int:
        signature = signature_of(layer, args, kwargs)
        if signature not in milliseconds:
            missing.setdefault(signature, (layer, args, kwargs))
        return numbers.setdefault(signature, len(numbers) + 1)

    tables = prices_of_calls(supernet, distribution, args, kwargs, _is_layer, number, "latency")
    calls: list[_Call] = []
    inputs: dict[Any, Tensor] = {}
    for signature, call in missing.items():
        refusal = user_code(f"latency: {signature} cannot be measured on its own", "price flops or params")
        with refusal, torch.no_grad():
            layer, given, named = _made_real(*call, inputs)
            layer(*given, **named)
        calls.append((layer, given, named))
    milliseconds |= zip(missing, _median_ms(calls))
    of_number = np.array([0.0, *(milliseconds[signature] for signature in numbers)])
    return ExpectedSum(one.map(of_number.__getitem__) for one in tables), LatencyTable(milliseconds)


def measure_latency(
    network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> float:
    """Milliseconds of one forward pass of a whole network on the CPU, measured as its layers are.

    Args:
        network: run in ``eval()`` and without gradients, and left as it was.
        args, kwargs: what its forward takes: a batch.
    """
    with in_eval(network):
        return _median_ms([(network, tuple(args), kwargs or {})])[0]


@contextmanager
def alone_on_a_core() -> Iterator[None]:
    """Run the body on one thread, on the core that is least busy; both as before afterwards.

    Where the operating system cannot bind a thread to a core (macOS, Windows), it is one thread only.
    """
    threads = torch.get_num_threads()
    can_bind = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if can_bind else set()
    try:
        torch.set_num_threads(1)
        if can_bind:
            busy = psutil.cpu_percent(interval=0.1, percpu=True)
            seen = [core for core in cores if core < len(busy)]
            os.sched_setaffinity(0, {min(seen, key=busy.__getitem__)} if seen else cores)
        yield
    finally:
        torch.set_num_threads(threads)
        if can_bind:
            os.sched_setaffinity(0, cores)


def _described(value: Any, owner: str) -> str:
    """A module by its type and settings, a tensor by shape and dtype, a function by its name."""
    if isinstance(value, weakref.ref):  # torch's recurrent layers hold their weights once more like this
        value = value()
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_described(entry, owner) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_described(entry, owner)}' for key, entry in value.items())}}}"
    kind = type(value)
    if isinstance(value, nn.Module):
        words = [
            f"{name}={_described(held, f'{kind.__name__}.{name} holds')}"
            for name, held in sorted(vars(value).items())
            if name not in _OF_EVERY_MODULE
        ]
        words += [f"{name}: {_described(tensor, name)}" for name, tensor in value.state_dict().items()]
        words += [f"{name}: {_described(child, name)}" for name, child in value.named_children()]
        return f"{kind.__module__}.{kind.__qualname__}({', '.join(words)})"
    has_name = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    if has_name and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    raise UsageError(
        f"latency: {owner} a {kind.__module__}.{kind.__qualname__}, by which no measurement can be found again; keep "
        "numbers, words and named functions there, or price flops or params"
    )


def _is_layer(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity) and (not module._modules or is_counted(module))


@torch.no_grad()
def _median_ms(calls: Sequence[_Call]) -> list[float]:
    """The median time of each of several calls, which take turns."""
    times: list[list[float]] = [[] for _ in calls]
    with alone_on_a_core():
        for _ in range(3):
            for run, args, kwargs in calls:
                run(*args, **kwargs)
        end = time.perf_counter() + SECONDS_A_LAYER * len(calls)
        rounds = 0
        while rounds < FEWEST_CALLS or (rounds < MOST_CALLS and time.perf_counter() < end):
            rounds += 1
            for (run, args, kwargs), own in zip(calls, times):
                start = time.perf_counter_ns()
                run(*args, **kwargs)
                own.append((time.perf_counter_ns() - start) / 1e6)
    return [statistics.median(own) for own in times]


def _made_real(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any], inputs: dict[Any, Tensor]) -> _Call:
    """A layer and its arguments with random entries in [0, 1), in place of meta tensors.

    Inputs of one shape are one tensor, taken from ``inputs``: those of all layers of a large space would not fit.
    """
    generator = torch.Generator().manual_seed(0)

    def filled(tensor: Tensor) -> Tensor:
        return tensor.uniform_(generator=generator) if tensor.is_floating_point() else tensor.zero_()

    def as_input(value: Any) -> Any:
        kind = (value.shape, value.dtype) if isinstance(value, Tensor) else None
        if kind and kind not in inputs:
            inputs[kind] = filled(torch.empty(value.shape, dtype=value.dtype))
        return inputs[kind] if kind else value

    real = copy.copy(layer)
    vars(real).pop("forward", None)  # the interpreter's
    real = copy.deepcopy(real).to_empty(device="cpu")
    for tensor in (*real.parameters(), *real.buffers()):
        filled(tensor)
    return real, *tree_map(as_input, (tuple(args), dict(kwargs)))

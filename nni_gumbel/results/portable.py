"""A trained network as programs that need neither NNI nor this package.

==============  ==========================================================================================
model.py        its layers and its forward as source; loads ``model.safetensors`` with torch and nothing else
model.pt2       ``torch.export``: ``torch.export.load(FILE).module()(images)``; any number of examples
model.onnx      for ONNX runtimes; any number of examples
==============  ==========================================================================================

Each is compared with the network on the examples of the bundle when it is written. What cannot be written is left out,
with one line that says why.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from nni_gumbel.errors import first_line
from nni_gumbel.results.bundle import WEIGHTS, load_with_example
from nni_gumbel.results.example import Example, batch_size
from nni_gumbel.results.pruning import traced

PROGRAMS = SOURCE, PROGRAM, ONNX = "model.py", "model.pt2", "model.onnx"

_logger = logging.getLogger(__name__)

# Runtimes add up in another order.
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def write_programs(bundle: Path, folder: Path) -> dict[str, str]:
    """Write the network of a bundle as :data:`SOURCE`, :data:`PROGRAM` and :data:`ONNX`.

    Args:
        bundle: where it is.
        folder: where they are written.

    Returns:
        For each file that could not be written, why; each is a warning in the log, too.

    Raises:
        UsageError: the network cannot be rebuilt.
    """
    network, example = load_with_example(bundle)
    with torch.no_grad():
        expected = example(network)
    missing: dict[str, str] = {}

    import onnxruntime  # takes its time

    exported = cache(lambda: _exported(network, example))  # two files are made of it

    def source(path: Path) -> Any:
        path.write_text(source_of(network, example), encoding="utf-8")
        namespace: dict[str, Any] = {"__file__": str(path), "__name__": "model"}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)  # written a moment ago
        with torch.no_grad():
            return example(namespace["load"](bundle / WEIGHTS))

    def program(path: Path) -> Any:
        torch.export.save(exported(), path)
        return example(torch.export.load(path).module())

    def onnx(path: Path) -> Any:
        torch.onnx.export(exported(), dynamo=True).save(path, include_initializers=True, external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = zip(session.get_inputs(), example.tensors)
        (output,) = session.run(None, {entry.name: tensor.numpy() for entry, tensor in given})
        return torch.from_numpy(output)

    for name, write in ((SOURCE, source), (PROGRAM, program), (ONNX, onnx)):
        path = folder / name
        try:
            # The exporters print what they are doing, and warn of what concerns their own code.
            with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                found = write(path)
            torch.testing.assert_close(found, expected, **_TOLERANCE)
        except Exception as error:  # an exporter fails in any way, on what it does not know
            path.unlink(missing_ok=True)
            missing[name] = first_line(error)
            _logger.warning("%s could not be written: %s", name, missing[name])
    return missing


# -- torch.export and ONNX ---------------------------------------------------------------------------


def _exported(network: nn.Module, example: Example) -> torch.export.ExportedProgram:
    size, batch = batch_size(example.args, example.kwargs), torch.export.Dim("batch")

    def dynamic(value: Any) -> Any:
        return {0: batch} if isinstance(value, Tensor) and value.dim() and len(value) == size else None

    positional = inspect.signature(network.forward).bind_partial(*example.args).arguments
    shapes = tree_map(dynamic, {**positional, **example.kwargs})
    return torch.export.export(network, example.args, example.kwargs, dynamic_shapes=shapes)


# -- source ------------------------------------------------------------------------------------------

_MODULE = '''"""{title}, written by nni_gumbel.

    import torch
    from model import load

    network = load()                   # the weights of model.safetensors, beside this file
    scores = network(torch.zeros({shape}))
"""

import json
from pathlib import Path
{imports}
import torch
from torch import nn


class {name}(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    {forward}

# Where model.safetensors has what each part of the network holds.
NAMES = {names}


def load(path=Path(__file__).with_name("model.safetensors")):
    """The network with the weights of a file, in evaluation mode."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    state = {{}}
    for name, entry in json.loads(data[8:start]).items():
        part, _, tensor = name.rpartition(".")
        if name == "__metadata__" or not {{name, part}} & NAMES.keys():
            continue
        begin, end = entry["data_offsets"]
        kind = {{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
                "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}}[entry["dtype"]]
        values = torch.frombuffer(bytearray(data[start + begin:start + end]), dtype=kind) if end > begin else (
            torch.empty(0, dtype=kind))
        state[NAMES.get(name) or f"{{NAMES[part]}}.{{tensor}}"] = values.reshape(entry["shape"])
    network = {name}()
    network.load_state_dict(state)
    return network.eval()
'''


def source_of(network: nn.Module, example: Example) -> str:
    """The text of :data:`SOURCE`.

    Args:
        network: without choices.
        example: a batch of what it takes.

    Raises:
        ValueError: it holds what is neither a layer of torch nor made of such layers.
        Exception: whatever a forward raises that cannot be traced.
    """
    graph = fx.GraphModule(network, traced(network)).graph
    graph.eliminate_dead_code()
    names: dict[str, str] = {}
    for node in graph.nodes:
        node.type = None
        if node.op == "get_attr" and node.target not in network.state_dict():
            raise ValueError(f"it uses the tensor {node.target!r}, which is no part of its weights")
        if node.op in ("call_module", "get_attr"):
            node.target = names.setdefault(node.target, node.target.replace(".", "_"))
    code = graph.python_code("self")
    # What torch writes behind a statement frees memory that nobody misses here.
    lines = (re.sub(r";  .* = None$", "", line) for line in code.src.strip().splitlines())
    forward = "\n    ".join(lines)
    own = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    layers = []
    for part, name in names.items():
        value = own.get(part)
        if value is None:
            layers.append(f"        self.{name} = {_constructor(network.get_submodule(part))}")
            continue
        # Of no layer of torch; its values come from the file.
        made = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
        if isinstance(value, nn.Parameter):
            layers.append(f"        self.{name} = nn.Parameter({made}, requires_grad={value.requires_grad})")
        else:
            layers.append(f"        self.register_buffer({name!r}, {made})")
    modules = {value.__name__ for value in code.globals.values() if inspect.ismodule(value)} - {"torch"}
    return _MODULE.format(
        title=type(network).__name__, name="Network", shape=", ".join(map(str, example.tensors[0].shape)),
        imports="\n".join(f"import {module}" for module in sorted(modules)),
        layers="\n".join(layers) or "        pass", forward=forward,
        names=json.dumps(names, indent=4),
    )  # fmt: skip


def _constructor(layer: nn.Module) -> str:
    """The call that makes a layer of torch anew: its constructor's arguments are its attributes.

    Raises:
        ValueError: it is no layer of torch, or holds what cannot be written.
    """
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind:
        raise ValueError(f"{kind.__name__} is no layer of torch.nn, and its forward cannot be traced")
    words = []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.name in ("device", "dtype") or not hasattr(layer, parameter.name):
            continue
        value: Any = getattr(layer, parameter.name)
        if parameter.name == "bias" and not isinstance(value, bool):
            value = value is not None
        if value != parameter.default or parameter.default is parameter.empty:
            words.append(f"{parameter.name}={value!r}")
    return f"nn.{kind.__name__}({', '.join(words)})"

"""How a smaller torch module lies inside a larger one of its type: weights, inputs and outputs.

A supernet keeps one set of weights, as large as the largest module that the choices allow. A smaller
module uses a part of each tensor, the same part in the supernet and in the frozen network:

- the first entries of every dimension (width), as in slimmable networks and FBNetV2 (2004.05565);
- the centre of a convolution's kernel, rounded to the top left (NNI's ``MixedConv2d``);
- the first entries of each block where a dimension stacks several: queries, keys and values of an
  attention, the gates of a recurrent layer, the two directions under its upper layers.

It reads the first features of its input and writes the first features of its output; which dimensions
those are is known here for the layers of ``torch.nn`` and for those of NNI's hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from nni_gumbel.supernet.mixture import is_float, rebuilt

Shape = tuple[int, ...]

# RMSNorm is new in torch 2.4.
_LAYER_NORMS = (nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as in the state dict, with buffers that are not saved."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def part(template: nn.Module, name: str, full: Tensor, shape: Shape) -> Tensor:
    """The part of a supernet's tensor that a smaller module uses: a view of ``full`` except where blocks are stacked.

    Args:
        template: the smaller module.
        name: of the tensor, as in the module's state dict.
        full: the supernet's tensor, at least as large as ``shape`` in every dimension.
        shape: of the smaller module's tensor, and of the result.
    """
    return full if full.shape == shape else _view(template, name, full, shape).reshape(shape)


def paste(template: nn.Module, name: str, full: Tensor, value: Tensor) -> None:
    """Write a smaller module's tensor to its place in ``full``."""
    view = _view(template, name, full, value.shape)
    view.copy_(value.reshape(view.shape))


def offset(full: int, size: int, centred: bool) -> int:
    """Where ``size`` entries of a dimension of ``full`` entries begin."""
    return (full - size) // 2 if centred else 0


def is_centred(template: nn.Module, name: str, dim: int) -> bool:
    """Whether a smaller module uses the centre of this dimension, not its beginning."""
    owner, _, entry = name.rpartition(".")
    return dim >= 2 and entry == "weight" and isinstance(template.get_submodule(owner), _ConvNd)


def _view(template: nn.Module, name: str, full: Tensor, shape: Shape) -> Tensor:
    for dim in reversed(range(full.dim())):
        size, blocks = shape[dim], _blocks(template, name, dim)
        if size == full.shape[dim]:
            continue
        if blocks > 1:
            full = full.unflatten(dim, (blocks, -1)).narrow(dim + 1, 0, size // blocks)
        else:
            full = full.narrow(dim, offset(full.shape[dim], size, is_centred(template, name, dim)), size)
    return full


def _blocks(template: nn.Module, name: str, dim: int) -> int:
    """How many blocks are stacked along a dimension, each of which a smaller module uses a part of."""
    owner_name, _, entry = name.rpartition(".")
    owner = template.get_submodule(owner_name)
    if isinstance(owner, nn.MultiheadAttention) and entry.startswith("in_proj"):
        return 3 if dim == 0 else 1
    if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)) and dim == 0 and not entry.startswith("weight_hr"):
        kind = getattr(owner, "mode", type(owner).__name__)
        return 4 if kind.startswith("LSTM") else 3 if kind.startswith("GRU") else 1
    if isinstance(owner, nn.RNNBase) and owner.bidirectional and dim == 1:
        return 2 if entry.startswith("weight_ih") and not entry.startswith("weight_ih_l0") else 1
    return 1


# NNI's own modules that read and write a chosen width, with the parameter that is as wide; by name, because importing
# the hub takes longer than everything else here.
_OF_THE_HUB = {
    ("nni.nas.hub.pytorch.autoformer", "ClassToken"): "cls_token",
    ("nni.nas.hub.pytorch.autoformer", "AbsolutePositionEmbedding"): "pos_embed",
}


@dataclass(frozen=True)
class Features:
    """The dimensions of a module's inputs and outputs that depend on its width.

    Attributes:
        inputs: per argument of ``forward``, in order: its name and the (dimension, size) that it reads.
        outputs: dimensions of the outputs that may differ in size; a smaller output is filled up with zeros.
    """

    inputs: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()
    outputs: tuple[int, ...] = ()


def features(module: nn.Module) -> Features:
    """What a module reads and writes; nothing for a type that is not listed here."""
    match module:
        case _ConvNd(in_channels=size):
            return _along(-len(module.kernel_size) - 1, input=size)
        case nn.Linear(in_features=size):
            return _along(-1, input=size)
        case nn.Bilinear(in1_features=first, in2_features=second):
            return _along(-1, input1=first, input2=second)
        case _BatchNorm(num_features=size) | nn.GroupNorm(num_channels=size):
            return _along(1, input=size)
        case _NormBase(num_features=size):  # instance norms, whose input may lack the batch
            return _along(-1 - next(n for n in (1, 2, 3) if f"{n}d" in type(module).__name__), input=size)
        case nn.PReLU(num_parameters=size):
            return _along(1, input=size) if size > 1 else _along(1)
        case nn.Embedding() | nn.EmbeddingBag():
            return _along(-1)
        case nn.MultiheadAttention(embed_dim=query, kdim=key, vdim=value):
            return _along(-1, query=query, key=key, value=value)
        case nn.RNNBase(input_size=size, proj_size=0):
            return _along(-1, input=size, hx=module.hidden_size)
        case nn.RNNBase(input_size=size):
            return _along(-1, input=size)
        case nn.RNNCellBase(input_size=size, hidden_size=state):
            return _along(-1, input=size, hx=state)
        case nn.TransformerEncoderLayer(linear1=linear):
            return _along(-1, src=linear.in_features)
        case nn.TransformerDecoderLayer(linear1=linear):
            return _along(-1, tgt=linear.in_features, memory=linear.in_features)
    if isinstance(module, _LAYER_NORMS):
        dims = tuple(range(-len(module.normalized_shape), 0))
        return Features((("input", tuple(zip(dims, module.normalized_shape))),), dims)
    entry = _OF_THE_HUB.get((type(module).__module__, type(module).__qualname__))
    return Features() if entry is None else _along(-1, x=getattr(module, entry).shape[-1])


def _along(dim: int, **inputs: int) -> Features:
    """Inputs, by name, of so many features each, and an output, all of them along one dimension."""
    return Features(tuple((name, ((dim, size),)) for name, size in inputs.items()), (dim,))


def restrict(value: Any, read: Sequence[tuple[int, int]]) -> Any:
    """The features that a module reads of an input: a tensor, a tuple of tensors, or a packed sequence."""
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [restrict(entry, read) for entry in value])
    if is_float(value):
        for dim, size in read:
            value = value.narrow(dim, 0, size)
    return value


def fill_up(outputs: Sequence[Any], dims: Sequence[int]) -> list[Any]:
    """Append zeros along ``dims`` to floating-point tensors, also in tuples: each as large as the largest."""
    first = outputs[0]
    if isinstance(first, (tuple, list)):
        columns = [fill_up(entries, dims) for entries in zip(*outputs)]
        return [rebuilt(first, entries) for entries in zip(*columns)]
    if not all(map(is_float, outputs)) or len({tensor.shape for tensor in outputs}) == 1:
        return list(outputs)
    for dim in dims:
        after = [0, 0] * (first.dim() - 1 - dim % first.dim())
        missing = [max(other.shape[dim] for other in outputs) - tensor.shape[dim] for tensor in outputs]
        outputs = [pad(tensor, [*after, 0, n]) if n else tensor for tensor, n in zip(outputs, missing)]
    return list(outputs)

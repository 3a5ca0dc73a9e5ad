"""Modules of every kind with choices in their arguments, each with inputs: ``MODULES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nni
import torch
from argument_spaces import Called
from nni.mutable import MutableExpression, MutableList
from nni.nas.hub.pytorch.proxylessnas import make_divisible
from nni.nas.nn.pytorch import (
    MutableBatchNorm1d,
    MutableBatchNorm2d,
    MutableBatchNorm3d,
    MutableBilinear,
    MutableConv1d,
    MutableConv2d,
    MutableConv3d,
    MutableConvTranspose1d,
    MutableConvTranspose2d,
    MutableDropout,
    MutableDropout2d,
    MutableEmbedding,
    MutableGroupNorm,
    MutableGRUCell,
    MutableInstanceNorm1d,
    MutableInstanceNorm2d,
    MutableLayerNorm,
    MutableLeakyReLU,
    MutableLinear,
    MutableLSTM,
    MutableMaxPool2d,
    MutableMultiheadAttention,
    MutablePReLU,
    MutableTransformerDecoderLayer,
    MutableTransformerEncoder,
    MutableTransformerEncoderLayer,
)
from torch import Tensor, nn

Make = Callable[[], nn.Module]


def width() -> Any:
    return nni.choice("width", [2, 4, 6])


def kernel(*sizes: Any) -> Any:
    return nni.choice("kernel", list(sizes or (1, 3, 5)))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def after(first: Make, *others: Make) -> Make:
    """Modules in a row, and the input of the first."""
    return lambda: nn.Sequential(*(make() for make in (first, *others)))


def to_width_linear() -> nn.Module:
    return MutableLinear(3, width())


def to_width_conv() -> nn.Module:
    return MutableConv2d(3, width(), 1)


def embed() -> Any:
    return nni.choice("embed", [4, 8])


def attention_to_itself(**arguments: Callable[[], Any]) -> Make:
    def call(modules: nn.ModuleList, x: Tensor) -> Any:
        x = modules[0](x)
        return modules[1](x, x, x)

    def make() -> nn.Module:
        attention = MutableMultiheadAttention(embed(), **{name: value() for name, value in arguments.items()})
        return Called(nn.ModuleList([MutableLinear(3, embed()), attention]), call)

    return make


def attention_to_keys(**arguments: bool) -> Make:
    def call(modules: nn.ModuleList, x: Tensor, query: Tensor) -> Any:
        key = modules[0](x)
        return modules[1](query, key, key if "vdim" in arguments else query)

    def make() -> nn.Module:
        values = {name: embed() for name in arguments}
        return Called(
            nn.ModuleList([MutableLinear(3, embed()), MutableMultiheadAttention(8, 2, **values)]), call
        )

    return make


def decoder() -> nn.Module:
    layer = MutableTransformerDecoderLayer(embed(), 2, nni.choice("hidden", [5, 7]), batch_first=True)
    return Called(nn.ModuleList([MutableLinear(3, embed()), layer]), lambda m, x: m[1](m[0](x), m[0](x)))


IMAGE, ROWS, SEQUENCE, WORDS = randn(3, 3, 5, 5), randn(5, 3), randn(2, 5, 3), torch.randint(0, 7, (4, 3))
MODULES: dict[str, tuple[Any, ...]] = {
    "linear": (after(to_width_linear, lambda: MutableLinear(width(), 2)), ROWS),
    "linear without bias": (lambda: MutableLinear(3, width(), bias=False), ROWS),
    "choice of a bias": (lambda: MutableLinear(3, width(), bias=nni.choice("bias", [True, False])), ROWS),
    "no largest variant": (after(to_width_linear, lambda: MutableLinear(width(), 8 - width())), ROWS),
    "bilinear": (
        lambda: Called(
            nn.ModuleList([to_width_linear(), MutableBilinear(width(), 3, width() + 1)]),
            lambda m, x: m[1](m[0](x), x),
        ),
        ROWS,
    ),
    "kernel with padding": (lambda: MutableConv2d(3, width(), kernel(), padding=kernel() // 2), IMAGE),
    "kernel with stride": (lambda: MutableConv2d(3, 4, kernel(), stride=2, padding=kernel() // 2), IMAGE),
    "positional arguments": (
        lambda: MutableConv2d(3, width(), kernel(), 1, kernel() // 2, 1, 1, False),
        IMAGE,
    ),
    "even kernels, padding='same'": (
        lambda: MutableConv2d(3, 4, kernel(1, 2, 3, 4, 5), padding="same"),
        IMAGE,
    ),
    "kernels as tuples": (lambda: MutableConv2d(3, 4, kernel((1, 3), (3, 1), (5, 3)), padding="same"), IMAGE),
    "dilation": (
        lambda: MutableConv2d(3, 4, 3, padding=nni.choice("d", [1, 2]), dilation=nni.choice("d", [1, 2])),
        IMAGE,
    ),
    "padding mode": (
        lambda: MutableConv2d(
            3,
            4,
            kernel(1, 3),
            padding=kernel(1, 3) // 2,
            padding_mode=nni.choice("mode", ["zeros", "circular", "reflect", "replicate"]),
        ),
        IMAGE,
    ),
    "conv1d": (lambda: MutableConv1d(3, width(), kernel(), padding="same"), randn(2, 3, 6)),
    "conv3d": (
        after(
            lambda: MutableConv3d(3, width(), kernel(1, 3), padding="same"),
            lambda: MutableBatchNorm3d(width()),
        ),
        randn(2, 3, 3, 3, 3),
    ),
    "groups": (lambda: MutableConv2d(4, 8, 3, groups=nni.choice("groups", [1, 2, 4])), randn(2, 4, 4, 4)),
    "depthwise": (
        after(to_width_conv, lambda: MutableConv2d(width(), width() * 2, 3, groups=width())),
        IMAGE,
    ),
    "groups tied to width": (
        after(to_width_conv, lambda: MutableConv2d(width(), width() * 2, 3, groups=width() // 2)),
        IMAGE,
    ),
    "fixed groups": (after(to_width_conv, lambda: MutableConv2d(width(), width() * 2, 3, groups=2)), IMAGE),
    "transposed convolution": (
        after(
            lambda: MutableConvTranspose2d(
                3, width(), kernel(), stride=2, padding=kernel() // 2, output_padding=1
            ),
            lambda: MutableConv2d(width(), 2, 1),
        ),
        IMAGE,
    ),
    "transposed groups": (
        lambda: MutableConvTranspose1d(4, 8, 3, groups=nni.choice("groups", [1, 2, 4])),
        randn(2, 4, 5),
    ),
    "arithmetic": (
        after(
            lambda: MutableConv2d(3, make_divisible(width() * 2.5, 4), 1),
            lambda: MutableConv2d(
                make_divisible(width() * 2.5, 4), MutableExpression.condition(width() > 2, width() // 2, 1), 1
            ),
        ),
        IMAGE,
    ),
    "batch norm": (after(to_width_linear, lambda: MutableBatchNorm1d(width())), ROWS),
    "batch norm without affine": (
        after(to_width_conv, lambda: MutableBatchNorm2d(width(), affine=False)),
        IMAGE,
    ),
    "batch norm without statistics": (
        after(to_width_conv, lambda: MutableBatchNorm2d(width(), track_running_stats=False)),
        IMAGE,
    ),
    "batch norm without anything": (
        after(to_width_conv, lambda: MutableBatchNorm2d(width(), affine=False, track_running_stats=False)),
        IMAGE,
    ),
    "eps and momentum": (
        after(
            to_width_conv,
            lambda: MutableBatchNorm2d(
                width(),
                eps=nni.choice("eps", [1e-5, 1e-1]),
                momentum=nni.choice("momentum", [0.1, 0.3, None]),
            ),
        ),
        IMAGE,
    ),
    "affine and statistics": (
        after(
            to_width_conv,
            lambda: MutableBatchNorm2d(
                width(),
                affine=nni.choice("affine", [True, False]),
                track_running_stats=nni.choice("track", [True, False]),
            ),
        ),
        IMAGE,
    ),
    "layer norm": (after(to_width_linear, lambda: MutableLayerNorm(width())), ROWS),
    "layer norm over a list": (
        after(to_width_linear, lambda: MutableLayerNorm(MutableList([5, width()]))),
        SEQUENCE,
    ),
    "layer norm over tuples": (
        after(
            lambda: MutableLinear(3, nni.choice("shape", [(5, 2), (5, 4)])[1]),
            lambda: MutableLayerNorm(nni.choice("shape", [(5, 2), (5, 4)]), elementwise_affine=False),
        ),
        SEQUENCE,
    ),
    "group norm": (
        after(to_width_conv, lambda: MutableGroupNorm(nni.choice("groups", [1, 2]), width(), affine=True)),
        IMAGE,
    ),
    "instance norm": (
        after(to_width_conv, lambda: MutableInstanceNorm2d(width(), affine=True, track_running_stats=True)),
        IMAGE,
    ),
    "instance norm without batch": (
        after(lambda: MutableConv1d(3, width(), 1), lambda: MutableInstanceNorm1d(width())),
        randn(3, 6),
    ),
    "embedding": (
        after(lambda: MutableEmbedding(7, width(), padding_idx=0), lambda: MutableLinear(width(), 2)),
        WORDS,
    ),
    "prelu per channel": (after(to_width_conv, lambda: MutablePReLU(width())), IMAGE),
    "prelu of one or all": (lambda: MutablePReLU(nni.choice("number", [1, 3])), IMAGE),
    "slope": (lambda: MutableLeakyReLU(nni.choice("slope", [0.1, 0.5])), ROWS),
    "dropout": (
        after(
            *[
                lambda kind=kind: kind(p=nni.choice("rate", [0.0, 0.2, 0.7]))
                for kind in (MutableDropout, MutableDropout2d)
            ]
        ),
        IMAGE,
    ),
    "pooling": (lambda: MutableMaxPool2d(kernel(1, 3, 5), stride=1, padding=kernel(1, 3, 5) // 2), IMAGE),
    "attention": (
        attention_to_itself(
            num_heads=lambda: nni.choice("heads", [1, 2, 4]), dropout=lambda: nni.choice("rate", [0.0, 0.3])
        ),
        SEQUENCE,
    ),
    "attention with batch first": (
        attention_to_itself(num_heads=lambda: 2, batch_first=lambda: True),
        SEQUENCE,
    ),
    "attention with extra keys, without bias": (
        attention_to_itself(
            num_heads=lambda: 2, add_bias_kv=lambda: True, add_zero_attn=lambda: True, bias=lambda: False
        ),
        SEQUENCE,
    ),
    "attention: kdim": (attention_to_keys(kdim=True), SEQUENCE, randn(2, 5, 8)),
    "attention: vdim and kdim": (attention_to_keys(kdim=True, vdim=True), SEQUENCE, randn(2, 5, 8)),
    "encoder layer": (
        after(
            lambda: MutableLinear(3, embed()),
            lambda: MutableTransformerEncoderLayer(
                embed(), nni.choice("heads", [1, 2]), nni.choice("hidden", [5, 7])
            ),
        ),
        SEQUENCE,
    ),
    "decoder layer": (decoder, SEQUENCE),
    "number of layers": (
        lambda: MutableTransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 5), nni.choice("layers", [1, 2, 3])
        ),
        randn(2, 5, 4),
    ),
    "lstm": (
        after(
            to_width_linear, lambda: MutableLSTM(width(), nni.choice("hidden", [3, 5]), 2, bidirectional=True)
        ),
        SEQUENCE,
    ),
    "gru cell": (lambda: MutableGRUCell(3, nni.choice("hidden", [3, 5])), ROWS),
}

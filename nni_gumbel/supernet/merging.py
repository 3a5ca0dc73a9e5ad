"""Mixtures that are one operation: linear layers, convolutions and batch norms that differ in size.

A convolution is linear in its kernel. A mixture of convolutions, each with its part of one kernel, is
therefore one convolution with the expected kernel,

    sum_v P(v) conv(x, pad(W_v)) = conv(x, W * S),

where ``S`` (:mod:`nni_gumbel.supernet.survival`) is the weight of the variants that contain an entry.
The same holds for biases, for linear layers, and for a batch norm's scale and shift: it normalises each
channel by itself, whatever the number of channels.

The idea of masks on a shared kernel is that of FBNetV2 (2004.05565) for channels and Single-Path NAS
(1904.02877) for kernels. Here it is the weights that are masked, not the outputs, which is exact in the
width of the input, in biases and in borders, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from nni_gumbel.supernet.slicing import Shape, offset, part, restrict
from nni_gumbel.supernet.variants import Variants

_CONVOLUTIONS = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def merge_key(template: nn.Module, full: Mapping[str, Shape]) -> Hashable | None:
    """Variants of one module with the same key are one operation together; ``None``: each by itself.

    Convolutions merge if they differ in sizes alone: in their number of channels, or of groups of
    channels if all groups are equally large; and in kernels that are aligned, which means padded so that
    their centres stand on the same entries of the input.

    Args:
        template: a variant.
        full: shapes of the supernet's tensors.
    """
    kind = type(template)
    if kind is nn.Linear:
        return kind
    if kind in _BATCH_NORMS:
        return kind, template.eps, template.momentum, template.affine, template.track_running_stats
    if kind in _CONVOLUTIONS:
        per_group = template.in_channels // template.groups, template.out_channels // template.groups
        grouping = 1 if template.groups == 1 else per_group
        borders = tuple(_full_padding(template, full["weight"][2:]))
        return kind, template.stride, template.dilation, template.padding_mode, grouping, borders
    return None


def merged(
    variants: Variants,
    members: Sequence[int],
    weights: Tensor,
    state: Mapping[str, Tensor],
    x: Tensor,
    runner: Callable[[int], nn.Module],
) -> Tensor:
    """``sum_v weight_v pad(M_v(x))`` over variants with one :func:`merge_key`, as one operation.

    Args:
        variants: all variants of the module.
        members: the positions of those to mix.
        weights: ``(len(members),)``.
        state: the supernet's tensors; running statistics are updated in place, as by the largest member.
        x: the input.
        runner: a variant without weights, as it runs now: in ``train()`` or ``eval()``.

    Returns:
        As large as the outputs of the largest members, in the dtype that they have.
    """
    if isinstance(variants.templates[members[0]], _BATCH_NORMS):
        return _merged_batch_norm(variants, members, weights, state, x, runner)
    weight, bias = (_expected(variants, name, members, weights, state) for name in ("weight", "bias"))
    if variants.built_type is nn.Linear:
        return functional.linear(restrict(x, [(-1, weight.shape[1])]), weight, bias)
    return _convolution([variants.templates[k] for k in members], state["weight"].shape[2:], weight, bias, x)


def _expected(
    variants: Variants, name: str, members: Sequence[int], weights: Tensor, state: Mapping[str, Tensor]
) -> Tensor | None:
    """``sum_v weight_v pad(W_v)``, as large as the largest member's; ``None`` if no member has this tensor."""
    shapes = [variants.shapes[k][name] for k in members if name in variants.shapes[k]]
    if not shapes:
        return None
    largest = tuple(map(max, *shapes)) if len(shapes) > 1 else shapes[0]
    tensor = part(variants.templates[members[0]], name, state[name], largest)
    return tensor * variants.survival(name)(members, weights, largest).to(tensor)


def _convolution(
    templates: Sequence[nn.Module], full_kernel: Shape, weight: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    """The convolution with a merged kernel, which stands on the input where each of the templates' does."""
    first, kernel = templates[0], weight.shape[2:]
    x = restrict(x, [(-len(kernel) - 1, max(template.in_channels for template in templates))])
    pads = []
    for i, (left, right) in enumerate(_full_padding(first, full_kernel)):
        start = offset(full_kernel[i], kernel[i], centred=True)
        end = full_kernel[i] - start - kernel[i]
        pads.append((left - first.dilation[i] * start, right - first.dilation[i] * end))
    padding = tuple(left for left, _ in pads)
    if first.padding_mode != "zeros" or any(left != right for left, right in pads):
        mode = "constant" if first.padding_mode == "zeros" else first.padding_mode
        x = functional.pad(x, [side for pair in reversed(pads) for side in pair], mode)
        padding = (0,) * len(kernel)
    groups = max(template.groups for template in templates)
    return _CONVOLUTIONS[type(first)](x, weight, bias, first.stride, padding, first.dilation, groups)


def _full_padding(convolution: nn.Module, full_kernel: Shape) -> list[tuple[int, int]]:
    """Left and right padding per dimension with which the supernet's whole kernel would be aligned.

    Its centre then stands where this convolution's kernel stands, for every entry of the output.
    """
    pads = []
    for i, (full, size) in enumerate(zip(full_kernel, convolution.kernel_size)):
        dilation = convolution.dilation[i]
        if convolution.padding == "same":
            left = dilation * (size - 1) // 2
            right = dilation * (size - 1) - left
        else:
            left = right = 0 if convolution.padding == "valid" else convolution.padding[i]
        start = offset(full, size, centred=True)
        pads.append((left + dilation * start, right + dilation * (full - start - size)))
    return pads


def _merged_batch_norm(
    variants: Variants,
    members: Sequence[int],
    weights: Tensor,
    state: Mapping[str, Tensor],
    x: Tensor,
    runner: Callable[[int], nn.Module],
) -> Tensor:
    largest = max(members, key=lambda k: variants.templates[k].num_features)
    template, tensors = runner(largest), variants.parts(largest, state)
    channels = template.num_features
    survival = variants.survival("channels")(members, weights, (channels,))
    if template.affine:
        tensors |= {n: tensors[n] * survival.to(tensors[n]) for n in ("weight", "bias")}
    y = functional_call(template, tensors, (restrict(x, [(1, channels)]),))
    return y if template.affine else y * survival.to(y).view(channels, *[1] * (y.dim() - 2))

"""Disturbances of a trained network, and its metric under each of them.

========================  ========================================  ==========================================
disturbance               strength                                  for
========================  ========================================  ==========================================
input noise               of the input's standard deviation         inputs that are floating-point numbers
weight noise              of each weight                            every network
weights removed           share of the weights, the smallest first  every network
FGSM                      of the range of the inputs                classification of one input
PGD                       of the range of the inputs                the same; ``full``
blur, contrast, ...       their own                                 images of 1 or 3 channels; ``full``
========================  ========================================  ==========================================

The metric is the task's own, computed by whoever calls (``score``). Every disturbance draws from a generator of its
own: equal networks have equal curves, and the global generators are left as they were.

Sources: Goodfellow et al., Explaining and harnessing adversarial examples (arXiv 1412.6572), section 4; Madry et al.
(arXiv 1706.06083), section 2.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics.functional.classification import multiclass_calibration_error

from nni_gumbel.results.choice import is_accuracy
from nni_gumbel.results.corruptions import CORRUPTIONS
from nni_gumbel.results.example import Example
from nni_gumbel.results.stability import Stability, curve_of

Score = Callable[[Sequence[Any]], float]

_NOISE = (0.2, 0.4, 0.6, 0.8, 1.0)
_WEIGHT_NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
_REMOVED = (0.2, 0.4, 0.6, 0.8, 0.9)
_ATTACK = (4 / 255, 8 / 255, 16 / 255)
_PGD_STEPS = 10
# Each weight noise is drawn so often, and averaged.
_DRAWS = {"cheap": 3, "full": 10}
_BINS = 15

# What the cheap curves cost, in forward passes over the examples: an attack has a gradient, worth three.
CHEAP_PASSES = 1 + len(_NOISE) + _DRAWS["cheap"] * len(_WEIGHT_NOISE) + len(_REMOVED) + 3 + len(_ATTACK) + 1


def measure_stability(
    network: nn.Module, batches: Sequence[Any], score: Score, *, metric: str, minimize: bool, full: bool = False,
    device: torch.device | str = "cpu",
) -> Stability:  # fmt: skip
    """The curves of a trained network.

    Args:
        network: in the place where ``score`` calls it; its weights are disturbed, and then as they were.
        batches: as a loader gives them. Only from ``(inputs, labels)``, with class scores ``(B, K)`` as outputs and
            whole numbers ``(B,)`` as labels, can attacks, corruptions and the calibration be computed.
        score: the metric of the network, in evaluation, on such batches.
        metric: its name.
        minimize: whether a smaller one is better.
        full: all disturbances, and ten draws of the weights' noise instead of three.
        device: where the network is called for attacks.
    """
    begun = time.perf_counter()
    clean, curves, left_out = score(batches), [], []

    def measure(
        name: str, unit: str, strengths: Sequence[float], disturbed: Callable[[float], float]
    ) -> None:
        curves.append(curve_of(name, unit, (0.0, *strengths), (clean, *map(disturbed, strengths))))

    def under(disturbance: Callable[..., AbstractContextManager[None]], *strength: float) -> float:
        with disturbance(network, *strength):
            return score(batches)

    def noise(strength: float) -> float:
        return fmean(
            under(noisy_weights, strength, seed) for seed in range(_DRAWS["full" if full else "cheap"])
        )

    measure("input noise", "standard deviations of the inputs", _NOISE, partial(under, noisy_inputs))
    measure("weight noise", "relative to each weight", _WEIGHT_NOISE, noise)
    measure("weights removed", "share of the weights", _REMOVED, partial(under, without_smallest_weights))
    scores, facts = _class_scores(network, batches, device), {"chance": 0.0}
    if scores is None:
        left_out.append(
            "attacks, corruptions, calibration: the task is no classification of a batch (inputs, labels)"
        )
    else:
        labels, classes = torch.cat([batch[1] for batch in batches]), scores.shape[1]
        facts = {
            "chance": 1 / classes if is_accuracy(metric) else 0.0, "predictions": scores.argmax(1).tolist(),
            "calibration_error": float(multiclass_calibration_error(scores.softmax(1), labels, classes, _BINS)),
        }  # fmt: skip
        inputs = batches[0][0]
        is_one = isinstance(inputs, Tensor) and inputs.is_floating_point()
        if is_one:
            low, high = _range_of(torch.cat([batch[0] for batch in batches]))
            for name, attack in (("FGSM", fgsm), ("PGD", pgd))[: 1 + full]:

                def attacked(strength: float, attack: Callable[..., Tensor] = attack) -> float:
                    limits = [each.to(device) for each in (strength * (high - low), low, high)]
                    there = network.to(device).eval()
                    return score(
                        [(attack(there, x.to(device), y.to(device), *limits).cpu(), y) for x, y in batches]
                    )

                measure(name, "share of the range of the inputs", _ATTACK, attacked)
        else:
            left_out.append("attacks: the network takes other than one tensor of floating-point numbers")
        if full and is_one and inputs.dim() == 4 and inputs.shape[1] in (1, 3):
            width = torch.where(high > low, high - low, torch.ones_like(high))
            for name, unit, strengths, corrupt in CORRUPTIONS:

                def corrupted(strength: float, corrupt: Callable[[Tensor, float], Tensor] = corrupt) -> float:
                    # Images that are corrupted where their values are between 0 and 1.
                    return score(
                        [(low + width * corrupt((x - low) / width, strength), y) for x, y in batches]
                    )

                measure(name, unit, strengths, corrupted)
        elif full:
            left_out.append("corruptions: the inputs are no images of 1 or 3 channels")
    return Stability(
        metric=metric, minimize=minimize, examples=count_examples(batches), curves=curves,
        left_out="; ".join(left_out), seconds=time.perf_counter() - begun, **facts,
    )  # fmt: skip


def count_examples(batches: Sequence[Any]) -> int:
    """How many examples there are in some batches."""
    return sum(len(next(_tensors(batch))) for batch in batches)


def _tensors(batch: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())


# -- any network ---------------------------------------------------------------------------------------------


@contextmanager
def noisy_inputs(network: nn.Module, strength: float, seed: int = 0) -> Iterator[None]:
    """Add Gaussian noise to every floating-point tensor that the network is called with.

    ``x + strength * std(x) * g``, ``g ~ N(0, 1)``, with the standard deviation of the tensor.
    """
    generator = torch.Generator().manual_seed(seed)

    def noisy(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1):
            return value
        noise = torch.randn(value.shape, generator=generator).to(value)
        return value + strength * value.std() * noise

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tree_map(noisy, args), tree_map(noisy, kwargs)

    hook = network.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def noisy_weights(network: nn.Module, strength: float, seed: int = 0) -> Iterator[None]:
    """Multiply every weight by ``1 + strength * g``, ``g ~ N(0, 1)``, and undo it afterwards."""
    generator = torch.Generator().manual_seed(seed)
    with _changed(list(network.parameters())) as weights:
        for weight in weights:
            weight.mul_(1 + strength * torch.randn(weight.shape, generator=generator).to(weight))
        yield


@contextmanager
def without_smallest_weights(network: nn.Module, share: float) -> Iterator[None]:
    """Set the given share of the weights to 0, the smallest in magnitude of all layers, and undo it afterwards.

    Biases and the scales of normalisations, tensors of one dimension, are no part of it.
    """
    with _changed([each for each in network.parameters() if each.dim() > 1]) as weights:
        sizes = torch.cat([weight.abs().flatten() for weight in weights]) if weights else torch.empty(0)
        removed = round(share * len(sizes))
        if removed:
            largest = sizes.kthvalue(removed).values
            for weight in weights:
                weight.mul_(weight.abs() > largest)
        yield


@contextmanager
def _changed(parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield [parameter.data for parameter in parameters]
    finally:
        for parameter, before in zip(parameters, kept):
            parameter.data.copy_(before)


# -- classification ------------------------------------------------------------------------------------------


def fgsm(network: nn.Module, inputs: Tensor, labels: Tensor, epsilon: Any, low: Any, high: Any) -> Tensor:
    """The fast gradient sign method: one step of length ε that raises the cross-entropy.

    ``clamp(x + ε sign(∇_x CE(network(x), y)), low, high)``

    Args:
        network: returns class scores ``(B, K)``.
        inputs: ``(B, ...)``, float.
        labels: ``(B,)``, int64.
        epsilon, low, high: numbers, or tensors that broadcast to the inputs, in their unit.

    Source: Goodfellow et al. (arXiv 1412.6572), section 4.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(network(inputs), labels), inputs)
    return torch.clamp(inputs.detach() + epsilon * gradient.sign(), low, high)


def pgd(
    network: nn.Module, inputs: Tensor, labels: Tensor, epsilon: Any, low: Any, high: Any, steps: int = _PGD_STEPS
) -> Tensor:  # fmt: skip
    """Projected gradient descent: as :func:`fgsm`, in steps of ``2.5 ε / steps``, each brought back to within ε.

    It starts at the inputs, without noise. Source: Madry et al. (arXiv 1706.06083), section 2.1.
    """
    found = inputs
    for _ in range(steps):
        found = fgsm(network, found, labels, 2.5 / steps * epsilon, low, high)
        found = torch.clamp(found, inputs - epsilon, inputs + epsilon)
    return found


def _class_scores(network: nn.Module, batches: Sequence[Any], device: torch.device | str) -> Tensor | None:
    """``(N, K)`` on the CPU; ``None`` where the batches have another form, or the network returns something else."""
    first = batches[0]
    if not (isinstance(first, (tuple, list)) and len(first) == 2 and isinstance(first[1], Tensor)):
        return None
    labels = first[1]
    if labels.dim() != 1 or labels.is_floating_point() or next(_tensors(first[0]), None) is None:
        return None
    network, found = network.to(device).eval(), []
    with torch.no_grad():
        for inputs, _ in batches:
            scores = Example.of(inputs).map(lambda tensor: tensor.to(device))(network)
            if not (isinstance(scores, Tensor) and scores.dim() == 2):
                return None
            found.append(scores.cpu())
    scores = torch.cat(found)
    return scores if len(found[0]) == len(labels) and scores.shape[1] > max(1, int(labels.max())) else None


def _range_of(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the greatest value, of each channel if there are several dimensions."""
    if inputs.dim() < 3:
        return inputs.min(), inputs.max()
    by_channel = inputs.transpose(0, 1).flatten(1)
    shape = (1, -1, *(1,) * (inputs.dim() - 2))
    return by_channel.amin(1).view(shape), by_channel.amax(1).view(shape)

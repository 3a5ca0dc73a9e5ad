"""The second-order structure gradient of DARTS: through one unrolled step of the weights.

The structure is judged by the weights it would lead to, ``w' = w - xi grad_w L_train(w, alpha)``. With
``u = xi grad_w' L_val(w', alpha)`` the gradient of ``L_val(w', alpha)`` with respect to the logits ``alpha`` is

    ``grad_alpha L_val(w', alpha) - (grad_alpha L_train(w+, alpha) - grad_alpha L_train(w-, alpha)) / (2 eps)``,
    ``w+- = w +- eps u``,   ``eps = 0.01 / |u|``.

The last term is the product of ``u`` with the mixed second derivative, as a central difference. Source: Liu,
Simonyan, Yang, DARTS (arXiv 1806.09055), equations 7 and 8; there ``xi`` is one number and stands outside.
One joint sample is used throughout, and the same random numbers (dropout): of two passes with numbers of their
own the difference would be noise, divided by ``2 eps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nni_gumbel.search.randomness import unchanged_randomness

_RADIUS = 0.01

Gradients = Callable[[Tensor], list[Tensor]]


def unrolled_gradient(
    train_loss: Callable[[], Tensor],
    validation_loss: Callable[[], Tensor],
    weights: Sequence[tuple[nn.Parameter, float]],
    network: nn.Module,
    logits_gradients: Gradients,
    loss_scale: float = 1.0,
) -> list[Tensor]:
    """The gradient of the validation loss after a step of the weights, with respect to the logits.

    The weights and the buffers of the network are afterwards what they were.

    Args:
        train_loss: computes ``L_train`` at the current weights and the current joint sample.
        validation_loss: the same for ``L_val``.
        weights: the parameters that are trained, each with its learning rate ``xi``.
        network: the supernet, whose buffers (running statistics) the extra passes must not change.
        logits_gradients: the gradient of a scalar with respect to each label's logits; must keep the graph.
        loss_scale: losses are multiplied by it before gradients of weights are taken, which are divided by it:
            gradients in fp16 vanish otherwise.

    Returns:
        One gradient per label, in the order of ``logits_gradients``; NaN where a gradient of the weights
        is not finite, as that of a scaled loss may be in fp16.
    """
    parameters = [parameter for parameter, _ in weights]
    rates = [rate for _, rate in weights]

    def weight_gradients(loss: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            loss * loss_scale, parameters, retain_graph=True, materialize_grads=True
        )
        return [gradient / loss_scale for gradient in gradients]

    def overflowed(loss: Tensor) -> list[Tensor]:
        return [gradient * math.nan for gradient in logits_gradients(loss)]

    with _buffers_kept(network):
        with unchanged_randomness([]):
            loss = train_loss()
        step = [-rate * g for rate, g in zip(rates, weight_gradients(loss))]
        if not math.isfinite(_norm(step)):
            return overflowed(loss)
        with _shifted(parameters, step, 1.0), unchanged_randomness([]):
            loss = validation_loss()
            direct = logits_gradients(loss)
            direction = [rate * g for rate, g in zip(rates, weight_gradients(loss))]
        norm = _norm(direction)
        if norm == 0:
            return direct
        if not math.isfinite(norm):
            return overflowed(loss)
        unit = [u / norm for u in direction]
        with _shifted(parameters, unit, _RADIUS), unchanged_randomness([]):
            above = logits_gradients(train_loss())
        with _shifted(parameters, unit, -_RADIUS):
            below = logits_gradients(train_loss())
    return [d - (a - b) * (norm / (2 * _RADIUS)) for d, a, b in zip(direct, above, below)]


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.sqrt(sum(part.double().square().sum() for part in parts)))


@contextmanager
def _shifted(
    parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], factor: float
) -> Iterator[None]:
    """The weights moved along a direction, and exactly where they were afterwards."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, move in zip(parameters, direction):
            parameter.add_(move, alpha=factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before):
                parameter.copy_(value)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)

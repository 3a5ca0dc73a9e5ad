"""The training of one network by itself: what the proxy measures and the multi-trial strategies go by."""

from __future__ import annotations

from typing import Any

import torch
from halves import HalvedImages
from torch import nn
from torch.nn.functional import cross_entropy

CLIP = 5.0


def train(
    network: nn.Module,
    data: HalvedImages,
    *,
    epochs: float,
    learning_rate: float,
    weight_decay: float = 5e-4,
    smoothing: float = 0.0,
) -> dict[str, float]:
    """Train a network with SGD under a one-cycle rate, then judge it on the other half of the images.

    Args:
        network: maps images to the logits of classes.
        data: the images.
        epochs: passes over the training half, also parts of one; at least one step.
        learning_rate: the largest one.
        weight_decay: of all weights.
        smoothing: of the labels, in [0, 1).

    Returns:
        ``val_acc`` in [0, 1], ``val_loss``, ``train_loss`` (mean of all steps), ``last_train_loss`` (mean of the last
        tenth).
    """
    loader = data.train_dataloader()
    steps = max(1, round(epochs * len(loader)))
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(),
        learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
        foreach=True,
    )
    # A first phase of no length would be divided by.
    rise = max(0.2, 2.5 / (steps + 1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 2, pct_start=min(rise, 0.9)
    )
    losses: list[float] = []
    batches = iter(loader)
    for _ in range(steps):
        try:
            x, y = next(batches)
        except StopIteration:
            batches = iter(loader)
            x, y = next(batches)
        loss = cross_entropy(
            network(x.contiguous(memory_format=torch.channels_last)), y, label_smoothing=smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return {
        **judged(network, data),
        "train_loss": sum(losses) / steps,
        "last_train_loss": sum(last) / len(last),
    }


@torch.no_grad()
def judged(network: nn.Module, data: HalvedImages) -> dict[str, Any]:
    """``val_acc`` in [0, 1] and ``val_loss`` of a trained network on the other half of the images."""
    network.eval()
    outputs, labels = zip(*((network(x), y) for x, y in data.in_order()))
    output, label = torch.cat(outputs), torch.cat(labels)
    return {
        "val_acc": float((output.argmax(1) == label).float().mean()),
        "val_loss": float(cross_entropy(output, label)),
    }

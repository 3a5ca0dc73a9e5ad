"""The structure's descent if the weights were perfect for every cell: losses are read from the table."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from runs import Row
from table import Table
from torch import Tensor

from nni_gumbel.relaxation.gumbel import relaxed_categorical
from nni_gumbel.relaxation.temperature import linear, progress_of, temperature_at


def descend(
    losses: Tensor,
    settings: dict[str, Any],
    prices: Tensor,
    number: int,
    steps: int,
    noise: float,
    bias: Any = None,
) -> Tensor:
    """Let the logits of many runs descend, as the structure step moves them.

    Args:
        losses: ``(5, 5, 5, 5, 5, 5)`` float32, of every cell.
        settings: of a search, all of them.
        prices: ``(6, 5)``, what an operation on an edge adds to the cost, relative to the largest cell's.
        number: of runs.
        steps: of the structure.
        noise: standard deviation of what is added to every gradient.
        bias: ``(S, T, 6, 5)``, what is added at ``T`` stages of equal length, for each of ``S`` kinds of runs.

    Returns:
        ``(number, 6, 5)``, the logits at the end.
    """
    logits = torch.zeros(number, 6, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], settings["arc_learning_rate"], betas=(0.5, 0.999))
    if bias is not None:
        bias = torch.as_tensor(bias, dtype=torch.float32)[torch.arange(number) % len(bias)]
    for step in range(steps):
        progress = progress_of(step, steps)
        temperature = temperature_at(
            progress, *(settings[f"temperature_{name}"] for name in ("start", "end", "schedule"))
        )
        entropy_weight = linear(settings["entropy_weight_start"], settings["entropy_weight_end"], progress)
        probabilities = logits.softmax(-1)
        entropy = -(probabilities * logits.log_softmax(-1)).sum(-1) / math.log(logits.shape[-1])
        objective = entropy_weight * entropy.mean(-1)
        objective = objective + settings["cost_weight"] * (probabilities * prices).sum((-2, -1))
        without_noise = settings["estimator"] == "probabilities"
        weights = probabilities if without_noise else relaxed_categorical(logits, temperature)
        objective = objective + extended(losses, weights)
        (logits.grad,) = torch.autograd.grad(objective.sum(), logits)
        if noise:
            logits.grad += noise * torch.randn_like(logits)
        if bias is not None:
            logits.grad += bias[:, min(int(progress * bias.shape[1]), bias.shape[1] - 1)]
        optimizer.step()
    return logits.detach()


def extended(losses: Tensor, weights: Tensor) -> Tensor:
    """The multilinear extension of a table: its mean, if every edge draws its operation by the weights.

    Args:
        losses: ``(5, 5, 5, 5, 5, 5)``.
        weights: ``(R, 6, 5)``; rows sum to 1.

    Returns:
        ``(R,)``.
    """
    edges, operations = weights.shape[1:]
    total = weights[:, 0] @ losses.reshape(operations, -1)
    for edge in range(1, edges):
        total = (weights[:, edge, None] @ total.reshape(len(weights), operations, -1)).squeeze(1)
    return total.squeeze(-1)


def excess_gradients(rows: list[Row], way: str, judge: Table) -> np.ndarray:
    """``(S, T, 6, 5)``: the recorded gradients of a way, by seed and stage, less that of the table.

    Stages are of equal length; a stage has the gradient that was recorded at its middle.
    """
    own = [row for row in rows if json.loads(row["job"])["way"] == way]
    stages = 64
    recorded = []
    for row in own:
        measured = json.loads(row["measurements"])
        ends = np.array([one["step"] for one in measured])
        middles = (np.arange(stages) + 0.5) / stages * ends[-1]
        recorded.append([measured[k]["gradient"] for k in np.searchsorted(ends, middles)])
    logits = torch.zeros(1, 6, 5, requires_grad=True)
    losses = torch.from_numpy((100 - judge.test) / 100).float()
    (of_table,) = torch.autograd.grad(extended(losses, logits.softmax(-1)).sum(), logits)
    return np.array(recorded) - of_table.numpy()

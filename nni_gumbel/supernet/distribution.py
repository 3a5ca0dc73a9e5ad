"""The distribution over networks, and the joint sample that a supernet computes with.

:class:`Distribution` is the only holder of logits: one vector per NNI label, and one categorical
variable behind each. A step draws **one joint sample** from it; every module that carries a label
reads the same weights, so two modules that share a label always agree. What is reported -
probabilities, entropy, mode - is a function of the logits alone and carries no sampling noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation.gumbel import relaxed_categorical


class JointSample:
    """The weights that every module of a supernet currently computes with.

    A plain object that the modules share, not a module: it belongs to the distribution, and must
    appear neither in a state dict nor among a module's children.
    """

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}
        self._active: dict[str, list[int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> JointSample:
        # A copy of a supernet (NNI's freeze makes one) follows the same distribution.
        return self

    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Make ``weights`` (``(K,)`` per label, on the simplex) the current sample."""
        self._weights = dict(weights)
        # Read once a sample, all labels together: on a GPU each read waits for the device.
        nonzero = iter(torch.cat([w.detach() for w in weights.values()]).ne(0).tolist())
        self._active = {label: [k for k in range(len(w)) if next(nonzero)] for label, w in weights.items()}

    def weights(self, label: str) -> Tensor:
        """``(K,)``, the weight of each candidate of ``label``."""
        return self._weights[label]

    def active(self, label: str) -> list[int]:
        """The candidates of ``label`` whose weight is not exactly 0: those that have to run."""
        return self._active[label]


class Distribution(nn.Module):
    """One independent categorical variable per label of a space.

    Args:
        space: an NNI model space, not yet mutated.

    Raises:
        UsageError: the space has no choice at all, or one that cannot be relaxed.
    """

    def __init__(self, space: ModelSpace) -> None:
        super().__init__()
        variables = space.simplify()
        if not variables:
            raise UsageError(
                f"space {type(space).__name__!r}: it has no choice, so there is nothing to search; "
                "add a LayerChoice or an InputChoice"
            )
        for label, variable in variables.items():
            _check_relaxable(label, variable)
        self.variables: dict[str, Categorical | CategoricalMultiple] = dict(variables)
        self.joint_sample = JointSample()
        # A list, not a ParameterDict: labels may contain dots, names of parameters may not.
        self._logits = nn.ParameterList(nn.Parameter(torch.zeros(len(v.values))) for v in variables.values())
        self.use_probabilities()

    @property
    def logits(self) -> dict[str, nn.Parameter]:
        """``(K,)`` float32 per label: unnormalised log-probabilities of its candidates."""
        return dict(zip(self.variables, self._logits))

    def sample(self, temperature: float) -> None:
        """Draw one relaxed joint sample and make it the current one.

        Args:
            temperature: > 0, see :func:`~nni_gumbel.relaxation.gumbel.relaxed_categorical`.
        """
        self.joint_sample.set(
            {label: relaxed_categorical(logits, temperature) for label, logits in self.logits.items()}
        )

    def use_probabilities(self) -> None:
        """Make the probabilities themselves the current weights: the noise-free mixture."""
        self.joint_sample.set({label: p.detach() for label, p in self.probs().items()})

    def use_architecture(self, architecture: Mapping[str, Any]) -> None:
        """Make a single network the current sample: one-hot weights at an NNI sample."""
        index = self.indices(architecture)
        self.joint_sample.set(
            {
                label: nn.functional.one_hot(torch.tensor(index[label]), len(logits)).to(logits)
                for label, logits in self.logits.items()
            }
        )

    def probs(self) -> dict[str, Tensor]:
        """``(K,)`` per label, ``softmax(logits)``; differentiable."""
        return {label: torch.softmax(logits, dim=-1) for label, logits in self.logits.items()}

    def entropy(self) -> Tensor:
        """Scalar in [0, 1]: mean over labels of the entropy relative to the uniform one; differentiable.

        ``mean_label( -sum_k p_k log p_k / log K )``; a label with a single candidate counts as 0.
        """
        terms = []
        for logits in self.logits.values():
            log_p = torch.log_softmax(logits, dim=-1)
            terms.append(-(log_p.exp() * log_p).sum() / math.log(max(len(logits), 2)))
        return torch.stack(terms).mean()

    def log_prob(self, architecture: Mapping[str, Any]) -> Tensor:
        """Scalar: log-probability of an NNI sample that names every label; differentiable."""
        index = self.indices(architecture)
        return torch.stack(
            [torch.log_softmax(logits, dim=-1)[index[label]] for label, logits in self.logits.items()]
        ).sum()

    def mode(self) -> dict[str, Any]:
        """The most probable network, as an NNI sample: one entry per label."""
        mode = {}
        for label, variable in self.variables.items():
            value = variable.values[int(self.logits[label].detach().argmax())]
            mode[label] = [value] if isinstance(variable, CategoricalMultiple) else value
        return mode

    def indices(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Position of the chosen candidate of every label of an NNI sample.

        Raises:
            UsageError: the sample lacks a label, or names a candidate that is not there.
        """
        index = {}
        for label, variable in self.variables.items():
            values, value = list(variable.values), architecture.get(label)
            if (
                isinstance(variable, CategoricalMultiple)
                and isinstance(value, (list, tuple))
                and len(value) == 1
            ):
                value = value[0]
            if value not in values:
                raise UsageError(
                    f"choice {label!r}: {value!r} is none of its candidates; give one of {values}"
                )
            index[label] = values.index(value)
        return index


def _check_relaxable(label: str, variable: Any) -> None:
    if isinstance(variable, CategoricalMultiple):
        if variable.n_chosen != 1:
            raise UsageError(
                f"choice {label!r}: n_chosen={variable.n_chosen} cannot be relaxed yet; give n_chosen=1"
            )
    elif not isinstance(variable, Categorical):
        raise UsageError(
            f"choice {label!r}: {type(variable).__name__} is not discrete and cannot be relaxed; give nni.choice"
        )

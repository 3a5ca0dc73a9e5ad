"""The distribution over networks.

:class:`Distribution` is the only holder of logits: one vector per NNI label, and one random variable
behind each, whose law (:mod:`nni_gumbel.relaxation.law`) follows from the kind of choice. A step draws
one joint sample (:mod:`~nni_gumbel.supernet.joint_sample`) from it. What is reported - probabilities,
entropy, mode - is a function of the logits alone and carries no sampling noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation import categorical, gates, subset
from nni_gumbel.relaxation.estimators import estimate
from nni_gumbel.relaxation.law import Law
from nni_gumbel.results.space import variables_of
from nni_gumbel.supernet.joint_sample import JointSample, nonzero

# The logit of a candidate that is decided: its probability differs from 0 or 1 by 1e-13, and no sample sees that.
SETTLED = 30.0
# A smaller expected weight is that of a rejected candidate.
NEGLIGIBLE = 1e-9


class Distribution(nn.Module):
    """One independent random variable per label of a space.

    A copy shares nothing with the original: to copy a supernet with its distribution, copy the two together.

    Args:
        space: an NNI model space, not yet mutated.

    Raises:
        UsageError: the space has no choice at all, or one that cannot be relaxed.
    """

    def __init__(self, space: ModelSpace) -> None:
        super().__init__()
        variables = variables_of(space)
        if not variables:
            raise UsageError(
                f"space {type(space).__name__!r}: it has no choice, so there is nothing to search; "
                "add a LayerChoice or an InputChoice"
            )
        self.variables: dict[str, Categorical | CategoricalMultiple] = dict(variables)
        self.laws: dict[str, Law] = {label: law_of(label, variable) for label, variable in variables.items()}
        # Variables of one law are computed together: one operation serves all of them.
        self._labels_of: dict[Law, list[str]] = {}
        for label, law in self.laws.items():
            self._labels_of.setdefault(law, []).append(label)
        self.joint_sample = JointSample()
        # A list, not a ParameterDict: labels may contain dots, names of parameters may not.
        self._logits = nn.ParameterList(nn.Parameter(torch.zeros(law.size)) for law in self.laws.values())
        self.refresh_active()
        with torch.no_grad():
            self.use_probabilities()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distribution:
        super()._apply(fn, recurse)
        check_float64(self.device)
        return self

    @property
    def logits(self) -> dict[str, nn.Parameter]:
        """``(n,)`` float32 per label, the natural parameters of its law."""
        # Asked for many times a step: a ParameterList takes its time to name its entries.
        return dict(zip(self.variables, self._logits._parameters.values()))

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return next(iter(self.logits.values())).device

    # -- what is decided -------------------------------------------------------------------------

    def settle_at(self, architecture: Mapping[str, Any]) -> None:
        """Decide every choice for good as an NNI sample has it that names every label; nothing else runs any more."""
        self._put_at(architecture)
        self.refresh_active()

    @contextmanager
    def certain_of(self, architecture: Mapping[str, Any]) -> Iterator[None]:
        """Have all probability at one network for a while: an NNI sample that names every label."""
        kept = [logits.detach().clone() for logits in self._logits]
        self._put_at(architecture)
        try:
            yield
        finally:
            with torch.no_grad():
                for logits, before in zip(self._logits, kept):
                    logits.copy_(before)

    @torch.no_grad()
    def _put_at(self, architecture: Mapping[str, Any]) -> None:
        for label, outcome in self._outcomes(architecture).items():
            self.logits[label].copy_(SETTLED * (2 * outcome - 1))

    @torch.no_grad()
    def refresh_active(self) -> None:
        """See anew which candidates have to run, after the logits were set from outside."""
        self._all_active = nonzero({label: probs > NEGLIGIBLE for label, probs in self.probs().items()})

    # -- the current sample ----------------------------------------------------------------------

    def sample(self, temperature: float, estimator: str = "soft", uniform: bool = False) -> None:
        """Draw one joint sample and make it the current one.

        Where gradients are recorded, the weights of the sample carry them to the logits.

        Args:
            temperature: > 0, dimensionless.
            estimator: see :mod:`nni_gumbel.relaxation.estimators`; all but ``soft`` draw single networks.
            uniform: as if all logits were 0: every outcome of a choice is equally likely; no gradient.
        """
        draws = self._per_label(
            lambda law, logits: estimate(
                law, torch.zeros_like(logits) if uniform else logits, temperature, estimator
            )
        )
        # Of a hard draw with derivatives all candidates run: those of weight 0 have a derivative, too.
        is_network = estimator != "soft" and not any(draw.requires_grad for draw in draws.values())
        self.joint_sample.set(draws, None if is_network else self._all_active, is_network)

    def use_probabilities(self) -> None:
        """Make the probabilities themselves the current weights: the noise-free mixture."""
        self.joint_sample.set(self._per_label(lambda law, logits: law.exact(logits)), self._all_active)

    def use_architecture(self, architecture: Mapping[str, Any]) -> None:
        """Make a single network, an NNI sample that names every label, the current sample: weights 0 and 1."""
        outcomes = self._outcomes(architecture)
        draws = {label: self.laws[label].hard(outcome) for label, outcome in outcomes.items()}
        active = {label: list(self.members(label, architecture[label])) for label in draws}
        self.joint_sample.set(draws, active, is_network=True)

    # -- what is reported ------------------------------------------------------------------------

    def probs(self) -> dict[str, Tensor]:
        """``(n,)`` per label, the probability that each candidate is chosen; differentiable."""
        return self._per_label(lambda law, logits: law.probs(logits))

    def outcome_probs(self, labels: Iterable[str]) -> dict[str, Tensor]:
        """``(outcomes,)`` per label, the probability of each outcome of its law; differentiable.

        Of a choice of one these are its :meth:`probs`. Never empty: without a label it has the first one's.
        """
        labels = tuple(labels) or tuple(self.laws)[:1]
        return {label: self.laws[label].outcome_probs(self.logits[label]) for label in labels}

    def entropy(self) -> Tensor:
        """Scalar in [0, 1]: mean over labels of the entropy relative to the uniform one; differentiable.

        ``mean_label( H / log(number of outcomes) )``; a label with a single outcome counts as 0.
        """
        relative = self._per_label(lambda law, logits: law.entropy(logits) / math.log(max(law.outcomes, 2)))
        return torch.stack([*relative.values()]).mean()

    def log_prob(self, architecture: Mapping[str, Any]) -> Tensor:
        """Scalar: log-probability of an NNI sample that names every label; differentiable."""
        outcomes, logits = self._outcomes(architecture), self.logits
        return sum(law.log_prob(logits[label], outcomes[label]) for label, law in self.laws.items())

    def mode(self) -> dict[str, Any]:
        """The most probable network, as an NNI sample: one entry per label."""
        return {
            label: self.value(label, law.mode(self.logits[label].detach()))
            for label, law in self.laws.items()
        }

    # -- NNI's samples and outcomes ----------------------------------------------------------------

    def value(self, label: str, outcome: Tensor) -> Any:
        """What an NNI sample says for an outcome, ``(n,)`` of 0 and 1: a value, or a list for an input choice."""
        return self.value_of(label, tuple(i for i, is_in in enumerate(outcome.tolist()) if is_in))

    def uniform_sample(self, generator: torch.Generator) -> dict[str, Any]:
        """An NNI sample of every label, its outcomes equally likely."""
        return {
            label: self.value(label, law.draw(torch.zeros(law.size), generator))
            for label, law in self.laws.items()
        }

    def value_of(self, label: str, members: tuple[int, ...]) -> Any:
        """What an NNI sample says for an outcome, the ascending indices of its candidates."""
        variable = self.variables[label]
        chosen = [variable.values[i] for i in members]
        return chosen if isinstance(variable, CategoricalMultiple) else chosen[0]

    def outcome(self, label: str, value: Any) -> Tensor:
        """``(n,)`` of 0 and 1 in the logits' dtype: the :meth:`members` for an NNI sample's value."""
        outcome = torch.zeros_like(self.logits[label], requires_grad=False)
        outcome[list(self.members(label, value))] = 1
        return outcome

    def outcome_index(self, label: str, value: Any) -> int:
        """The position among :meth:`outcome_probs` of the :meth:`members` for an NNI sample's value."""
        return self.laws[label].index_of(self.members(label, value))

    def members(self, label: str, value: Any) -> tuple[int, ...]:
        """The outcome that an NNI sample's value stands for: the ascending indices of its candidates.

        Raises:
            UsageError: the value is none of the candidates, or not the right number of them.
        """
        law, variable = self.laws[label], self.variables[label]
        candidates = list(variable.values)
        is_list = isinstance(variable, CategoricalMultiple) and isinstance(value, (list, tuple))
        chosen = list(value) if is_list else [value]
        if not all(v in candidates for v in chosen) or (law.least and not chosen):
            raise UsageError(
                f"choice {label!r}: {value!r} is none of its candidates; give one of {candidates}"
            )
        members = tuple(sorted({*map(candidates.index, chosen)}))
        if len(members) != len(chosen) or not law.least <= len(members) <= law.most:
            number = f"{law.least}" if law.least == law.most else f"{law.least} to {law.most}"
            raise UsageError(f"choice {label!r}: {value!r} does not choose {number} of {candidates}")
        return members

    def _outcomes(self, architecture: Mapping[str, Any]) -> dict[str, Tensor]:
        missing = [label for label in self.variables if label not in architecture]
        if missing:
            raise UsageError(
                f"choice {missing[0]!r}: the sample does not name it; give a value for every choice"
            )
        return {label: self.outcome(label, architecture[label]) for label in self.variables}

    def _per_label(self, function: Callable[[Law, Tensor], Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        logits = self.logits
        for law, labels in self._labels_of.items():
            together = torch.stack([logits[label] for label in labels])
            found.update(zip(labels, function(law, together).unbind()))
        return {label: found[label] for label in self.laws}


def check_float64(device: torch.device) -> None:
    """Refuse, as a ``UsageError``, a device that has no float64, in which all laws are computed."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise UsageError(
            f"device {str(device)!r}: the logits of a search are computed with in float64, which it does not "
            "have; give accelerator: cpu, or a device that has it"
        ) from error


def law_of(label: str, variable: Any) -> Law:
    """The law of an NNI variable; a ``UsageError`` if it is not discrete."""
    if not isinstance(variable, (Categorical, CategoricalMultiple)):
        raise UsageError(
            f"choice {label!r}: {type(variable).__name__} is not discrete and cannot be relaxed; give nni.choice"
        )
    size = len(variable.values)
    number = variable.n_chosen if isinstance(variable, CategoricalMultiple) else 1
    if number is None:
        # An optional input: NNI's frozen module gives None without it.
        return gates.OpenSubset(size, least=0 if size == 1 else 1)
    return categorical.Categorical(size) if number == 1 else subset.KSubset(size, number)

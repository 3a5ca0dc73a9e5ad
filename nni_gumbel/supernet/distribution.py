"""The distribution over networks, and the joint sample that a supernet computes with.

:class:`Distribution` is the only holder of logits: one vector per NNI label, and one random variable
behind each, whose law (:mod:`nni_gumbel.relaxation.law`) follows from the kind of choice. A step draws
**one joint sample** from it; every module that carries a label reads the same weights, so two modules
that share a label always agree. What is reported - probabilities, entropy, mode - is a function of the
logits alone and carries no sampling noise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_gumbel.errors import UsageError
from nni_gumbel.relaxation import categorical, gates, subset
from nni_gumbel.relaxation.estimators import check_supported, estimate
from nni_gumbel.relaxation.gumbel import relaxed_categorical
from nni_gumbel.relaxation.host import HostCopy, to_device
from nni_gumbel.relaxation.law import Law, check_temperature
from nni_gumbel.relaxation.partial import draw_pair, estimate_sampled, tempered, weights_of_pair
from nni_gumbel.results.space import variables_of

# Per row of a draw, the candidates that have to run; a draw of weights has one row, one of slots has k.
Rows = list[list[int]]


def nonzero_rows(draws: Mapping[str, Tensor]) -> dict[str, Rows]:
    """Per label and row of its draw, the candidates whose weight is not 0; read from the device, all together."""
    flat = torch.cat([draw.detach().flatten() for draw in draws.values()])
    nonzero = iter(flat.ne(0).tolist())
    return {
        label: [
            [k for k in range(draw.shape[-1]) if next(nonzero)] for _ in range(draw.numel() // draw.shape[-1])
        ]
        for label, draw in draws.items()
    }


class JointSample:
    """The weights that every module of a supernet currently computes with.

    A plain object that the modules share, not a module: it belongs to the distribution, and must
    appear neither in a state dict nor among a module's children.

    Attributes:
        is_network: whether the sample is a single network, its weights the constants 0 and 1: what is alone active
            then needs no multiplication, which would store one more tensor for the backward pass.
    """

    def __init__(self) -> None:
        self._draws: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._active: dict[str, list[int]] = {}
        self._active_slots: dict[str, Rows] = {}
        self.is_network = False

    def __deepcopy__(self, memo: dict[int, Any]) -> JointSample:
        # A copy of a supernet (NNI's freeze makes one) follows the same distribution.
        return self

    def set(
        self,
        draws: Mapping[str, Tensor],
        rows: Mapping[str, Rows] | None = None,
        is_network: bool = False,
    ) -> None:
        """Make draws the current sample.

        Args:
            draws: per label ``(n,)`` weights or, for a choice of k of n inputs, ``(k, n)`` slots.
            rows: per label and row of its draw, the candidates that have to run. Left out, they are those whose
                weight is not 0, for which the draws are read: on a GPU that waits for the device.
            is_network: whether every weight is the constant 0 or 1.
        """
        self._draws = dict(draws)
        self._weights = {label: draw.sum(0) if draw.dim() == 2 else draw for label, draw in draws.items()}
        self._active_slots = dict(nonzero_rows(draws) if rows is None else rows)
        self._active = {
            label: rows[0] if len(rows) == 1 else sorted(set().union(*rows))
            for label, rows in self._active_slots.items()
        }
        self.is_network = is_network

    def weights(self, label: str) -> Tensor:
        """``(n,)``, the weight of each candidate of ``label``."""
        return self._weights[label]

    def draw(self, label: str) -> Tensor:
        """What was set for ``label``: ``(n,)`` weights or ``(k, n)`` slots."""
        return self._draws[label]

    def active(self, label: str) -> list[int]:
        """The candidates of ``label`` that have to run; one that is not among them must not."""
        return self._active[label]

    def slots(self, label: str) -> list[tuple[list[int], Tensor]]:
        """For a choice of k of n inputs, per place j: the inputs that may stand there, and ``(n,)`` weights.

        The j-th of the chosen inputs, in the order of the inputs, stands at place j.
        """
        return list(zip(self._active_slots[label], self._draws[label]))


class Distribution(nn.Module):
    """One independent random variable per label of a space.

    Copies of a distribution and of its supernet share the joint sample: a draw from one is a draw for all.

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
        self.laws: dict[str, Law] = {label: _law_of(label, variable) for label, variable in variables.items()}
        # Variables of one law are computed together: one operation serves all of them.
        self._labels_of: dict[Law, list[str]] = {}
        for label, law in self.laws.items():
            self._labels_of.setdefault(law, []).append(label)
        self._copies: deque[HostCopy] = deque(maxlen=2)
        self.joint_sample = JointSample()
        # A list, not a ParameterDict: labels may contain dots, names of parameters may not.
        self._logits = nn.ParameterList(nn.Parameter(torch.zeros(law.size)) for law in self.laws.values())
        with torch.no_grad():
            # At uniform logits everything that is possible has a probability.
            self._all_rows = nonzero_rows(self._per_label(lambda law, logits: law.exact(logits)))
            self.use_probabilities()

    @property
    def logits(self) -> dict[str, nn.Parameter]:
        """``(n,)`` float32 per label, the natural parameters of its law."""
        # Asked for many times a step: a ParameterList takes its time to name its entries.
        return dict(zip(self.variables, self._logits._parameters.values()))

    # -- the current sample ----------------------------------------------------------------------

    def sample(self, temperature: float, estimator: str = "soft") -> None:
        """Draw one joint sample and make it the current one.

        Where gradients are recorded, the weights of the sample carry them to the logits.

        Args:
            temperature: > 0, dimensionless.
            estimator: see :mod:`nni_gumbel.relaxation.estimators`; all but ``soft`` draw single networks.
        """
        self._draw(self.logits, temperature, estimator)

    def sample_uniform(self, temperature: float, estimator: str = "soft") -> None:
        """Draw as if all logits were 0: every outcome of a choice is equally likely."""
        self._draw(self._zeros(), temperature, estimator)

    def sample_network(self, temperature: float, uniform: bool = False) -> None:
        """Draw a single network, from which no gradient reaches the logits, and make it the current sample.

        Args:
            temperature: > 0, of :func:`~nni_gumbel.relaxation.partial.tempered`: the networks are near uniform while
                it is high, and follow the law itself from 1 on.
            uniform: every network is equally likely instead.
        """
        if uniform:
            logits = {label: torch.zeros_like(own, device="cpu") for label, own in self.logits.items()}
        else:
            logits = self._on_host(self.logits)
        tempered_logits = {label: tempered(tensor, temperature) for label, tensor in logits.items()}
        self._use_outcomes(self._drawn(tempered_logits))

    def sample_pairs(self, temperature: float) -> None:
        """Draw two candidates of every choice of one, and a soft sample of every other choice.

        See :func:`~nni_gumbel.relaxation.partial.weights_of_pair`; the other candidates do not run.

        Args:
            temperature: > 0, dimensionless.
        """
        on_host, logits = self._on_host(self.logits), self.logits
        draws, pairs, noises = {}, {}, {}
        for label, law in self.laws.items():
            if isinstance(law, categorical.Categorical):
                pairs[label], noises[label] = draw_pair(on_host[label], temperature)
            else:
                draws[label] = estimate(law, logits[label], temperature)
        moved = self._on_device(pairs), self._on_device(noises)
        for label in pairs:
            draws[label] = weights_of_pair(logits[label], temperature, *(of[label] for of in moved))
        rows = self._all_rows | (nonzero_rows(pairs) if pairs else {})
        self.joint_sample.set({label: draws[label] for label in self.laws}, rows)

    def sample_alone(self, temperature: float, estimator: str) -> None:
        """Draw a single network whose weights have derivatives, as the estimator has them; no other candidate runs.

        See :func:`~nni_gumbel.relaxation.partial.estimate_sampled`, also for what is lost with the others.

        Args:
            temperature: > 0, dimensionless.
            estimator: see :mod:`nni_gumbel.relaxation.estimators`.
        """
        on_host = self._on_host(self.logits)
        outcomes = self._drawn(on_host)
        moved = self._on_device(outcomes)
        draws = {
            label: estimate_sampled(law, self.logits[label], temperature, estimator, moved[label])
            for label, law in self.laws.items()
        }
        self.joint_sample.set(draws, self._rows_of(outcomes))

    def check_estimator(self, estimator: str) -> None:
        """Refuse an estimator that is not derived for one of the choices.

        Raises:
            UsageError: names the choice and the estimators that it has.
        """
        for label, law in self.laws.items():
            check_supported(law, estimator, label)

    def _draw(self, logits: Mapping[str, Tensor], temperature: float, estimator: str) -> None:
        if estimator == "soft":
            self.joint_sample.set(self._soft(logits, temperature), self._all_rows)
            return
        if torch.is_grad_enabled() and any(logit.requires_grad for logit in logits.values()):
            draws = {
                label: estimate(law, logits[label], temperature, estimator)
                for label, law in self.laws.items()
            }
            # Of a hard draw with derivatives all candidates run: those of weight 0 have a derivative, too.
            self.joint_sample.set(draws, self._all_rows)
            return
        for law in self._labels_of:
            check_supported(law, estimator)
        check_temperature(temperature)
        self._use_outcomes(self._drawn(self._on_host(logits)))

    def _soft(self, logits: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Soft draws; the noise is drawn label after label, the choices of one are then computed together."""
        draws, noise = {}, {}
        for label, law in self.laws.items():
            if isinstance(law, categorical.Categorical):
                noise[label] = torch.empty_like(logits[label], dtype=torch.float64, requires_grad=False)
                noise[label].exponential_()
            else:
                draws[label] = estimate(law, logits[label], temperature)
        for law, labels in self._labels_of.items():
            if isinstance(law, categorical.Categorical):
                together, exponential = (
                    torch.stack([of[label] for label in labels]) for of in (logits, noise)
                )
                relaxed = relaxed_categorical(together, temperature, exponential=exponential)
                draws.update(zip(labels, relaxed.unbind()))
        return {label: draws[label] for label in self.laws}

    def copy_to_host(self) -> None:
        """Order a copy of the logits, after each of their steps, so that draws need not wait for a device.

        From then on single networks on a GPU are drawn from the logits of one step before: their own would have
        to be waited for. On a CPU nothing changes.
        """
        logits = [*self.logits.values()]
        if logits[0].is_cuda:
            self._copies.append(HostCopy(torch.cat(logits)))

    def copies_on_host(self) -> list[Tensor]:
        """The latest copies that :meth:`copy_to_host` ordered, oldest first: what draws go by, for a checkpoint."""
        return [copy.read() for copy in self._copies]

    def restore_copies(self, copies: Iterable[Tensor]) -> None:
        """Go on with :meth:`copies_on_host`."""
        self._copies.clear()
        self._copies.extend(map(HostCopy, copies))

    def _on_host(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.logits
        if not next(iter(own.values())).is_cuda:
            return {label: tensor.detach() for label, tensor in logits.items()}
        if len(self._copies) == 2 and all(logits[label] is own[label] for label in own):
            flat = self._copies[0].read()
        else:
            flat = torch.cat([*logits.values()]).detach().cpu()
        return dict(zip(self.laws, flat.split([law.size for law in self.laws.values()])))

    def _drawn(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outcomes, ``(n,)`` of 0 and 1 a label, where the logits are."""
        return {label: law.draw(logits[label]) for label, law in self.laws.items()}

    def _on_device(self, outcomes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = next(iter(self.logits.values())).device
        if all(outcome.device == device for outcome in outcomes.values()):
            return dict(outcomes)
        flat = to_device(torch.cat([*outcomes.values()]), device)
        return dict(zip(outcomes, flat.split([len(outcome) for outcome in outcomes.values()])))

    def use_probabilities(self) -> None:
        """Make the probabilities themselves the current weights: the noise-free mixture."""
        self.joint_sample.set(self._per_label(lambda law, logits: law.exact(logits)), self._all_rows)

    def use_architecture(self, architecture: Mapping[str, Any]) -> None:
        """Make a single network the current sample: weights 0 and 1 at an NNI sample that names every label."""
        self._use_outcomes(self._outcomes(architecture))

    def _use_outcomes(self, outcomes: Mapping[str, Tensor]) -> None:
        moved = self._on_device(outcomes)
        draws = {label: law.hard(moved[label]) for label, law in self.laws.items()}
        self.joint_sample.set(draws, self._rows_of(outcomes), is_network=True)

    def _rows_of(self, outcomes: Mapping[str, Tensor]) -> dict[str, Rows]:
        """What runs at outcomes, ``(n,)`` of 0 and 1 a label."""
        members = nonzero_rows(outcomes)
        return {
            label: [[member] for member in members[label][0]]
            if isinstance(law, subset.KSubset)
            else members[label]
            for label, law in self.laws.items()
        }

    def _zeros(self) -> dict[str, Tensor]:
        return {label: torch.zeros_like(logits) for label, logits in self.logits.items()}

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
        outcomes = self._outcomes(architecture)
        return torch.stack(
            [law.log_prob(self.logits[label], outcomes[label]) for label, law in self.laws.items()]
        ).sum()

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

    def value_of(self, label: str, members: tuple[int, ...]) -> Any:
        """What an NNI sample says for an outcome, the ascending indices of its candidates."""
        variable = self.variables[label]
        chosen = [variable.values[i] for i in members]
        return chosen if isinstance(variable, CategoricalMultiple) else chosen[0]

    def outcome(self, label: str, value: Any) -> Tensor:
        """``(n,)`` of 0 and 1 in the logits' dtype: the outcome that an NNI sample's value stands for.

        Raises:
            UsageError: the value is none of the candidates, or not the right number of them.
        """
        outcome = torch.zeros_like(self.logits[label], requires_grad=False)
        outcome[list(self.members(label, value))] = 1
        return outcome

    def members(self, label: str, value: Any) -> tuple[int, ...]:
        """The outcome that an NNI sample's value stands for: the ascending indices of its candidates.

        Raises:
            UsageError: the value is none of the candidates, or not the right number of them.
        """
        variable = self.variables[label]
        candidates = list(variable.values)
        multiple = isinstance(variable, CategoricalMultiple)
        chosen = list(value) if multiple and isinstance(value, (list, tuple)) else [value]
        if not all(v in candidates for v in chosen) or (multiple and not chosen):
            raise UsageError(
                f"choice {label!r}: {value!r} is none of its candidates; give one of {candidates}"
            )
        number = variable.n_chosen if multiple else 1
        members = tuple(sorted({*map(candidates.index, chosen)}))
        if len(members) != (number or len(chosen)):
            raise UsageError(f"choice {label!r}: {value!r} does not choose {number} of {candidates}")
        return members

    def outcome_index(self, label: str, value: Any) -> int:
        """The position among :meth:`outcome_probs` of the outcome that an NNI sample's value stands for.

        Raises:
            UsageError: see :meth:`members`.
        """
        return self.laws[label].index_of(self.members(label, value))

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


def _law_of(label: str, variable: Any) -> Law:
    if isinstance(variable, CategoricalMultiple):
        if variable.n_chosen is None:
            return gates.OpenSubset(len(variable.values))
        if variable.n_chosen == 1:
            return categorical.Categorical(len(variable.values))
        return subset.KSubset(len(variable.values), variable.n_chosen)
    if isinstance(variable, Categorical):
        return categorical.Categorical(len(variable.values))
    raise UsageError(
        f"choice {label!r}: {type(variable).__name__} is not discrete and cannot be relaxed; give nni.choice"
    )

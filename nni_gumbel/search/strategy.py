"""``GumbelSearch``: the search as an NNI one-shot strategy.

A drop-in for NNI's ``DARTS`` and ``GumbelDARTS``: ``NasExperiment(space, evaluator,
GumbelSearch()).run()``. It subclasses ``DARTS`` because NNI's hub asks for that class; of DARTS's own
machinery only the pairing of a training and a validation loader is used.
"""

from __future__ import annotations

from typing import Any

from nni.nas.evaluator.pytorch import Lightning, LightningModule
from nni.nas.nn.pytorch import ModelSpace, MutableModule
from nni.nas.oneshot.pytorch.strategy import DARTS

from nni_gumbel.complexity.cost import ExpectedParameters
from nni_gumbel.errors import UsageError
from nni_gumbel.search.module import GumbelSearchModule
from nni_gumbel.search.settings import SearchSettings
from nni_gumbel.supernet.distribution import Distribution
from nni_gumbel.supernet.inputs import MixedInput
from nni_gumbel.supernet.layer import MixedLayer


class GumbelSearch(DARTS):
    """Searches a space by gradient descent on a Gumbel-softmax relaxation of its choices.

    Args:
        mutation_hooks: hooks of one's own, run before ours; see NNI's ``OneShotStrategy``.
        **settings: the fields of :class:`~nni_gumbel.search.settings.SearchSettings`.

    Raises:
        UsageError: a setting is out of range, or the space has a choice that cannot be relaxed.

    Example:
        >>> from nni.nas.experiment import NasExperiment           # doctest: +SKIP
        >>> experiment = NasExperiment(space, evaluator, GumbelSearch(temperature_end=0.05))  # doctest: +SKIP
        >>> experiment.run()                                       # doctest: +SKIP
        >>> experiment.export_top_models(formatter="dict")         # doctest: +SKIP
    """

    def __init__(self, *, mutation_hooks: list | None = None, **settings: Any) -> None:
        super().__init__(mutation_hooks=mutation_hooks)
        self.settings = SearchSettings(**settings)
        self._distribution: Distribution | None = None
        self._expected_parameters: ExpectedParameters | None = None
        self._structure_dataloader: Any = None

    @property
    def distribution(self) -> Distribution:
        """The logits of the space; available after ``mutate_model``."""
        if self._distribution is None:
            raise RuntimeError("the strategy has no distribution before mutate_model() or run()")
        return self._distribution

    def mutate_model(self, model: ModelSpace) -> ModelSpace:
        """Turn the space into a supernet, in place, with fresh logits."""
        self._distribution = Distribution(model)
        self._expected_parameters = ExpectedParameters(model)
        # DARTS.mutate_model would create logits of its own: its base does the rest.
        return super(DARTS, self).mutate_model(model)

    def default_mutation_hooks(self) -> list:
        return [MixedLayer.mutate, MixedInput.mutate, _refuse_other_choices]

    def run_hook(self, hook: Any, name: str, module: Any, memo: dict[str, Any]) -> Any:
        return hook(module, name, memo, {"joint_sample": self.distribution.joint_sample})

    def configure_oneshot_module(self, training_module: LightningModule) -> GumbelSearchModule:
        return GumbelSearchModule(
            training_module, self.distribution, self._expected_parameters, self.settings
        )

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Wrap the evaluator for the search.

        A data module may have a ``structure_dataloader``: the validation data as the structure step
        takes it, shuffled and in batches of the training's size. Else it takes ``val_dataloader``.
        """
        self._structure_dataloader = getattr(evaluator.datamodule, "structure_dataloader", None)
        return super().mutate_evaluator(evaluator)

    def train_dataloader(self, train_dataloader_fn: Any, val_dataloader_fn: Any) -> Any:
        """Pairs of a training batch and a batch for the structure; the shorter loader starts again."""
        structure_dataloader_fn = self._structure_dataloader or val_dataloader_fn
        return super().train_dataloader(train_dataloader_fn, structure_dataloader_fn)

    def val_dataloader(self, train_dataloader_fn: Any, val_dataloader_fn: Any) -> Any:
        """The validation data also validates the mixture after each epoch; DARTS runs no validation."""
        return val_dataloader_fn()


def _refuse_other_choices(
    module: Any, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
) -> bool:
    """The last hook: what still has a choice of its own would silently keep its default."""
    if isinstance(module, MutableModule) and module.mutables:
        labels = ", ".join(repr(label) for mutable in module.mutables for label in mutable.simplify())
        raise UsageError(
            f"choice {labels}: {type(module).__name__} at {name!r} cannot be relaxed yet; "
            "express it as a LayerChoice or an InputChoice"
        )
    return True

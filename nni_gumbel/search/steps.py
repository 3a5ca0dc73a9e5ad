"""The steps of an evaluator, called by the rules of a plain training, of which a search makes more use.

Lightning lets a step leave out the number of its batch. In a search, training steps also run on validation data, which
a plain training only sees in evaluation mode: its last batch may have one example, which no BatchNorm can normalise
in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.evaluator.pytorch.lightning import SupervisedLearningModule
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError
from nni_gumbel.search.misfit import misfit


def check_steps(module: LightningModule) -> None:
    """Refuse a training step that draws batches itself: a search needs two batches for each of its steps.

    Raises:
        UsageError: ``training_step`` asks for ``dataloader_iter``.
    """
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise UsageError(
            "training_step: it takes its batches from dataloader_iter, which a search cannot share; "
            "take a batch: training_step(self, batch, batch_idx)"
        )


def training_step(module: LightningModule, batch: Any, batch_idx: int) -> Any:
    """What an evaluator's training step returns for a batch.

    Args:
        module: the evaluator's module, in training mode.
        batch: as its loader gives it, of training or of validation data.
        batch_idx: number of the batch in its epoch; passed on to a step that takes it.
    """
    takes_number = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    with _misfits_told(module), _single_values_normalised(module, batch):
        return module.training_step(batch, *([batch_idx] if takes_number else []))


def validation_step(module: LightningModule) -> Callable[..., Any]:
    """An evaluator's validation step, with its own signature.

    NNI's modules write their model as ONNX in the first validation, to be looked at; a supernet is not written, and
    the option stays set for a training of the network found.
    """
    original = module.validation_step

    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        with _misfits_told(module), _without_export(module):
            return original(*args, **kwargs)

    return step


@contextmanager
def _misfits_told(module: LightningModule) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        line = misfit(module.model, error)
        if line is None:
            raise
        raise UsageError(line) from error


@contextmanager
def _without_export(module: LightningModule) -> Iterator[None]:
    if not isinstance(module, SupervisedLearningModule):
        yield
        return
    path, module.export_onnx = module.export_onnx, None
    try:
        yield
    finally:
        module.export_onnx = path


@contextmanager
def _single_values_normalised(network: nn.Module, batch: Any) -> Iterator[None]:
    """Let a BatchNorm normalise by its running statistics where it sees a single value per channel.

    Their variance is 0 in training mode, and torch refuses. Only a batch with a tensor of length 1 is looked at.
    """
    if all(len(leaf) != 1 for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()):
        yield
        return
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.training]

    def before(norm: _BatchNorm, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = args[0] if args else kwargs["input"]
        norm.training = values.numel() != values.shape[1]

    hooks = [norm.register_forward_pre_hook(before, with_kwargs=True) for norm in norms]
    try:
        yield
    finally:
        for hook, norm in zip(hooks, norms):
            hook.remove()
            norm.training = True

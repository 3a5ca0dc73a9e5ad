"""The steps of an evaluator, called by the rules of a plain training, of which a search makes more use.

Lightning lets a step leave out the number of its batch. In a search, training steps also run on validation data, which
a plain training only sees in evaluation mode: its last batch may have one example, which no BatchNorm can normalise
in training mode. Where networks are judged, dropout is off and nothing is logged, and one call alone of the model shows
what it takes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.evaluator.pytorch.lightning import SupervisedLearningModule
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.results.example import modes_kept
from nni_gumbel.search.state import unchanged_randomness
from nni_gumbel.supernet.arguments import MixedArguments

# Modules whose training mode means dropout and nothing else, with the argument that is its rate. Recurrent layers drop
# out inside one operation, which is out of reach.
_RATES = {_DropoutNd: "p", nn.MultiheadAttention: "dropout"}


def check_module(module: LightningModule) -> None:
    """Refuse an evaluator's module that does itself what a search has to do: draws batches or updates weights."""
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise UsageError(
            "training_step: it takes its batches from dataloader_iter, which a search cannot share; "
            "take a batch: training_step(self, batch, batch_idx)"
        )
    if not module.automatic_optimization:
        raise UsageError(
            "automatic_optimization: the evaluator's module updates its weights by itself, which a search "
            "cannot do for it; leave automatic_optimization on"
        )


def training_step(module: LightningModule, batch: Any, batch_idx: int) -> Any:
    """What an evaluator's training step returns for a batch of training or of validation data."""
    takes_number = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    with _misfits_told(module), _single_values_normalised(module, batch):
        return module.training_step(batch, *([batch_idx] if takes_number else []))


def loss_of(result: Any) -> Tensor:
    """The loss in what an evaluator's ``training_step`` returned: itself, or under ``loss`` in a dict."""
    loss = result.get("loss") if isinstance(result, dict) else result
    if not isinstance(loss, Tensor):
        raise UsageError(
            f"training_step: it returned no loss but {type(result).__name__}; return a loss for every batch, "
            "or a dict with it under 'loss'"
        )
    return loss


def validation_step(module: LightningModule) -> Callable[..., Any]:
    """An evaluator's validation step, with its own signature.

    NNI's modules write their model as ONNX in the first validation, to be looked at; a supernet is not written, and
    the option stays set for a training of the network found.
    """
    original = module.validation_step
    writes = isinstance(module, SupervisedLearningModule)

    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        with _misfits_told(module), _replaced(module, "export_onnx", None) if writes else nullcontext():
            return original(*args, **kwargs)

    return step


def inputs_of(model: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of the first call of a model, which itself does not take place.

    Nothing is computed with the model, learnt or logged, and the random state is as before.

    Args:
        model: the supernet.
        run: lets the evaluator make a training step; one that does not call the model is refused.
    """

    class Seen(Exception):
        pass

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise Seen(args, kwargs)

    hook = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with unchanged_randomness():
            run()
    except Seen as seen:
        return seen.args
    finally:
        hook.remove()
    raise UsageError(
        "training_step: it does not call its model as self.model(...), so what a network costs cannot be found; "
        "call it so, or price and limit params alone"
    )


def muted(module: LightningModule) -> AbstractContextManager[None]:
    """Within this context a module logs nothing: the numbers of a search are those of its weight steps.

    A torchmetrics object that is logged itself still accumulates over all steps: it is one object.
    """
    return _replaced(module, "log", lambda *args, **kwargs: None)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# -- a layer of fixed width behind a chosen one -----------------------------------------------------


def misfit(space: nn.Module, error: Exception) -> str | None:
    """Which choice a layer does not fit, in one line.

    ::

        self.lin1, self.lin2 = MutableLinear(10, width), MutableLinear(width, 3)
        self.norm = nn.BatchNorm1d(self.lin2.in_features)     # takes the width that was the first candidate

    ``None`` if no module of the space raised the error, or if no size is chosen anywhere around the layer.
    """
    if not isinstance(error, (RuntimeError, ValueError)) or isinstance(error, torch.cuda.OutOfMemoryError):
        return None
    paths = {module: path for path, module in space.named_modules()}
    owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    raising = [owner for owner in owners if isinstance(owner, nn.Module) and owner in paths]
    if not raising or isinstance(raising[-1], MixedArguments) or list(raising[-1].children()):
        return None
    around = path = paths[raising[-1]]
    while around:
        around = around.rpartition(".")[0]
        part = space.get_submodule(around)
        mixed = (module for module in part.modules() if isinstance(module, MixedArguments))
        labels = dict.fromkeys(label for module in mixed for label in module.variants.table.labels)
        sizes = [label for label in labels if label not in dropout_rates(part)]
        if sizes:
            kind = type(raising[-1]).__name__
            return (
                f"choice {' or '.join(map(repr, sizes))}: {kind} at {path!r} takes one width, and not each of those "
                f"to choose from ({first_line(error)}); give it the chosen width (NNI's Mutable{kind}), or fix it"
            )
    return None


@contextmanager
def _misfits_told(module: LightningModule) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        line = misfit(module.model, error)
        if line is None:
            raise
        raise UsageError(line) from error


# -- dropout, and batches of one example ----------------------------------------------------------


def dropout_rates(supernet: nn.Module) -> list[str]:
    """The labels that the rate of a dropout depends on."""
    labels = (
        label
        for module in supernet.modules()
        if isinstance(module, MixedArguments)
        for kind, argument in _RATES.items()
        if isinstance(module, kind)
        for label in module.variants.table.labels_of.get(argument, ())
    )
    return list(dict.fromkeys(labels))


@contextmanager
def dropout_off(network: nn.Module) -> Iterator[None]:
    """Dropout, that of attention too, in evaluation mode; everything else, batch norms among them, as it is.

    What dropout is good for shows in the weights of a network that is trained with it. Networks are judged as they will
    be used: without. Dropout of recurrent layers, and what a forward pass of a person's own calls as a function, stays.
    """
    on = [module for module in network.modules() if isinstance(module, tuple(_RATES)) and module.training]
    with modes_kept(on):
        for module in on:
            module.training = False
        yield


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
        with modes_kept(norms):
            yield
    finally:
        for hook in hooks:
            hook.remove()

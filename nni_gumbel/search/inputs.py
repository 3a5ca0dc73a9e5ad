"""What an evaluator calls its model with: an example for everything that is measured on real inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.search.randomness import unchanged_randomness


class _Seen(Exception):
    """The model was called: the rest of the step is not run."""


def inputs_of(model: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the first call of a model, which itself does not take place.

    Nothing is computed with the model, learnt or logged, and the random state is as before.

    Args:
        model: the supernet.
        run: lets the evaluator make a training step.

    Returns:
        Positional and keyword arguments.

    Raises:
        UsageError: the evaluator does not call the model. Whatever else ``run`` raises stays as it is.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Seen

    hook = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with unchanged_randomness([]):
            run()
    except _Seen:
        pass
    finally:
        hook.remove()
    if not seen:
        raise UsageError(
            "training_step: it does not call its model as self.model(...), so what a network costs cannot be found; "
            "call it so, or price and limit params alone"
        )
    return seen[0]

"""A rehearsal of a search: a few forward passes, in which most mistakes of a space show.

The doctor does it before an experiment starts, a trial before its search.
"""

from __future__ import annotations

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor

from nni_gumbel.errors import UsageError, first_line
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.search.diagnosis import first_culprit
from nni_gumbel.supernet.cell import check_loose_ends
from nni_gumbel.supernet.distribution import Distribution


def rehearse(
    space: ModelSpace,
    distribution: Distribution,
    reference: SpaceReference,
    example: Tensor,
    classes: int | None,
) -> None:
    """Run a space on real inputs: does it take them, and does it fit the classes?

    Args:
        space: the supernet of a space; left as it is.
        distribution: of its networks; the current sample becomes the noise-free mixture.
        reference: what a person called it.
        example: a batch of inputs.
        classes: how many outputs an image needs; ``None`` if that is not known.

    Raises:
        UsageError: it fails, its candidates do not fit together, its outputs are not finite, or it has another
            number of them.
    """
    space.eval()
    try:
        with torch.no_grad():
            distribution.use_probabilities()
            output = space(example)
    except UsageError:
        raise
    except Exception as error:  # whatever a person's forward raises
        raise UsageError(
            f"--space: {reference} fails on inputs of shape {tuple(example.shape[1:])}: {first_line(error)}; "
            "correct it, or give it arguments that fit (key=value after --space)"
        ) from error
    finally:
        space.train()
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        culprit = first_culprit(space, lambda: space(example))
        raise UsageError(
            f"--space: {reference} gives numbers that are not finite; {culprit or 'look for a division by zero'}; "
            "mend or remove it"
        )
    distribution.joint_sample.tell_unread()
    check_loose_ends(space, distribution, lambda: space(example))
    if classes is None:
        return
    if not isinstance(output, Tensor):
        raise UsageError(
            f"--space: {reference} returns {type(output).__name__}; return one tensor of class scores"
        )
    if output.shape != (len(example), classes):
        raise UsageError(
            f"--space: {reference} gives {tuple(output.shape[1:])} an image, the data has {classes} classes; "
            f"give it as many outputs, e.g. num_classes={classes} after --space"
        )

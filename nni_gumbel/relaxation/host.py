"""Small tensors brought to the host without waiting for the device.

A step of a search runs ahead of its device. To read a number there and then would make it wait until the device has
caught up, several times a step. A copy is ordered instead, and read later, when it has long arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor that is on its way to the host; on a CPU the tensor itself as it is now.

    Args:
        tensor: small; what is computed with it later does not matter.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._tensor = tensor.to("cpu", copy=True)

    def __deepcopy__(self, memo: dict[int, object]) -> HostCopy:
        return HostCopy(self.read())  # an event of the device cannot be copied

    def read(self) -> Tensor:
        """The copy; waits until the device has come to the place where it was ordered, and no further."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what that is busy with."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

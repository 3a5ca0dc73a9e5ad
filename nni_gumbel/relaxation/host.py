"""Small tensors brought to the host without waiting for the device.

A step of a search runs ahead of its device. Reading a number at once makes the host wait until the device has caught
up, several times a step. Instead an asynchronous copy is started, and read in a later step, when it is complete.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A pending copy of a tensor to the host; on a CPU a copy that is complete at once.

    Args:
        tensor: small; its values at this call are copied, whatever is written into it later.
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
        """The copy; waits until the device has made it, and not for work that was queued later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor

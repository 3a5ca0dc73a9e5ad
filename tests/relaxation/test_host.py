"""Numbers on their way to the host."""

import pytest
import torch

from nni_gumbel.relaxation.host import HostCopy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_has_the_values_of_the_moment_at_which_it_was_made(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    tensor = torch.arange(4.0, device=device, requires_grad=True)
    copy = HostCopy(tensor)
    with torch.no_grad():
        tensor.zero_()
    found = copy.read()
    assert found.tolist() == [0, 1, 2, 3] and found.device.type == "cpu" and not found.requires_grad

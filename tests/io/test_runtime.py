"""Devices that exist, and the others."""

import pytest
import torch

from iec.errors import DeviceError
from iec.io.runtime import resolve_device


@pytest.mark.parametrize(
    "name", ["mps", "cuda", "cuda:7", "cuda:x", "xpu", "hpu", "mtia", "privateuseone", "vulkan", "meta", "garbage", ""]
)
def test_a_device_that_cannot_compute_here_is_refused_in_a_line(name):
    try:
        torch.zeros(1, device=name).item()
        pytest.skip(f"{name} is here")
    except (RuntimeError, AssertionError, ImportError):
        pass
    with pytest.raises(
        DeviceError, match=rf"^device={name} cannot be used here \([^\n]+\)\. Use auto or cpu in its place\.$"
    ) as caught:
        resolve_device(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_ways_out_are_devices(name):
    assert torch.zeros(1, device=resolve_device(name)).item() == 0

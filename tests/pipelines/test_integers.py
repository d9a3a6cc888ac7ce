"""Pipelines whose UNet computes on integers."""

import shutil

import pytest
import torch
from torch import nn

from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.integer import IntegerLayer
from iec.efficiency.integer.products import OneDNN, require_exact_sums
from iec.efficiency.quantization import PTQConfig
from iec.errors import ConfigError, DeviceError
from iec.pipelines.apply import apply
from tests.pipelines.test_wrappers import halved, image, quantization
from tests.tiny_pipelines import stable_diffusion

INT8 = {"kernels": "int8_unfused"}
BLOCK = "up_blocks.0.resnets.0"


def exact_sums():
    try:
        require_exact_sums(OneDNN)
    except DeviceError:
        return False
    return True


pytestmark = pytest.mark.skipif(not exact_sums(), reason="this CPU does not sum 8-bit products exactly")


@pytest.fixture
def sd():
    torch.manual_seed(0)
    return stable_diffusion()


@pytest.mark.parametrize(("kernels", "options"), [("int8", {}), ("int8_unfused", {"cache": CachingConfig(2)})], ids=str)
def test_images_on_integers_are_those_of_the_simulation(sd, kernels, options):
    plain = image(sd)
    with apply(sd, **quantization(), **options):
        simulated = image(sd)
    with apply(sd, **quantization(), **options, kernels=kernels) as applied:
        integer = image(sd)
        assert not applied.quantized.layers() and any(isinstance(m, IntegerLayer) for m in applied.quantized.modules())
    assert (integer - simulated).norm() < (simulated - plain).norm()  # values behind a rounding border differ
    assert torch.equal(image(sd), plain)


def test_kernels_that_cannot_serve_are_refused_and_change_nothing(sd, monkeypatch):
    scheduler, unet, options = sd.scheduler, sd.unet, quantization()
    wrong = {
        "Give quantize and calibration too": INT8,
        "choose simulated, int8, int8_unfused": {**options, "kernels": "int4"},
        "weight_bits=16 has no form": {**options, **INT8, "quantize": PTQConfig(weight_bits=16)},
        "granularity=tensor": {**options, **INT8, "quantize": PTQConfig(activation_granularity="channel")},
    }
    for message, given in wrong.items():
        with pytest.raises(ConfigError, match=message):
            apply(sd, **given)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match="int8_unfused"):
        apply(sd, **options, kernels="int8")
    assert sd.scheduler is scheduler and sd.unet is unet and "forward" not in vars(unet)
    apply(sd, **options, **INT8).remove()  # the way out


def test_a_hook_on_a_part_that_is_not_called_is_refused_by_name(sd):
    handle = sd.unet.get_submodule(f"{BLOCK}.conv1").register_forward_hook(halved)
    with apply(sd, **quantization(), **INT8):
        with pytest.raises(ConfigError, match=rf"{BLOCK}\.conv1 has a forward hook.*put it on {BLOCK}"):
            image(sd)
        handle.remove()
        plain = image(sd)
        sd.unet.get_submodule(BLOCK).register_forward_hook(halved)
        assert not torch.equal(image(sd), plain)


def test_a_unet_on_integers_keeps_its_device_and_may_change_its_dtype(sd):
    before = image(sd)
    with apply(sd, **quantization(), **INT8):
        plain = image(sd)
        norm = next(module for module in sd.unet.modules() if module._parameters)
        own = norm.weight
        norm.weight = nn.Parameter(own.to("meta"), requires_grad=False)
        with pytest.raises(ConfigError, match="lie on cpu, and has been moved to meta. Move it back"):
            sd.unet(None, 0, None)
        norm.weight = own
        assert torch.equal(image(sd), plain)
        sd.to(torch.bfloat16)
    assert {p.dtype for p in sd.unet.parameters()} == {torch.bfloat16}
    sd.to(torch.float32)
    assert (image(sd) - before).abs().max() < 0.1 * before.abs().max()

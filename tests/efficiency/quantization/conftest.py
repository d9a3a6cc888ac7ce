import copy
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from iec.efficiency.quantization import CalibrationCall, PTQConfig, calibrate, quantize_unet
from iec.models.unet import UNetNetwork
from iec.sampling.network import Step

TIMESTEPS = (900, 500, 100)


def calibrate_full(quantized, images, timesteps=TIMESTEPS, cond=None, progress=None):
    """Calibrate with a full call for each step, on images [T, n, ...]."""
    calls = [CalibrationCall(x, Step(i, t), cond) for i, (x, t) in enumerate(zip(images, timesteps, strict=True))]
    calibrate(quantized, UNetNetwork(quantized.unet), calls, progress)


@pytest.fixture(scope="session")
def unet():
    """UNet2DModel with attention, skips whose halves differ in width, and random (not zero) output layers."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="session")
def conditional_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
        cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="session")
def images():
    """Inputs of a T = 3 calibration: [3, 4, 3, 8, 8]."""
    return torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def make_quantized(unet, images):
    """A copy of the tiny UNet, quantized and calibrated for `TIMESTEPS`; the config's fields as keywords."""

    @cache
    def made(**settings):
        quantized = quantize_unet(unet, PTQConfig(calibration_images=4, **settings), len(TIMESTEPS))
        calibrate_full(quantized, images)
        return quantized

    return lambda **settings: copy.deepcopy(made(**settings))

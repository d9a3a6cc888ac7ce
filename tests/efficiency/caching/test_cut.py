"""Where the UNets of the paper are cut, and what is refused."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from iec.efficiency.caching import CachedUNetNetwork, find_cut
from iec.efficiency.quantization.model import skip_splits
from iec.errors import ConfigError
from iec.models import load_model
from iec.models.unet import UNetNetwork
from iec.sampling.network import Step
from tests.efficiency.caching.unets import CASES, PAPER, SMALL, cuts_of, make, text_unet

EXPECTED = {  # parameters, kind, cut, consumer, feature, channels of the skip, separable
    "DDPM CIFAR-10": (35_746_307, "pixel", 3, "up_blocks.2.resnets.2", (256, 16, 16), 128, False),
    "DDPM LSUN": (113_673_219, "pixel", 3, "up_blocks.4.resnets.2", (128, 128, 128), 128, True),
    "LDM bedroom": (274_056_163, "latent", 0, "up_blocks.3.resnets.2", (224, 64, 64), 224, True),
    "LDM church": (294_966_916, "latent", 0, "up_blocks.4.resnets.2", (192, 32, 32), 192, True),
    "LDM ImageNet": (400_920_579, "latent", 0, "up_blocks.3.resnets.2", (192, 64, 64), 192, True),
    "Stable Diffusion": (859_520_964, "latent", 0, "up_blocks.3.resnets.2", (320, 64, 64), 320, True),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_are_cut_where_the_paper_cuts_them(name):
    parameters, kind, index, consumer, feature, skip_channels, separable = EXPECTED[name]
    unet = PAPER[name]()
    assert sum(p.numel() for p in unet.parameters()) == parameters
    cut = find_cut(unet, kind)
    assert (cut.index, cut.consumer, cut.channels, cut.skip_channels) == (index, consumer, feature[0], skip_channels)
    assert cut.separable == separable
    assert cut.layers == (f"{consumer}.conv1", f"{consumer}.conv_shortcut")
    assert unet.get_submodule(cut.layers[0]).in_channels == cut.channels + cut.skip_channels
    size = unet.config.sample_size
    cond = torch.empty(1, 2, unet.config.cross_attention_dim, device="meta") if "cross_attention_dim" in unet.config else None
    x = torch.empty(1, unet.config.in_channels, size, size, device="meta")
    made = CachedUNetNetwork(unet, kind)(x, Step(0, 5), cond).feature
    assert made.shape == (1, *feature) and size // cut.factor == feature[1]


def test_the_path_of_a_cached_call_on_the_cifar_model():
    cut = find_cut(PAPER["DDPM CIFAR-10"](), "pixel")
    assert cut.skip == "down_blocks.0.downsamplers.0" and (cut.up_block, cut.resnet) == (2, 2)
    assert cut.down == ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0")
    assert cut.up == (
        "up_blocks.2.resnets.2", "up_blocks.2.attentions.2", "up_blocks.2.upsamplers.0",
        "up_blocks.3.resnets.0", "up_blocks.3.resnets.1", "up_blocks.3.resnets.2",
    )  # fmt: skip


def test_the_bundled_model_is_cut_at_its_first_downsampler():
    """It has one residual block a level, so the first downsampler makes skip 2."""
    cut = find_cut(load_model(device="cpu", random_weights=True).unet, "pixel")
    assert (cut.index, cut.skip, cut.consumer) == (2, "down_blocks.0.downsamplers.0", "up_blocks.2.resnets.1")
    assert (cut.channels, cut.skip_channels, cut.factor) == (64, 32, 2)


@pytest.mark.parametrize("name", CASES)
def test_every_cut_agrees_with_the_shapes_that_occur(name):
    """The channels against an independent walk over the up path, the sizes against hooks on a full call."""
    unet, cond = make(name)
    splits, entering = skip_splits(unet), {}
    for block, up in enumerate(unet.up_blocks):
        for j, resnet in enumerate(up.resnets):
            resnet.register_forward_pre_hook(
                lambda _, args, key=f"up_blocks.{block}.resnets.{j}": entering.update({key: args[0].shape})
            )
    UNetNetwork(unet)(torch.randn(3, 3, 8, 8), Step(0, 10), cond)
    cuts = [find_cut(unet, k) for k in cuts_of(unet)]
    assert sorted(cut.consumer for cut in cuts) == sorted(entering)
    for k, cut in enumerate(cuts):
        assert cut.index == k and len(cut.down) >= k + 1
        assert entering[cut.consumer] == (3, cut.channels + cut.skip_channels, 8 // cut.factor, 8 // cut.factor)
        assert {layer: splits[layer] for layer in cut.layers} == dict.fromkeys(cut.layers, cut.channels)
        assert cut.up[0] == cut.consumer and cut.down[-1] == cut.skip


@pytest.mark.parametrize("cut", [-1, 9, True, 1.0, None, "deep"])
def test_a_cut_that_is_not_there_is_refused(cut):
    unet, _ = make("pixel")
    assert len(cuts_of(unet)) == 9
    with pytest.raises(ConfigError, match="cut"):
        find_cut(unet, cut)


def test_a_unet_of_one_level_has_no_pixel_cut():
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(16,), norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    assert find_cut(unet, "latent").channels == 16
    with pytest.raises(ConfigError, match="as a number"):
        find_cut(unet, "pixel")


def _with_freeu():
    unet, _ = make("text")
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    return unet


def _skipping():
    return UNet2DModel(**SMALL, down_block_types=("SkipDownBlock2D",) * 3, up_block_types=("SkipUpBlock2D",) * 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_skipping, "SkipDownBlock2D"),
        (
            lambda: UNet2DConditionModel(
                **SMALL, cross_attention_dim=6, down_block_types=("SimpleCrossAttnDownBlock2D",) * 3,
                up_block_types=("SimpleCrossAttnUpBlock2D",) * 3, mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            ),
            "SimpleCrossAttnDownBlock2D",
        ),
        (lambda: text_unet(addition_embed_type="text", encoder_hid_dim=8, addition_embed_type_num_heads=2), "addition_embed_type"),
        (lambda: text_unet(dual_cross_attention=True), "dual_cross_attention=True"),
        (lambda: text_unet(time_cond_proj_dim=4), "time_cond_proj_dim=4"),
        (lambda: text_unet(num_class_embeds=4), "num_class_embeds=4"),
        (_with_freeu, "FreeU"),
        (lambda: AutoencoderKL(block_out_channels=(16,), norm_num_groups=4), "not a AutoencoderKL"),
    ],
)  # fmt: skip
def test_a_unet_that_cannot_be_run_by_parts_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        CachedUNetNetwork(build(), 0)

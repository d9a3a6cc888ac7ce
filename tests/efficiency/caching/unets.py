"""UNets for these tests: small random ones of every supported build, and the paper's as shapes without data."""

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from iec.efficiency.caching.structure import structure_of
from iec.efficiency.cost import network_cost
from iec.models.inputs import Conditioning

SMALL = {"sample_size": 8, "norm_num_groups": 4, "block_out_channels": (16, 24, 32)}


def _pixel(**changes):
    config = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2, "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    }  # fmt: skip
    return UNet2DModel(**SMALL | config | changes)


def text_unet(**changes):
    config = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 6, "in_channels": 3, "out_channels": 3,
    }  # fmt: skip
    return UNet2DConditionModel(**SMALL | config | changes)


def _residual():
    """Residual blocks as down- and upsamplers, scale-shift time embedding: the build of LDM's church model."""
    return _pixel(
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", attention_head_dim=8,
        attn_norm_num_groups=4, flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
    )  # fmt: skip


LABELS = torch.tensor([1, 4, 0])
TEXTS = torch.randn(3, 4, 6)
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 53}
"""As Stable Diffusion XL's UNet: pooled text of 5, 6 sizes."""
XL_COND = Conditioning({
    "encoder_hidden_states": TEXTS, "added_cond_kwargs": {"text_embeds": torch.randn(3, 5), "time_ids": torch.rand(3, 6)},
})  # fmt: skip
SKIPS = ((16, 8), (16, 8), (16, 4), (24, 4), (24, 2), (32, 2))
CONTROLLED = Conditioning({
    "encoder_hidden_states": TEXTS,
    "down_block_additional_residuals": [torch.randn(3, width, size, size) for width, size in SKIPS],
    "mid_block_additional_residual": torch.randn(3, 32, 2, 2),
})  # fmt: skip

CASES = {
    "pixel": (_pixel, None),
    "residual samplers": (_residual, None),
    "one layer, centred input": (lambda: _pixel(layers_per_block=1, center_input_sample=True), None),
    "no mid block": (lambda: _pixel(mid_block_type=None), None),
    "no attention in the mid block": (lambda: _pixel(add_attention=False, dropout=0.3), None),
    "Fourier time": (lambda: _pixel(time_embedding_type="fourier"), None),
    "learned time": (lambda: _pixel(time_embedding_type="learned", num_train_timesteps=1000), None),
    "labels": (lambda: _pixel(num_class_embeds=5), LABELS),
    "labels as timesteps": (lambda: _pixel(class_embed_type="timestep"), LABELS),
    "embedded labels": (lambda: _pixel(class_embed_type="identity"), torch.randn(3, 64)),
    "text, pooled text and sizes": (lambda: text_unet(**XL), XL_COND),
    "text, residuals of a ControlNet": (text_unet, CONTROLLED),
    "text": (text_unet, torch.randn(3, 4, 6)),
    "text, layers by level": (lambda: text_unet(layers_per_block=(1, 2, 1), use_linear_projection=True), torch.randn(3, 4, 6)),
    "text, projected": (lambda: text_unet(encoder_hid_dim=5, time_embedding_act_fn="silu"), torch.randn(3, 4, 5)),
    "text, residual and self-attention": (
        lambda: text_unet(
            down_block_types=("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
            center_input_sample=True, mid_block_type="UNetMidBlock2D", attention_head_dim=8,
        ),
        torch.randn(3, 4, 6),
    ),
}  # fmt: skip
"""name -> (UNet, conditioning of three images). Dropout must be off in evaluation mode."""


def make(name):
    unet, cond = CASES[name]
    return unet().eval().requires_grad_(False), cond


def _paper(unet_class, **config):
    with torch.device("meta"):
        return unet_class(**config).eval()


def _levels(kind, wanted, total):
    """Block types of a direction: ``wanted`` levels of ``kind``, the others plain."""
    plain = "DownBlock2D" if "Down" in kind else "UpBlock2D"
    return tuple(kind if i in wanted else plain for i in range(total))


_DDPM = {
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip

PAPER = {
    "DDPM CIFAR-10": lambda: _paper(
        UNet2DModel, sample_size=32, block_out_channels=(128, 256, 256, 256), **_DDPM,
        down_block_types=_levels("AttnDownBlock2D", {1}, 4), up_block_types=_levels("AttnUpBlock2D", {2}, 4),
    ),
    "DDPM LSUN": lambda: _paper(
        UNet2DModel, sample_size=256, block_out_channels=(128, 128, 256, 256, 512, 512), **_DDPM,
        down_block_types=_levels("AttnDownBlock2D", {4}, 6), up_block_types=_levels("AttnUpBlock2D", {1}, 6),
    ),
    "LDM bedroom": lambda: _paper(
        UNet2DModel, sample_size=64, block_out_channels=(224, 448, 672, 896), attention_head_dim=32,
        down_block_types=_levels("AttnDownBlock2D", {1, 2, 3}, 4), up_block_types=_levels("AttnUpBlock2D", {0, 1, 2}, 4),
    ),
    "LDM church": lambda: _paper(
        UNet2DModel, sample_size=32, in_channels=4, out_channels=4, block_out_channels=(192, 384, 384, 768, 768),
        down_block_types=_levels("AttnDownBlock2D", {0, 1, 2, 3}, 5),
        up_block_types=("ResnetUpsampleBlock2D", *4 * ("AttnUpBlock2D",)), downsample_type="resnet", upsample_type="resnet",
        resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, attention_head_dim=24,
    ),
    "LDM ImageNet": lambda: _paper(
        UNet2DConditionModel, sample_size=64, in_channels=3, out_channels=3, block_out_channels=(192, 384, 576, 960),
        down_block_types=_levels("CrossAttnDownBlock2D", {1, 2, 3}, 4), up_block_types=_levels("CrossAttnUpBlock2D", {0, 1, 2}, 4),
        cross_attention_dim=512, attention_head_dim=1,
    ),
    "Stable Diffusion": lambda: _paper(UNet2DConditionModel, sample_size=64, cross_attention_dim=768),
}  # fmt: skip


def cuts_of(unet):
    """The numbers of all its cuts."""
    return range(len(structure_of(unet).down))


def macs_of(unet, cut, shape, cond=None):
    """MACs of a full and of a cached call."""
    cost = network_cost(unet, shape, 0, cond, cut)
    return cost.full.macs, cost.cached.macs

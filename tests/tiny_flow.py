"""Tiny random pipelines of flow matching, and SDXL, without text encoders: they take embeddings."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models import AutoencoderKLWan

from tests.tiny_pipelines import quiet, text_unet
from tests.tiny_pipelines import vae as plain_vae

SHIFTED = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}
TOKENS, WIDTH, POOLED = 7, 32, 16


def words(seed, *shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


PROMPT = {"prompt_embeds": words(0, TOKENS, WIDTH), "negative_prompt_embeds": words(1, TOKENS, WIDTH)}
POOL = {"pooled_prompt_embeds": words(2, POOLED), "negative_pooled_prompt_embeds": words(3, POOLED)}
MASKS = {f"{name}_attention_mask": torch.ones(1, TOKENS, dtype=torch.int64) for name in ("prompt", "negative_prompt")}
SIZE = {"height": 16, "width": 16, "output_type": "latent"}


def vae(channels=4):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    return AutoencoderKL(latent_channels=channels, **blocks, **sizes, **SHIFTED).eval()


def sdxl(scheduler):
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
    parts = (plain_vae(), None, None, None, None, text_unet(**added), scheduler)
    return quiet(StableDiffusionXLPipeline(*parts, add_watermarker=False))


def sd3(scheduler):
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 16, "num_layers": 2, "attention_head_dim": 4, "out_channels": 16}
    text = {"caption_projection_dim": 8, "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED}
    network = SD3Transformer2DModel(num_attention_heads=2, pos_embed_max_size=8, **sizes, **text).eval()
    return quiet(StableDiffusion3Pipeline(network, scheduler, vae(16), *[None] * 6))


def flux(scheduler):
    sizes = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    text = {"joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED}
    network = FluxTransformer2DModel(num_attention_heads=2, axes_dims_rope=(4, 4, 8), guidance_embeds=True, **sizes, **text)
    return quiet(FluxPipeline(scheduler, vae(1), None, None, None, None, network.eval()))


def sana(scheduler):
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4}
    network = SanaTransformer2DModel(cross_attention_dim=8, caption_channels=WIDTH, **sizes, **heads).eval()
    return quiet(SanaPipeline(None, None, deep_vae(), network, scheduler))


def deep_vae():
    both = {
        f"{way}_{key}": value
        for way in ("encoder", "decoder")
        for key, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8), "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }  # fmt: skip
    norms = {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    blocks = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return AutoencoderDC(latent_channels=4, attention_head_dim=2, **both, **norms, **blocks).eval()


def wan(scheduler):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "num_layers": 1}
    network = WanTransformer3DModel(text_dim=WIDTH, ffn_dim=32, rope_max_seq_len=32, **sizes).eval()
    video = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
    return quiet(WanPipeline(None, None, video.eval(), scheduler, network))


WAYS = {
    "SD3": (sd3, {**PROMPT, **POOL, **SIZE}),
    "FLUX": (flux, {"prompt_embeds": PROMPT["prompt_embeds"], "pooled_prompt_embeds": POOL["pooled_prompt_embeds"], **SIZE}),
    "FLUX, two branches": (flux, {**PROMPT, **POOL, "true_cfg_scale": 2.0, **SIZE}),
    "Sana": (
        sana,
        {**PROMPT, **MASKS, "negative_prompt": None, "use_resolution_binning": False, **SIZE, "height": 32, "width": 32},
    ),
    "Wan": (wan, {**PROMPT, **SIZE, "num_frames": 5}),
}
"""name -> (pipeline with this scheduler, arguments)."""

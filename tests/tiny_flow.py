"""Tiny random pipelines of flow matching, and SDXL, without text encoders: they take embeddings."""

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from tests.tiny_pipelines import quiet, text_unet
from tests.tiny_pipelines import vae as plain_vae

SHIFTED = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}
TOKENS, WIDTH, POOLED = 7, 32, 16


def words(seed, *shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


PROMPT = {"prompt_embeds": words(0, TOKENS, WIDTH), "negative_prompt_embeds": words(1, TOKENS, WIDTH)}
POOL = {"pooled_prompt_embeds": words(2, POOLED), "negative_pooled_prompt_embeds": words(3, POOLED)}
MASKS = {f"{name}_attention_mask": torch.ones(1, TOKENS, dtype=torch.int64) for name in ("prompt", "negative_prompt")}
SDXL_POOLED = {"pooled_prompt_embeds": torch.ones(2, 8), "negative_pooled_prompt_embeds": torch.zeros(2, 8)}
SIZE = {"height": 16, "width": 16, "output_type": "latent"}


def vae(channels=4):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    return AutoencoderKL(latent_channels=channels, **blocks, **sizes, **SHIFTED).eval()


def sdxl(scheduler):
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
    parts = (plain_vae(), None, None, None, None, text_unet(**added), scheduler)
    return quiet(StableDiffusionXLPipeline(*parts, add_watermarker=False))


def sd3(scheduler, **options):
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 16, "num_layers": 2, "attention_head_dim": 4, "out_channels": 16}
    text = {"caption_projection_dim": 8, "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED}
    network = SD3Transformer2DModel(num_attention_heads=2, pos_embed_max_size=8, **sizes, **text, **options).eval()
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


def wan(scheduler, num_layers=1):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "num_layers": num_layers}
    network = WanTransformer3DModel(text_dim=WIDTH, ffn_dim=32, rope_max_seq_len=32, **sizes).eval()
    video = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
    return quiet(WanPipeline(None, None, video.eval(), scheduler, network))


def qwen_image(scheduler):
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 16}
    network = QwenImageTransformer2DModel(num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), **sizes)
    stats = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    return quiet(QwenImagePipeline(scheduler, AutoencoderKLQwenImage(**sizes, **stats).eval(), None, None, network.eval()))


def lumina2(scheduler):
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1}
    heads = {
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (128, 128, 128),
    }
    network = Lumina2Transformer2DModel(cap_feat_dim=WIDTH, **sizes, **heads).eval()
    return quiet(Lumina2Pipeline(network, scheduler, vae(), None, None))


def aura_flow(scheduler):
    sizes = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "attention_head_dim": 8,
        "pos_embed_max_size": 64,
    }
    layers = {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "num_attention_heads": 2}
    network = AuraFlowTransformer2DModel(joint_attention_dim=WIDTH, caption_projection_dim=16, **sizes, **layers).eval()
    return quiet(AuraFlowPipeline(None, None, vae(), network, scheduler))


def hunyuan_video(scheduler):
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1}
    layers = {"num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "rope_axes_dim": (2, 4, 4)}
    network = HunyuanVideoTransformer3DModel(text_embed_dim=WIDTH, pooled_projection_dim=POOLED, **sizes, **layers).eval()
    blocks = {f"{way}_block_types": (f"HunyuanVideo{kind}Block3D",) * 4 for way, kind in (("down", "Down"), ("up", "Up"))}
    video = AutoencoderKLHunyuanVideo(
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=4, **blocks
    )
    return quiet(HunyuanVideoPipeline(None, None, network, video.eval(), scheduler, None, None))


def pixart(scheduler):
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH}
    network = PixArtTransformer2DModel(use_additional_conditions=False, **sizes, **heads).eval()
    return quiet(PixArtSigmaPipeline(None, None, vae(), network, scheduler))


def cogvideo(scheduler, num_layers=1):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": num_layers}
    frames = {"sample_width": 2, "sample_height": 2, "sample_frames": 9, "patch_size": 2, "temporal_compression_ratio": 4}
    text = {"time_embed_dim": 2, "text_embed_dim": WIDTH, "max_text_seq_length": TOKENS}
    network = CogVideoXTransformer3DModel(**sizes, **frames, **text).eval()
    blocks = {f"{way}_block_types": (f"CogVideoX{kind}Block3D",) * 4 for way, kind in (("down", "Down"), ("up", "Up"))}
    video = AutoencoderKLCogVideoX(block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2, **blocks)
    return quiet(CogVideoXPipeline(None, None, video.eval(), network, scheduler))


MASKED = {**PROMPT, **MASKS, **SIZE, "height": 32, "width": 32}
FLUX = {"prompt_embeds": PROMPT["prompt_embeds"], "pooled_prompt_embeds": POOL["pooled_prompt_embeds"], **SIZE}
QWEN = {f"{name}_embeds_mask": torch.ones(1, TOKENS, dtype=torch.int64) for name in ("prompt", "negative_prompt")}
WAYS = {
    "SD3": (sd3, {**PROMPT, **POOL, **SIZE}),
    "FLUX": (flux, FLUX),
    "FLUX, two branches": (flux, {**PROMPT, **POOL, "true_cfg_scale": 2.0, **SIZE}),
    "Sana": (sana, {**MASKED, "negative_prompt": None, "use_resolution_binning": False}),
    "Wan": (wan, {**PROMPT, **SIZE, "num_frames": 5}),
    "Qwen-Image": (qwen_image, {**PROMPT, **QWEN, **SIZE, "true_cfg_scale": 2.0}),
    "Lumina2": (lumina2, MASKED),
    "AuraFlow": (aura_flow, {**MASKED, **SIZE}),
    "HunyuanVideo": (
        hunyuan_video, {**FLUX, "prompt_attention_mask": torch.ones(1, TOKENS), "num_frames": 5},
    ),
}  # fmt: skip
"""name -> (pipeline with this scheduler, arguments), of flow matching."""
OTHERS = {
    "PixArt": (pixart, {**MASKED, **SIZE, "negative_prompt": None, "use_resolution_binning": False}),
    "CogVideoX": (cogvideo, {**PROMPT, **SIZE, "num_frames": 5}),
}
"""The same, on betas."""

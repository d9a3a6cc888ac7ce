"""Cards of small models and checkpoints of them as the original training code leaves them."""

from dataclasses import replace
from functools import cache

import torch

from iec.models import card
from tests.models import originals

LATENT = {"ldm_lsun_bedroom": "vqvae", "ldm_lsun_church": "vae", "ldm_imagenet": "vqvae", "sd_coco": "vae"}
ATTENTION = {
    "ddim_cifar": {1},
    "ddim_lsun_church": {4},
    "ldm_lsun_bedroom": {1, 2, 3},
    "ldm_lsun_church": {0, 1, 2, 3},
    "ldm_imagenet": {1, 2, 3},
    "sd_coco": {0, 1, 2},
}
LEVELS = {
    "ddim_cifar": [64, 128, 128, 128],
    "ddim_lsun_church": [64, 64, 64, 128, 64, 64],
    "ldm_lsun_bedroom": [64, 64, 128, 64],
    "ldm_lsun_church": [64, 64, 128, 64, 64],
    "ldm_imagenet": [64, 64, 128, 64],
    "sd_coco": [64, 128, 64, 64],
}
BLOCKS = {"ddim_cifar": 2, "ldm_lsun_bedroom": 2, "sd_coco": 2}
NAMES = tuple(LEVELS)
WIDTH, SCALE = 32, 0.3217


def small(name):
    """The card with few channels, and no hash."""
    full = card(name)
    components = {}
    for key, component in full.components.items():
        config = dict(component.config)
        if key == "unet":
            config |= {"block_out_channels": LEVELS[name], "layers_per_block": BLOCKS.get(name, 1)}
            config |= {"cross_attention_dim": WIDTH} if "cross_attention_dim" in config else {}
            config |= {"attention_head_dim": 8} if component.heads else {}
        elif key in ("vae", "vqvae"):
            config |= {"block_out_channels": [64, 128, 64, 64][: len(config["block_out_channels"])], "layers_per_block": 1}
            config |= {"num_vq_embeddings": 64} if key == "vqvae" else {}
        elif key == "text_encoder":
            config |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
        else:
            config |= {"embedding_dim": WIDTH}
        components[key] = replace(component, config=config)
    return replace(full, components=components, original=replace(full.original, sha256=None, md5=None, size=None))


def unet(name):
    """Shapes of the UNet alone."""
    levels, blocks, attention = LEVELS[name], BLOCKS.get(name, 1), ATTENTION[name]
    if name not in LATENT:
        return originals.ddpm(levels, blocks, attention)
    context = WIDTH if name in ("ldm_imagenet", "sd_coco") else None
    return originals.openai(levels, blocks, attention, card(name).shape[0], context, residual=name == "ldm_lsun_church")


def first_stage(name):
    quantized = LATENT[name] == "vqvae"
    return originals.autoencoder(
        [64, 128, 64] if quantized else [64, 128, 64, 64], 1, 3 if quantized else 4, 64 if quantized else None
    )


def state(name):
    """All tensors of the file, to be replaced, not changed. With EMA: ``model.*`` has other values than ``model_ema.*``."""
    return dict(_state(name))


@cache
def _state(name):
    if name not in LATENT:
        return originals.fill(unet(name))
    facts = card(name)
    values = originals.fill(unet(name).below("model.diffusion_model."), seed=1)
    if facts.original.ema:
        averaged = originals.fill(unet(name).below("diffusion_model."), seed=2)
        values |= {"model_ema." + key.replace(".", ""): value for key, value in averaged.items()}
        values |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    values |= originals.fill(first_stage(name).below("first_stage_model."), seed=3)
    if name == "ldm_imagenet":
        values["cond_stage_model.embedding.weight"] = torch.randn(1001, WIDTH)
    if name == "ldm_lsun_church":
        values["scale_factor"] = torch.tensor(SCALE)
    if name == "sd_coco":
        values |= originals.fill(originals.clip(WIDTH, 2, 49408, 77).below("cond_stage_model.transformer."), seed=4)
        values["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    values |= {key: torch.rand(1000) for key in originals.SCHEDULE}
    values["alphas_cumprod"] = torch.tensor(facts.schedule.abar, dtype=torch.float32)
    return values


def save(name, values, path, legacy=False):
    """As Lightning saves it (LDM), or the state dict alone (DDPM)."""
    whole = values if name not in LATENT else {"epoch": 3, "global_step": 9, "state_dict": values, "callbacks": {}}
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    return path

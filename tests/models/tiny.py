"""The paper's models in small: the same components, block types and settings, few channels. 64 channels, so that a group of
GroupNorm(32) holds more than one.
"""

from dataclasses import replace

from diffusers import DDIMScheduler, StableDiffusionPipeline

from iec.models import Card, Model, card
from iec.models.architecture import build

SMALL = {
    "UNet2DModel": lambda c: {"block_out_channels": [64] * len(c["block_out_channels"]), "layers_per_block": 1},
    "UNet2DConditionModel": lambda c: {"block_out_channels": [64] * len(c["block_out_channels"]), "layers_per_block": 1},
    "DiTTransformer2DModel": lambda _: {"sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
    "VQModel": lambda c: {"block_out_channels": [32] * len(c["block_out_channels"]), "layers_per_block": 1},
    "AutoencoderKL": lambda c: {"block_out_channels": [32] * len(c["block_out_channels"]), "layers_per_block": 1},
    "CLIPTextModel": lambda _: {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2},
    "Embedding": lambda _: {"embedding_dim": 32},
}
PAPER = ("ddim_cifar", "ddim_lsun_bedroom", "ldm_lsun_bedroom", "ldm_lsun_church", "ldm_imagenet", "sd_coco")
SIZE = {"pixel": 32, "latent": 16}


def tiny(name: str) -> Card:
    """The card of a model with its components made small."""
    full = card(name)
    components = {}
    for key, component in full.components.items():
        config = {**component.config, **SMALL[component.kind](component.config)}
        if "cross_attention_dim" in config:
            config["cross_attention_dim"] = 32
        if component.kind == "UNet2DModel" and config["attention_head_dim"]:
            config["attention_head_dim"] = 8 if component.heads else 32
        components[key] = replace(component, config=config)
    size = SIZE[full.cut]
    made = replace(full, components=components, shape=(full.shape[0], size, size), batch_size=2, num_images=3, trace_images=1)
    factor = 1 if made.decoder is None else 2 ** (len(made.decoder.config["block_out_channels"]) - 1)
    return replace(made, resolution=size * factor)


def write(facts: Card, folder, scaling_factor: float = 0.5) -> None:
    """The tiny model with random weights as a folder in diffusers' pipeline layout."""
    from safetensors.torch import save_file

    for key, component in facts.components.items():
        config = dict(component.config)
        if config.get("scaling_factor", 0) is None:
            config["scaling_factor"] = scaling_factor
        module = build(component, config)
        if component.kind == "Embedding":
            (folder / key).mkdir(parents=True)
            save_file(module.state_dict(), folder / key / "diffusion_pytorch_model.safetensors")
        else:
            module.save_pretrained(folder / key)


def scheduler(facts: Card) -> DDIMScheduler:
    """diffusers' DDIM for the model's noise schedule."""
    s = facts.schedule
    return DDIMScheduler(
        num_train_timesteps=s.num_timesteps,
        beta_start=s.beta_start,
        beta_end=s.beta_end,
        beta_schedule=s.kind,
        clip_sample=False,
        set_alpha_to_one=facts.final == -1,
        steps_offset=0 if facts.final == -1 else 1,
        timestep_spacing="leading",
    )


def stable_diffusion(model: Model) -> StableDiffusionPipeline:
    """The pipeline around the parts of a (tiny) ``sd_coco``."""
    encoder = model.conditioner.encoder
    pipe = StableDiffusionPipeline(
        vae=model.decoder.module,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        unet=model.unet,
        scheduler=scheduler(model.card),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

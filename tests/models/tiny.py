"""The paper's models in small (`iec.gpucheck.models.tiny`), as folders and as pipelines."""

from diffusers import DDIMScheduler, StableDiffusionPipeline

from iec.gpucheck.models import tiny as tiny
from iec.models import Card, Model
from iec.models.architecture import build

PAPER = ("ddim_cifar", "ddim_lsun_bedroom", "ldm_lsun_bedroom", "ldm_lsun_church", "ldm_imagenet", "sd_coco")


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

"""Network, guidance, sampler, decoder and conditioning together against diffusers' own pipelines, on tiny random models."""

import pytest
import torch
from diffusers import DDIMPipeline, LDMPipeline

from iec.models.source import Source
from iec.sampling.ddim import Sampler
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable
from tests.models.tiny import scheduler, stable_diffusion, tiny

STEPS, INDICES, SEED = 10, (0, 1), 3


def ours(model):
    """The images in [0, 1], [B, H, W, 3], and the noise that they start from."""
    facts = model.card
    spacing = "uniform" if facts.spacing == "quad" else facts.spacing  # diffusers has no quad
    table = Timetable.spaced(spacing, STEPS, facts.schedule, final=facts.final)
    noise = Noise(SEED, INDICES, facts.shape)
    *_, x = Sampler(table).trajectory(model.guided(model.network), noise, model.cond(INDICES), model.device)
    images = (model.decode(x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return images.double(), noise.initial(torch.float32, "cpu")


def assert_close(a, b):
    """To a thousandth of the range after ten steps; in practice about 1e-5."""
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=1e-3, rtol=0)


def start_from(monkeypatch, target, noise):
    """Pipelines draw their own noise; this gives them ours."""
    monkeypatch.setattr(target, lambda *args, **kwargs: noise)


@pytest.mark.parametrize("name", ["ddim_cifar", "ddim_lsun_bedroom"])
def test_pixel_models_equal_ddim_pipeline(name, monkeypatch):
    model = Source.of(tiny(name), random_weights=True).load("cpu")
    images, noise = ours(model)
    start_from(monkeypatch, f"{DDIMPipeline.__module__}.randn_tensor", noise)
    pipe = DDIMPipeline(model.unet, scheduler(model.card))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(batch_size=2, num_inference_steps=STEPS, use_clipped_model_output=False, output_type="np").images
    assert_close(images, expected)


def test_unconditional_latent_model_equals_ldm_pipeline(monkeypatch):
    model = Source.of(tiny("ldm_lsun_bedroom"), random_weights=True).load("cpu")
    images, noise = ours(model)
    start_from(monkeypatch, f"{LDMPipeline.__module__}.randn_tensor", noise)
    pipe = LDMPipeline(model.decoder.module, model.unet, scheduler(model.card))
    pipe.set_progress_bar_config(disable=True)
    assert_close(images, pipe(batch_size=2, num_inference_steps=STEPS, output_type="np").images)


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_text_to_image_equals_stable_diffusion_pipeline(guidance):
    model = Source.of(tiny("sd_coco"), random_weights=True, guidance=guidance).load("cpu")
    images, noise = ours(model)
    pipe = stable_diffusion(model)
    prompts = [model.conditioner.prompts.texts[n] for n in INDICES]
    size = model.card.resolution
    made = pipe(
        prompts, height=size, width=size, num_inference_steps=STEPS, guidance_scale=guidance, latents=noise, output_type="np"
    )
    assert_close(images, made.images)


@pytest.mark.parametrize("name", ["ldm_lsun_church", "ldm_imagenet"])
def test_models_without_a_pipeline_equal_a_loop_over_diffusers_classes(name):
    model = Source.of(tiny(name), random_weights=True).load("cpu")
    images, x = ours(model)
    steps, decoder = scheduler(model.card), model.decoder
    steps.set_timesteps(STEPS)
    cond = model.cond(INDICES)
    with torch.no_grad():
        for t in steps.timesteps:
            if cond is None:
                eps = model.unet(x, t).sample
            else:
                low, high = (model.unet(x, t, cond[:, k]).sample for k in (0, 1))
                eps = low + model.card.guidance * (high - low)
            x = steps.step(eps, t, x).prev_sample
        expected = (decoder.module.decode(x / decoder.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert_close(images, expected)
    assert images.shape == (2, model.card.resolution, model.card.resolution, 3)

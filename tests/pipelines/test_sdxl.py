"""Cache and quantization under Stable Diffusion XL and ControlNet: the UNet is told more than text."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

import iec
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.quantization import PTQConfig
from iec.efficiency.quantization.config import Reconstruction
from iec.errors import ConfigError
from iec.models.inputs import Conditioning
from iec.models.unet import UNetNetwork
from iec.pipelines.euler import IECEulerScheduler
from iec.sampling.network import FeatureCache, Step
from tests.tiny_flow import SDXL_POOLED, sdxl
from tests.tiny_pipelines import GUIDANCE, TEXT, quiet, refiner, seeded, stable_diffusion

STEPS = 6
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
EULER = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")
DDIM = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
ARGUMENTS = {**TEXT, **SDXL_POOLED, "output_type": "latent", "num_inference_steps": STEPS}
FIXED = iec.Correction(2, (0.7, 0.3), tolerance=0)
CACHED = iec.Placement("all_steps", cached_steps="cached")


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    return sdxl(EULER)


def latents(pipe, **arguments):
    size = {} if "image" in arguments and "latents" not in arguments else {"height": 8, "width": 8}
    return pipe(**{"generator": seeded(), **ARGUMENTS, **size, **arguments}).images


def pattern(pipe, **arguments):
    """The latents, and ``F`` for every full call of the UNet, ``.`` for every cached one."""
    calls = SimpleNamespace(total=0, full=[])

    def begin(*_):
        calls.total += 1

    hooks = [pipe.unet.register_forward_pre_hook(begin)]
    hooks.append(pipe.unet.mid_block.register_forward_pre_hook(lambda *_: calls.full.append(calls.total)))
    try:
        made = latents(pipe, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return made, "".join("F" if i in calls.full else "." for i in range(1, calls.total + 1))


def told(pipe):
    """What SDXL tells its UNet for two images under guidance."""
    sizes = torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 4)
    texts, pooled = (torch.cat([values[f"negative_{name}"], values[name]])
                     for values, name in ((TEXT, "prompt_embeds"), (SDXL_POOLED, "pooled_prompt_embeds")))  # fmt: skip
    return Conditioning({"encoder_hidden_states": texts, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}})


def by_hand(pipe, correction, cached_steps, interval, cut):
    """SDXL's run with guidance in Karras' variables, in float64, with a full call at every ``interval``-th step."""
    pipe.unet.double()
    cond = Conditioning({
        "encoder_hidden_states": told(pipe).arguments["encoder_hidden_states"].double(),
        "added_cond_kwargs": {key: value.double() for key, value in told(pipe).arguments["added_cond_kwargs"].items()},
    })  # fmt: skip
    network, feature = CachedUNetNetwork(pipe.unet, cut), None
    theirs = EulerDiscreteScheduler.from_config(EULER.config)
    theirs.set_timesteps(STEPS)
    z = torch.randn(2, 4, 8, 8, generator=seeded()).double() * theirs.init_noise_sigma

    def answer(z, sigma, label, mode):
        nonlocal feature
        x = torch.cat([z, z]) / (sigma**2 + 1) ** 0.5
        made = network(x, Step(0, label, mode), cond, feature)
        feature = feature if made.feature is None else FeatureCache(made.feature, Step(0, label))
        without, text = made.eps.chunk(2)
        return without + GUIDANCE * (text - without)

    sigmas = theirs.sigmas.double()
    for i, label in enumerate(theirs.timesteps.tolist()):
        t, s, mode = sigmas[i], sigmas[i + 1], "cached" if i % interval else "full"
        y = z + (s - t) * answer(z, t, label, mode)
        for weight in correction.lambdas if correction and not (i % interval and cached_steps == "skip") else ():
            mode = "cached" if i % interval and cached_steps == "cached" else "full"
            y = y + weight * (z + (s - t) * answer(y, s, label, mode) - y)
        z = y
    return z


CASES = {
    "cache alone": (None, "skip", "F..F.."),
    "corrected at refreshes": (FIXED, "skip", "FFF..FFF.."),
    "corrected with the cache": (FIXED, "cached", "FFF......FFF......"),
    "corrected in full": (FIXED, "full", "FFF.FF.FFFFF.FF.FF"),
}


@pytest.mark.parametrize("case", CASES)
def test_cached_sdxl_is_the_loop_by_hand(pipe, case):
    correction, cached_steps, calls = CASES[case]
    where = None if correction is None else iec.Placement("all_steps", cached_steps=cached_steps)
    with iec.apply(pipe, correction=correction, placement=where, cache=iec.CachingConfig(3, cut=0)):
        assert type(pipe.scheduler) is IECEulerScheduler
        made, seen = pattern(pipe)
        assert seen == calls and torch.equal(latents(pipe), made)
    torch.testing.assert_close(made.double(), by_hand(pipe, correction, cached_steps, 3, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [EULER, DDIM], ids=lambda scheduler: type(scheduler).__name__)
def test_a_refresh_at_every_step_is_the_plain_pipeline_bit_for_bit(pipe, scheduler):
    pipe.scheduler = scheduler
    plain = latents(pipe)
    with iec.apply(pipe, cache=iec.CachingConfig(1)):
        assert torch.equal(latents(pipe), plain)
    with iec.apply(pipe, cache=iec.CachingConfig(3)):
        assert not torch.equal(latents(pipe), plain)
    assert torch.equal(latents(pipe), plain) and pipe.scheduler is scheduler


@pytest.mark.parametrize("options", [{}, {"forecast": "newton", "forecast_order": 2, "forecast_clock": "log_snr"}], ids=str)
def test_euler_and_ddim_make_the_same_images_with_a_cache(pipe, options):
    """Both forms are of the same steps, also on the clock of a forecast."""
    made = []
    for scheduler in (EULER, DDIM):
        pipe.scheduler = scheduler
        with iec.apply(pipe, correction=FIXED, placement=CACHED, cache=iec.CachingConfig(2, **options)):
            made.append(latents(pipe))
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)


def test_levels_without_whole_timesteps_and_given_sigmas_have_a_cache(pipe):
    pipe.scheduler = EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    for arguments in ({}, {"sigmas": [12.0, 5.0, 1.5, 0.3, 0.0]}):
        plain = latents(pipe, **arguments)
        for interval in (1, 2):
            with iec.apply(pipe, cache=iec.CachingConfig(interval)):
                assert torch.equal(latents(pipe, **arguments), plain) == (interval == 1)


def test_the_refiner_refreshes_at_its_own_first_step():
    torch.manual_seed(0)
    pipe = refiner()
    pipe.scheduler = EULER
    arguments = {"image": torch.randn(2, 4, 8, 8, generator=seeded(3)), "num_inference_steps": 10, "denoising_start": 0.6}
    plain = latents(pipe, **arguments)
    with iec.apply(pipe, cache=iec.CachingConfig(1)):
        assert torch.equal(latents(pipe, **arguments), plain)
    with iec.apply(pipe, correction=iec.Correction(tolerance=0), placement=CACHED, cache=iec.CachingConfig(3)):
        made, seen = pattern(pipe, **arguments)
        assert seen == "FFF....FF" and torch.equal(latents(pipe, **arguments), made)  # one entry is passed over


def controlled(xl):
    """A ControlNet pipeline of the same parts, and its further arguments."""
    torch.manual_seed(0)
    base = sdxl(EULER) if xl else stable_diffusion()
    base.scheduler = EULER
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4,)).eval()
    for module in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.1)
    kind = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
    parts = {**base.components, "controlnet": control}
    pipe = kind(**parts, add_watermarker=False) if xl else kind(**parts, requires_safety_checker=False)
    image = {"image": torch.rand(2, 3, 8, 8, generator=seeded(4)), "latents": torch.randn(2, 4, 8, 8, generator=seeded(5))}
    return quiet(pipe), {**image, "height": 8, "width": 8, **(SDXL_POOLED if xl else {})}


@pytest.mark.parametrize("xl", [False, True])
def test_residuals_of_a_controlnet_reach_the_skips_of_cached_steps(xl):
    pipe, arguments = controlled(xl)
    arguments = {**TEXT, **arguments, "output_type": "latent", "num_inference_steps": STEPS}

    def made(**changes):
        return pipe(**{**arguments, "generator": seeded(), **changes}).images

    plain, uncontrolled = made(), made(controlnet_conditioning_scale=0.0)
    with iec.apply(pipe, cache=iec.CachingConfig(1)):
        assert torch.equal(made(), plain)
    with iec.apply(pipe, correction=FIXED, placement=CACHED, cache=iec.CachingConfig(3, cut=1)):
        cached = made()
        assert torch.equal(made(), cached)
    assert (cached - plain).norm() < (uncontrolled - plain).norm()
    assert torch.equal(made(), plain)


FEW = {"num_inference_steps": 3}


def quantization(**options):
    """Calibrated on the four inputs of two images."""
    config = PTQConfig(**{"calibration_images": 4, "scale_rule": "max", **options})
    return {"quantize": config, "calibration": {**ARGUMENTS, **FEW, "height": 8, "width": 8, "generator": seeded()}}


@pytest.mark.parametrize("options", [{}, {"cache": iec.CachingConfig(2, cut=0)}, {"kernels": "int8_unfused"}], ids=str)
def test_quantized_sdxl_is_near_the_float_one_and_comes_off(pipe, options):
    plain = latents(pipe, **FEW)
    with iec.apply(pipe, **{key: value for key, value in options.items() if key == "cache"}):
        expected = latents(pipe, **FEW)
    with iec.apply(pipe, **quantization(), **options) as applied:
        made = latents(pipe, **FEW)
        assert torch.equal(latents(pipe, **FEW), made)
        assert "add_embedding.linear_1.input" in applied.quantized.quantizers() if "kernels" not in options else True
    assert 0 < (made - expected).norm() < 0.05 * expected.norm()
    assert torch.equal(latents(pipe, **FEW), plain)


def test_what_would_lose_a_calibration_is_refused_before_it(pipe, monkeypatch):
    """A run that ends early, which has no scales for the rest, and a correction at a step that is not there."""
    early = quantization()
    early["calibration"] |= {"num_inference_steps": 4, "denoising_end": 0.5}
    monkeypatch.setattr("iec.pipelines.apply._calibrated", lambda *_: pytest.fail("it was calibrated"))
    with pytest.raises(ConfigError, match="ends after 2 of 4 steps"):
        iec.apply(pipe, **early)
    where = {"correction": iec.Correction(), "placement": iec.Placement("explicit", steps=(99,))}
    with pytest.raises(ConfigError, match=r"sampling indices are 0 \.\. 2"):
        iec.apply(pipe, **quantization(), **where)


def test_rounding_is_learned_on_what_sdxl_tells_its_unet(pipe):
    learned = quantization(weight_bits=4, reconstruct="block", reconstruction=Reconstruction(iterations=1, samples=2))
    with iec.apply(pipe, **learned) as applied:
        latents(pipe, **FEW)
    assert applied.quantized.layers()["add_embedding.linear_1"].rounded_up is not None


def test_inputs_that_are_not_passed_on_are_refused_by_name(pipe):
    cond = told(pipe).arguments
    with iec.apply(pipe, cache=iec.CachingConfig(2)):
        for extra, message in {
            "down_intrablock_additional_residuals": "down_intrablock_additional_residuals",
            "mid_block_additional_residual": "or neither",
        }.items():
            pipe.scheduler.set_timesteps(STEPS)
            with pytest.raises(ConfigError, match=message):
                pipe.unet(torch.randn(4, 4, 8, 8), pipe.scheduler.timesteps[0], **cond, **{extra: torch.zeros(4, 32, 4, 4)})
    expected = pipe.unet(torch.ones(4, 4, 8, 8), 501, **cond).sample
    assert torch.equal(UNetNetwork(pipe.unet)(torch.ones(4, 4, 8, 8), Step(0, 501), told(pipe)).eps, expected)

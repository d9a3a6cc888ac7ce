"""Tiny random pipelines of every kind that can be sampled with DDIM, and what it takes to run one and look at its states."""

import functools
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMTextToImagePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.deprecated import LDMPipeline
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from iec.sampling.timetable import NoiseSchedule, Timetable

PIXEL = DDIMScheduler(clip_sample=False)
LATENT = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
)
STEPS, GUIDANCE = 5, 3.0
UNET = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip
WORDS = {name: torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(["text", "none"])}


def pixel_unet(channels=3):
    levels = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(in_channels=channels, out_channels=channels, **levels, **UNET).eval()


def text_unet(channels=4, **added):
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    sizes = {"in_channels": channels, "out_channels": 4, "cross_attention_dim": 8}
    return UNet2DConditionModel(down_block_types=down, up_block_types=up, **sizes, **UNET, **added).eval()


def vae(kind=AutoencoderKL, channels=4, levels=1):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return kind(block_out_channels=(8,) * levels, latent_channels=channels, norm_num_groups=4, **blocks).eval()


NO_TEXT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")


def stable_diffusion():
    parts = {"vae": vae(), "unet": text_unet(), "scheduler": LATENT, **dict.fromkeys(NO_TEXT)}
    return quiet(StableDiffusionPipeline(**parts, requires_safety_checker=False))


def refiner():
    """SDXL's image-to-image pipeline, whose ``denoising_start`` counts the entries of the scheduler's list."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 16}
    text = CLIPTextModelWithProjection(CLIPTextConfig(bos_token_id=0, eos_token_id=2, projection_dim=8, **sizes))
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
    parts = (vae(), None, text, None, None, text_unet(**added), LATENT)
    return quiet(StableDiffusionXLImg2ImgPipeline(*parts, requires_aesthetics_score=False))


class Words:
    """A tokenizer: any text is 77 tokens."""

    def __call__(self, prompt, **_):
        return SimpleNamespace(input_ids=torch.tensor([[len(text) % 11] * 77 for text in prompt]))


def text_ldm():
    sizes = {"encoder_layers": 1, "encoder_ffn_dim": 8, "encoder_attention_heads": 1}
    bert = LDMBertModel(LDMBertConfig(vocab_size=11, d_model=8, head_dim=8, **sizes)).eval()
    return quiet(LDMTextToImagePipeline(vae(VQModel, 4, levels=4), bert, Words(), text_unet(), LATENT))


def dit():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    network = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, norm_num_groups=4, **sizes)
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.05)
    return quiet(DiTPipeline(network.eval(), vae(), LATENT))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bar:
    """In the place of a pipeline's progress bar: ``n`` of ``total``."""

    def __init__(self, total):
        self.total, self.n = total, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        self.n += 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def guided(network, x):
    """What network says about the doubled batch, combined."""
    without, text = network(torch.cat([x, x])).chunk(2)
    return without + GUIDANCE * (text - without)


TEXT = {"prompt_embeds": WORDS["text"], "negative_prompt_embeds": WORDS["none"], "guidance_scale": GUIDANCE}


def sd_eps(pipe, x, t):
    cond = torch.cat([WORDS["none"], WORDS["text"]])
    return guided(lambda y: pipe.unet(y, t, encoder_hidden_states=cond).sample, x)


def ldm_eps(pipe, x, t):
    cond = pipe.bert(Words()(["", "", "cat", "a dog"]).input_ids)[0]
    return guided(lambda y: pipe.unet(y, t, encoder_hidden_states=cond).sample, x)


def dit_eps(pipe, x, t):
    """x and eps are doubled batches: that is what this pipeline hands to its scheduler."""
    labels, half = torch.tensor([3, 7, 1000, 1000]), x[:2]
    out = pipe.transformer(torch.cat([half, half]), timestep=torch.full((4,), t), class_labels=labels).sample[:, :4]
    eps = out[2:] + GUIDANCE * (out[:2] - out[2:])
    return torch.cat([eps, eps])


KINDS = {
    "DDIM": (lambda: quiet(DDIMPipeline(pixel_unet(), PIXEL)), {"batch_size": 2}, lambda p, x, t: p.unet(x, t).sample),
    "LDM": (
        lambda: quiet(LDMPipeline(vae(VQModel, 3), pixel_unet(), LATENT)), {"batch_size": 2}, lambda p, x, t: p.unet(x, t).sample,
    ),
    "LDM text-to-image": (text_ldm, {"prompt": ["cat", "a dog"], "guidance_scale": GUIDANCE, "height": 64, "width": 64}, ldm_eps),
    "Stable Diffusion": (stable_diffusion, TEXT, sd_eps),
    "DiT": (dit, {"class_labels": [3, 7], "guidance_scale": GUIDANCE}, dit_eps),
}  # fmt: skip
"""name -> (pipeline, arguments, the noise that it predicts at x and t)."""


class Given:
    """Noise for `Sampler`: a start and the noise of each step."""

    def __init__(self, start, steps=()):
        self.start, self.steps = start, steps

    def initial(self, dtype, device):
        return self.start.to(dtype)

    def of_step(self, i, dtype, device):
        return self.steps[i].to(dtype)


def run(pipe, scheduler, **kwargs):
    """(the first state, the last one, timesteps of the network's calls) of a run with this scheduler."""
    pipe.scheduler, seen, times = scheduler, [], []
    plain = scheduler.step

    @functools.wraps(plain)
    def step(model_output, timestep, sample, *args, **kwargs):
        result = plain(model_output, timestep, sample, *args, **kwargs)
        seen.append((sample, result[0] if isinstance(result, tuple) else result.prev_sample))
        return result

    network = getattr(pipe, "unet", None) or pipe.transformer
    hook = network.register_forward_pre_hook(lambda *_: times.append(1))
    scheduler.step = step
    try:
        pipe(**{"num_inference_steps": STEPS, "generator": seeded(), "output_type": "pt", **kwargs})
    finally:
        del scheduler.step
        hook.remove()
    assert len(times) == len(seen)
    return seen[0][0], seen[-1][1], len(times)


def table_of(config, timesteps, eta=0.0):
    schedule = NoiseSchedule(config["beta_schedule"], config["beta_start"], config["beta_end"])
    return Timetable.from_timesteps(timesteps, schedule, final=-1 if config["set_alpha_to_one"] else 0, eta=eta)


def wave(x, t):
    """Not linear, and different at every t."""
    return torch.tanh(x * (1 + t / 1000)) + 0.1 * torch.roll(x, 1, -1)


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))

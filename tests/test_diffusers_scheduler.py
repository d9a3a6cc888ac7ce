"""IECScheduler in every kind of pipeline that it serves, on tiny random networks: against iec.Sampler and against DDIMScheduler."""

import copy
import functools
import math
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMTextToImagePipeline,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.deprecated import LDMPipeline
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from iec import diffusers_scheduler
from iec.correction import Correction
from iec.diffusers_scheduler import IECScheduler
from iec.errors import ConfigError
from iec.network import CountingNetwork, Prediction
from iec.placement import Placement
from iec.sampler import Sampler
from iec.timetable import NoiseSchedule, Timetable

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


def text_unet(channels=4):
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    sizes = {"in_channels": channels, "out_channels": 4, "cross_attention_dim": 8}
    return UNet2DConditionModel(down_block_types=down, up_block_types=up, **sizes, **UNET).eval()


def vae(kind=AutoencoderKL, channels=4, levels=1):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return kind(block_out_channels=(8,) * levels, latent_channels=channels, norm_num_groups=4, **blocks).eval()


NO_TEXT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")


def stable_diffusion():
    parts = {"vae": vae(), "unet": text_unet(), "scheduler": LATENT, **dict.fromkeys(NO_TEXT)}
    return quiet(StableDiffusionPipeline(**parts, requires_safety_checker=False))


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

SETTINGS = {
    "all steps": ({}, Correction(tolerance=0), Placement("all_steps")),
    "first and last": (
        {"placement": "first_last", "fraction": 0.2}, Correction(tolerance=0), Placement("first_last", fraction=0.2),
    ),
    "first step, K 3": (
        {"placement": "first_step", "iterations": 3, "lambdas": 0.7}, Correction(3, (0.7,), 0), Placement("first_step"),
    ),
    "explicit": ({"placement": "explicit", "steps": [1, 3]}, Correction(tolerance=0), Placement("explicit", steps=(1, 3))),
    "official latent": (
        {"preset": "official_latent", "tolerance": None}, Correction.preset("official_latent"), Placement("all_steps"),
    ),
    "official ddpm": ({"preset": "official_ddpm"}, Correction.preset("official_ddpm", tolerance=0.0), Placement("all_steps")),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipes():
    """One pipeline of each kind; every test sets the scheduler it needs."""
    torch.manual_seed(0)
    return {name: make() for name, (make, _, _) in KINDS.items()}


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


def ours(pipe, eps, table, start, correction, placement, noises=()):
    """The last state of `Sampler`, and its network calls in images."""
    network = CountingNetwork(lambda x, step, cond=None, cache=None: Prediction(eps(pipe, x.float(), step.timestep)))
    last = list(Sampler(table, correction, placement).trajectory(network, Given(start, noises)))[-1]
    return last.float(), network.calls.total // len(start)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_our_sampler_and_makes_as_many_calls(pipes, kind, setting):
    pipe, (_, arguments, eps), (options, correction, placement) = pipes[kind], KINDS[kind], SETTINGS[setting]
    base = PIXEL if kind == "DDIM" else LATENT
    start, last, calls = run(pipe, IECScheduler.from_config(base.config, **options), **arguments)
    base.set_timesteps(STEPS)
    table = table_of(base.config, base.timesteps.tolist())
    expected, expected_calls = ours(pipe, eps, table, start, correction, placement)
    assert calls == expected_calls or (correction.tolerance and calls > expected_calls)  # the pipeline cannot save a call
    plain = ours(pipe, eps, table, start, Correction(0), placement)[0]
    assert (expected - plain).abs().max() > 100 * (last - expected).abs().max()  # what is compared is the correction
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_placement_none_is_ddim_bit_for_bit(pipes, kind):
    pipe, (_, arguments, _) = pipes[kind], KINDS[kind]
    eta = {} if kind == "DiT" else {"eta": 0.6}
    if "LDM" in kind:  # these two do not hand their generator to the scheduler
        arguments = {**arguments, "generator": None}
    results = []
    for scheduler in (DDIMScheduler.from_config(LATENT.config), IECScheduler.from_config(LATENT.config, placement="none")):
        torch.manual_seed(1)
        results.append(run(pipe, scheduler, **arguments, **eta)[1])
    assert torch.equal(*results)


@pytest.mark.parametrize("placement", ["all_steps", "none"])
def test_image_to_image_starts_where_it_means_to(pipes, placement):
    pipe = quiet(StableDiffusionImg2ImgPipeline(**pipes["Stable Diffusion"].components, requires_safety_checker=False))
    scheduler, image = IECScheduler.from_config(LATENT.config, placement=placement), torch.randn(2, 4, 8, 8)
    start, last, calls = run(pipe, scheduler, image=image, strength=0.6, **TEXT)
    assert calls == (6 if placement == "all_steps" else 3)
    table = table_of(LATENT.config, [401, 201, 1])
    expected, _ = ours(pipe, sd_eps, table, start, Correction(tolerance=0), Placement(placement))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_image_to_image_with_some_steps_corrected_needs_its_timesteps(pipes):
    pipe = quiet(StableDiffusionImg2ImgPipeline(**pipes["Stable Diffusion"].components, requires_safety_checker=False))
    scheduler, arguments = (
        IECScheduler.from_config(LATENT.config, placement="first_step"),
        {"image": torch.randn(2, 4, 8, 8), **TEXT},
    )
    with pytest.raises(ConfigError, match="not the step it means"):
        run(pipe, scheduler, strength=0.6, **arguments)
    with pytest.raises(ConfigError, match="not the step it means"):
        run(pipe, IECScheduler.from_config(LATENT.config), strength=0.6, timesteps=[801, 401, 1], **arguments)
    start, last, calls = run(pipe, scheduler, strength=1.0, timesteps=[401, 201, 1], **arguments)
    assert calls == 4
    table = table_of(LATENT.config, [401, 201, 1])
    expected, _ = ours(pipe, sd_eps, table, start, Correction(tolerance=0), Placement("first_step"))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [LATENT, DDIMScheduler.from_config(LATENT.config, set_alpha_to_one=True)])
def test_inpainting_keeps_the_known_region_at_the_noise_level_of_the_state(pipes, base):
    """Against a loop that puts the known region back at the level that the state has: s, in the corrections too."""
    pipe = quiet(StableDiffusionInpaintPipeline(**pipes["Stable Diffusion"].components, requires_safety_checker=False))
    scheduler, known, states = IECScheduler.from_config(base.config), [], []
    plain = scheduler.add_noise
    scheduler.add_noise = lambda original, noise, t: known.append((original, noise)) or plain(original, noise, t)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    x, _, calls = run(
        pipe, scheduler, image=torch.rand(1, 3, 8, 8), mask_image=mask, strength=0.6, height=8, width=8, **TEXT,
        callback_on_step_end=lambda p, i, t, kwargs: states.append(kwargs["latents"]) or {},
    )  # fmt: skip
    assert calls == len(states) == 6
    original, noise = known[-1]
    table = table_of(base.config, [401, 201, 1])

    def blend(y, abar):
        return (1 - mask) * (abar**0.5 * original + (1 - abar) ** 0.5 * noise) + mask * y

    with torch.no_grad():
        for i, (t, _) in enumerate(table.pairs):
            a, b, abar = float(table.A[i]), float(table.B[i]), float(table.abar_s[i])
            y = blend(a * x + b * sd_eps(pipe, x, t), abar)
            last = i == len(table) - 1
            x = blend(y + 0.5 * (a * x + b * sd_eps(pipe, y, t) - y), 1.0 if last else abar)
    torch.testing.assert_close(states[-1], x, rtol=1e-4, atol=1e-4)


def test_inpainting_unet(pipes):
    """A UNet of 9 channels is told of the mask; its pipeline does not touch the state."""
    parts = {**pipes["Stable Diffusion"].components, "unet": text_unet(9)}
    pipe, image = quiet(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)), torch.rand(1, 3, 8, 8)
    arguments = {"image": image, "mask_image": torch.ones(1, 1, 8, 8), "strength": 1.0, "height": 8, "width": 8, **TEXT}
    counts = [run(pipe, IECScheduler.from_config(LATENT.config, placement=p), **arguments)[2] for p in ("all_steps", "first_step")]
    assert counts == [10, 6]


def test_noise_is_drawn_once_a_step(pipes, monkeypatch):
    drawn, plain = [], diffusers_scheduler.randn_tensor
    monkeypatch.setattr(diffusers_scheduler, "randn_tensor", lambda *args: drawn.append(plain(*args)) or drawn[-1])
    pipe, scheduler = pipes["DDIM"], IECScheduler.from_config(PIXEL.config, iterations=2, placement="first_last", count=2)
    start, last, calls = run(pipe, scheduler, batch_size=2, eta=0.8, generator=[seeded(0), seeded(1)])
    assert calls == 13 and len(drawn) == STEPS
    table, placement = table_of(PIXEL.config, [800, 600, 400, 200, 0], eta=0.8), Placement("first_last", count=2)
    expected, _ = ours(pipe, KINDS["DDIM"][2], table, start, Correction(2, tolerance=0), placement, drawn)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def loop(scheduler, network, x, **kwargs):
    """What every pipeline does: the states, from the first on."""
    states = [x]
    for t in scheduler.timesteps:
        states.append(scheduler.step(network(states[-1], int(t)), t, states[-1], **kwargs).prev_sample)
    return states


def wave(x, t):
    """Not linear, and different at every t."""
    return torch.tanh(x * (1 + t / 1000)) + 0.1 * torch.roll(x, 1, -1)


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))


def by_sampler(table, correction, placement, network=wave, noises=()):
    states = Sampler(table, correction, placement).trajectory(
        lambda x, step, cond=None, cache=None: Prediction(network(x, step.timestep)), Given(X, noises)
    )
    return list(states)[-1].float()


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_list_of_timesteps_with_its_own_pairs(eta):
    """quad spacing, whose steps have no common length and whose last ones coincide."""
    schedule = NoiseSchedule()
    table = Timetable.spaced("quad", 40, schedule, eta=eta)
    assert any(table.is_noop(i) for i in range(40))
    scheduler = IECScheduler(clip_sample=False, placement="first_last", fraction=0.25)
    scheduler.set_timesteps(timesteps=[t for t, _ in table.pairs])
    placement, noises = Placement("first_last", fraction=0.25), [torch.randn(X.shape) for _ in range(40)]
    at = [i for i, k in scheduler.run.calls if k == 0]
    assert at == list(range(40)) and {i for i, k in scheduler.run.calls if k} == Sampler(table, placement=placement).corrected
    x = X
    for t in scheduler.timesteps:
        z = noises[scheduler.call(t).index]
        x = scheduler.step(wave(x, int(t)), t, x, eta=eta, variance_noise=z).prev_sample
    expected = by_sampler(table, Correction(tolerance=0), placement, noises=noises)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("trailing", 7), ("linspace", 9)])
def test_steps_end_where_the_next_ones_begin(spacing, steps):
    scheduler = IECScheduler(clip_sample=False, timestep_spacing=spacing)
    theirs = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(scheduler.timesteps[::2], theirs.timesteps) and torch.equal(scheduler.timesteps[1::2], theirs.timesteps)
    table = table_of(scheduler.config, theirs.timesteps.tolist())
    expected = by_sampler(table, Correction(tolerance=0), Placement("all_steps"))
    torch.testing.assert_close(loop(scheduler, wave, X)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_predictions_are_corrected_through_eps(kind):
    """The network's output is turned into the same eps as that of an epsilon network, at the state that it was given."""
    schedule, eps_only = NoiseSchedule(), IECScheduler(clip_sample=False, iterations=2)

    def network(y, t):
        a, eps = schedule.at(t), wave(y, t)
        x0 = (y - math.sqrt(1 - a) * eps) / math.sqrt(a)
        return x0 if kind == "sample" else math.sqrt(a) * eps - math.sqrt(1 - a) * x0

    other = IECScheduler(clip_sample=False, iterations=2, prediction_type=kind)
    for scheduler in (eps_only, other):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(loop(other, network, X)[-1], loop(eps_only, wave, X)[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipping_acts_on_every_target(options, use_clipped):
    """A correction is DDIMScheduler's own step from x_t, with the output at the corrected state, mixed in."""
    scheduler, theirs = IECScheduler(**options), DDIMScheduler(**options)
    scheduler.set_timesteps(8)
    theirs.set_timesteps(8)
    x = X
    for t in theirs.timesteps:

        def target(y, t=t, x=x):
            return theirs.step(wave(y, int(t)), t, x, use_clipped_model_output=use_clipped).prev_sample

        y = target(x)
        x = y + 0.5 * (target(y) - y)
    assert (theirs.step(wave(X, 875), 875, X).pred_original_sample.abs().max()) <= 1.5  # there was something to clip
    torch.testing.assert_close(loop(scheduler, wave, X, use_clipped_model_output=use_clipped)[-1], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", ["change", "residual"])
def test_tolerance_freezes_single_images_and_saves_no_call(criterion):
    correction = Correction(6, (0.5,), 2e-2, criterion=criterion)
    scheduler = IECScheduler(clip_sample=False, iterations=6, tolerance=2e-2, criterion=criterion)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 70
    table, scale = table_of(scheduler.config, list(range(900, -1, -100))), torch.tensor([0.02, 0.3, 1.0]).view(3, 1, 1, 1)

    def network(x, t):
        """Every image converges at its own rate."""
        return wave(x, t) * scale

    states = [list(Sampler(table, correction, Placement("all_steps")).trajectory(
        lambda x, step, cond=None, cache=None, i=i: Prediction(wave(x, step.timestep) * scale[i]), Given(X[i : i + 1])
    ))[-1].float() for i in range(3)]  # fmt: skip
    torch.testing.assert_close(loop(scheduler, network, X)[-1], torch.cat(states), rtol=1e-4, atol=1e-4)


class Bar:
    def __init__(self, total):
        self.total, self.n = total, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        self.n += 1


@pytest.mark.parametrize("options", [{}, {"iterations": 3}, {"placement": "first_step"}, {"placement": "none"}])
def test_progress_and_callbacks(pipes, monkeypatch, options):
    """As with Heun's scheduler: the bar counts sampling steps, the callback comes after every call, with its number."""
    pipe, bars, seen = pipes["Stable Diffusion"], [], []
    monkeypatch.setattr(pipe, "progress_bar", lambda total: bars.append(Bar(total)) or bars[-1])
    scheduler = IECScheduler.from_config(LATENT.config, **options)
    callback = lambda p, i, t, kwargs: seen.append((i, int(t))) or {}  # noqa: E731
    _, _, calls = run(pipe, scheduler, callback_on_step_end=callback, **TEXT)
    assert (bars[0].n, bars[0].total) == (STEPS, STEPS)
    assert seen == list(enumerate(scheduler.timesteps.tolist())) and len(seen) == calls
    if options.get("placement") != "first_step":
        assert scheduler.order * STEPS == calls


def test_an_interrupted_run_leaves_nothing_behind(pipes):
    pipe, scheduler = pipes["Stable Diffusion"], IECScheduler.from_config(LATENT.config)
    clean = run(pipe, IECScheduler.from_config(LATENT.config), **TEXT)[1]

    def stop(pipe, i, t, kwargs):
        if i == 2:  # in the middle of step 1
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(pipe, scheduler, callback_on_step_end=stop, **TEXT)
    scheduler.set_timesteps(5)
    noise, at = torch.randn_like(X), torch.tensor([801, 601, 1])
    assert torch.equal(scheduler.add_noise(X, noise, at), LATENT.add_noise(X, noise, at))
    assert torch.equal(run(pipe, scheduler, **TEXT)[1], clean)


def test_callbacks_may_change_the_state(pipes):
    """Every call starts from what the pipeline holds, as it would with another scheduler."""
    scheduler = IECScheduler.from_config(LATENT.config)
    run(pipes["Stable Diffusion"], scheduler, callback_on_step_end=lambda p, i, t, k: {"latents": 0 * k["latents"]}, **TEXT)
    scheduler.set_timesteps(2)
    t = scheduler.timesteps[0]
    y = scheduler.step(wave(X, 501), t, X).prev_sample
    given = y + 1
    target = IECScheduler.from_config(LATENT.config, lambdas=1.0)
    target.set_timesteps(2)
    target.step(wave(X, 501), t, X)
    goal = target.step(wave(given, 501), t, given).prev_sample
    torch.testing.assert_close(scheduler.step(wave(given, 501), t, given).prev_sample, given + 0.5 * (goal - given))


def test_scheduler_is_saved_and_loaded(tmp_path):
    scheduler = IECScheduler.from_config(LATENT.config, iterations=2, lambdas=[1.0, 0.5], placement="first_last", count=1)
    scheduler.save_pretrained(tmp_path)
    loaded = IECScheduler.from_pretrained(tmp_path)
    assert (loaded.correction, loaded.placement) == (scheduler.correction, scheduler.placement)
    assert loaded.correction == Correction(2, (1.0, 0.5), tolerance=0.0) and loaded.placement == Placement("first_last", count=1)
    for kept in (loaded, DDIMScheduler.from_config(loaded.config)):
        assert all(kept.config[key] == LATENT.config[key] for key in LATENT.config if not key.startswith("_"))
    from_other = IECScheduler.from_config(PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, steps_offset=1).config)
    assert (from_other.config["beta_end"], from_other.config["steps_offset"]) == (0.012, 1)
    again = IECScheduler.from_config(loaded.config, placement="none", count=None)
    assert again.placement == Placement() and again.correction == loaded.correction


@pytest.mark.parametrize("kind", ["Stable Diffusion", "LDM", "DiT"])
def test_pipeline_is_saved_and_loaded(pipes, kind, tmp_path):
    pipe = pipes[kind]
    _, last, _ = run(pipe, IECScheduler.from_config(LATENT.config, lambdas=0.3), **KINDS[kind][1])
    pipe.save_pretrained(tmp_path)
    absent = dict.fromkeys(NO_TEXT) if kind == "Stable Diffusion" else {}
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False, **absent))
    assert type(loaded.scheduler) is IECScheduler and loaded.scheduler.correction.lambdas == (0.3,)
    assert torch.equal(run(loaded, loaded.scheduler, **KINDS[kind][1])[1], last)


def test_ddim_pipeline_drops_the_scheduler_at_construction():
    """diffusers makes a DDIMScheduler of whatever it is given: assign it afterwards, or use iec.apply."""
    pipe = DDIMPipeline(pixel_unet(), IECScheduler.from_config(PIXEL.config))
    assert type(pipe.scheduler) is DDIMScheduler


def test_half_precision_is_computed_in_float32():
    scheduler = IECScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    half, x = loop(scheduler, lambda y, t: wave(y.float(), t).half(), X.half()), X
    assert {state.dtype for state in half} == {torch.float16}
    scheduler.set_timesteps(10)
    torch.testing.assert_close(half[-1].float(), loop(scheduler, wave, x)[-1], rtol=1e-2, atol=5e-2)
    scheduler.set_timesteps(10)  # one rounding a call, none inside
    t, out = scheduler.timesteps[0], wave(X, 900).half()
    first = scheduler.step(out, t, X.half()).prev_sample
    scheduler.set_timesteps(10)
    assert torch.equal(first, scheduler.step(out.float(), t, X.half().float()).prev_sample.half())


def test_views_can_keep_their_own_state():
    """MultiDiffusion (the panorama pipeline) saves and restores the scheduler's __dict__ around every view's step."""
    shared, single = IECScheduler(clip_sample=False), IECScheduler(clip_sample=False)
    views = [X, X.flip(0)]
    shared.set_timesteps(6)
    kept = [copy.deepcopy(shared.__dict__) for _ in views]
    for t in shared.timesteps:
        for i, view in enumerate(views):
            shared.__dict__.update(kept[i])
            views[i] = shared.step(wave(view, int(t)), t, view).prev_sample
            kept[i] = copy.deepcopy(shared.__dict__)
    for start, view in zip([X, X.flip(0)], views, strict=True):
        single.set_timesteps(6)
        assert torch.equal(loop(single, wave, start)[-1], view)


def test_deepcache_helper_is_refused():
    """By the lookup that its wrapper makes (DeepCache/extension/deepcache.py), in a module of its name."""
    module = ModuleType("DeepCache.extension.deepcache")
    exec("def lookup(pipe, t):\n    return list(pipe.scheduler.timesteps).index(t)", module.__dict__)
    scheduler = IECScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="iec.apply"):
        module.lookup(SimpleNamespace(scheduler=scheduler), 800)
    plain = IECScheduler(placement="none")
    plain.set_timesteps(10)
    assert module.lookup(SimpleNamespace(scheduler=plain), 800) == 1


def test_misuse_is_refused():
    scheduler = IECScheduler(clip_sample=False, iterations=2)
    with pytest.raises(ConfigError, match="Call set_timesteps"):
        scheduler.step(X, 901, X)
    with pytest.raises(ConfigError, match="one of them"):
        scheduler.set_timesteps(10, timesteps=[5, 1])
    with pytest.raises(ConfigError, match="Step 0 goes"):
        scheduler.set_timesteps(timesteps=[1, 5])
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="not the first call"):
        scheduler.set_begin_index(4)
    scheduler.step(X, 900, X)
    with pytest.raises(ConfigError, match="Timestep 800 is not that of call 1"):
        scheduler.step(X, 800, X)
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="not both"):
        scheduler.step(X, 900, X, eta=1.0, variance_noise=X, generator=seeded())
    scheduler.set_timesteps(1)
    loop(scheduler, wave, X)
    with pytest.raises(ConfigError, match="call 3 of the 3"):
        scheduler.step(X, 0, X)
    for wrong in ({"prediction_type": "flow"}, {"placement": "some"}, {"preset": "mine"}, {"iterations": 2, "lambdas": [1, 1, 1]}):
        with pytest.raises(ConfigError):
            IECScheduler(**wrong)


def test_a_timestep_without_signal_cannot_be_corrected():
    options = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "clip_sample": False,
    }
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        IECScheduler(**options).set_timesteps(10)
    rest = IECScheduler(**options, placement="explicit", steps=list(range(1, 10)))
    rest.set_timesteps(10)
    assert torch.isfinite(loop(rest, wave, X)[-1]).all()

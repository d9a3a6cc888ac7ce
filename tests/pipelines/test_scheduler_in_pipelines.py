"""IECScheduler in every kind of pipeline that it serves, on tiny random networks: against iec.Sampler and against DDIMScheduler."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)

import iec
from iec.errors import ConfigError
from iec.pipelines import scheduler as scheduler_module
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.placement import Placement
from tests.tiny_pipelines import (
    KINDS,
    LATENT,
    NO_TEXT,
    PIXEL,
    STEPS,
    TEXT,
    Bar,
    Given,
    X,
    pixel_unet,
    quiet,
    refiner,
    run,
    sd_eps,
    seeded,
    table_of,
    text_unet,
    wave,
)

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


def test_the_grey_bundled_model_in_a_pipeline_equals_our_sampler():
    model = iec.load_model("ddim_fashion_small", device="cpu")
    pipe, (options, correction, placement) = quiet(DDIMPipeline(model.unet, PIXEL)), SETTINGS["all steps"]
    start, last, calls = run(pipe, IECScheduler.from_config(PIXEL.config, **options), batch_size=2)
    PIXEL.set_timesteps(STEPS)
    table = table_of(PIXEL.config, PIXEL.timesteps.tolist())
    expected, expected_calls = ours(pipe, lambda p, x, t: p.unet(x, t).sample, table, start, correction, placement)
    assert start.shape == (2, 1, 32, 32) and calls == expected_calls
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    assert pipe(batch_size=1, num_inference_steps=1).images[0].mode == "L"


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
    drawn, plain = [], scheduler_module.randn_tensor
    monkeypatch.setattr(scheduler_module, "randn_tensor", lambda *args: drawn.append(plain(*args)) or drawn[-1])
    pipe, scheduler = pipes["DDIM"], IECScheduler.from_config(PIXEL.config, iterations=2, placement="first_last", count=2)
    start, last, calls = run(pipe, scheduler, batch_size=2, eta=0.8, generator=[seeded(0), seeded(1)])
    assert calls == 13 and len(drawn) == STEPS
    table, placement = table_of(PIXEL.config, [800, 600, 400, 200, 0], eta=0.8), Placement("first_last", count=2)
    expected, _ = ours(pipe, KINDS["DDIM"][2], table, start, Correction(2, tolerance=0), placement, drawn)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


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


def test_a_refiner_starts_where_its_base_ended():
    """denoising_start = 0.6 of 10 steps leaves 4; with K = 1 diffusers runs one entry more, which is passed over."""
    torch.manual_seed(0)
    pipe, latents = refiner(), torch.randn(2, 4, 8, 8)
    pooled = {"pooled_prompt_embeds": torch.ones(2, 8), "negative_pooled_prompt_embeds": torch.zeros(2, 8)}
    arguments = {**TEXT, **pooled, "image": latents, "output_type": "latent"}
    for options, calls in {(("iterations", 1),): 9, (("iterations", 2),): 12, (("placement", "none"),): 4}.items():
        scheduler = IECScheduler.from_config(LATENT.config, **dict(options))
        _, last, made = run(pipe, scheduler, denoising_start=0.6, num_inference_steps=10, **arguments)
        _, expected, _ = run(pipe, scheduler, strength=1.0, denoising_start=None, timesteps=[301, 201, 101, 1],
                             num_inference_steps=4, latents=latents, **arguments)  # fmt: skip
        assert made == calls and torch.equal(last, expected)

"""IECFlowMatchScheduler and IECEulerScheduler in pipelines that people run, on tiny random networks."""

import functools

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)

import iec
from iec.errors import ConfigError
from iec.pipelines.euler import IECEulerScheduler
from iec.pipelines.flow import IECFlowMatchScheduler
from iec.pipelines.scheduler import IECScheduler
from tests.tiny_flow import SDXL_POOLED, WAYS, sdxl
from tests.tiny_pipelines import STEPS, TEXT, Bar, quiet, refiner, seeded, stable_diffusion

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
EULER = EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
)
SDXL = {**TEXT, **SDXL_POOLED, "height": 8, "width": 8, "output_type": "latent"}


@functools.cache
def pipeline(name):
    """One of each; every test sets the scheduler that it needs."""
    torch.manual_seed(0)
    return sdxl(EULER) if name == "SDXL" else WAYS[name][0](FLOW)


def arguments_of(name):
    return SDXL if name == "SDXL" else WAYS[name][1]


def run(pipe, scheduler, **kwargs):
    """(the last state, (F, label, state, next state) of every call, timesteps that the network was given) of a run."""
    pipe.scheduler, calls, told = scheduler, [], []
    plain = scheduler.step

    @functools.wraps(plain)
    def step(output, timestep, sample, **kwargs):
        result = plain(output, timestep, sample, **kwargs)
        calls.append((output, float(timestep), sample, result[0]))
        return result

    network = getattr(pipe, "unet", None) or pipe.transformer

    def tell(network, args, kwargs):
        told.append(float((kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0]))

    hook = network.register_forward_pre_hook(tell, with_kwargs=True)
    scheduler.step = step
    try:
        pipe(**{"num_inference_steps": STEPS, "generator": seeded(), **kwargs})
    finally:
        del scheduler.step
        hook.remove()
    return calls[-1][3], calls, told


@functools.cache
def uncorrected(name):
    """A run of diffusers' scheduler, and s - t of its steps."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(FLOW.config)
    return run(pipeline(name), scheduler, **arguments_of(name)), scheduler.sigmas.diff()


SETTINGS = {
    "default": ({}, (0.5,), range(STEPS - 1)),
    "K 2, last step too": ({"iterations": 2, "lambdas": [0.7, 0.3], "last_step": "correct"}, (0.7, 0.3), range(STEPS)),
    "first step": ({"placement": "first_step"}, (0.5,), [0]),
    "Heun": ({"evaluate_at": "s"}, (0.5,), range(STEPS - 1)),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", WAYS)
def test_every_call_is_the_step_or_its_correction(name, setting):
    """The states follow from the network's outputs by the formula, and the network is told t (Heun: s) in a correction."""
    pipe, (options, lambdas, corrected) = pipeline(name), SETTINGS[setting]
    last, calls, told = run(pipe, IECFlowMatchScheduler.from_config(FLOW.config, **options), **arguments_of(name))
    (plain, theirs_calls, theirs_told), dts = uncorrected(name)
    branches, entry = len(told) // len(calls), iter(enumerate(calls))
    assert torch.equal(calls[0][2], theirs_calls[0][2])
    y = calls[0][2]
    for i in range(STEPS):
        x = y
        for k in range(1 + (len(lambdas) if i in corrected else 0)):
            p, (output, _, state, new) = next(entry)
            assert torch.equal(state, y)
            at = i + 1 if k and setting == "Heun" else i
            assert told[branches * p] == theirs_told[branches * at]
            target = x.double() + dts[i].double() * output.double()
            expected = target if k == 0 else y.double() + lambdas[k - 1] * (target - y.double())
            torch.testing.assert_close(new.double(), expected, rtol=1e-5, atol=1e-5)
            y = new
    assert next(entry, None) is None and torch.equal(y, last) and not torch.equal(last, plain)


@pytest.mark.parametrize("name", [*WAYS, "SDXL"])
def test_without_corrections_the_run_is_that_of_diffusers_scheduler_bit_for_bit(name):
    pipe, plain = pipeline(name), EULER if name == "SDXL" else FLOW
    ours = (IECScheduler if name == "SDXL" else IECFlowMatchScheduler).from_config(plain.config, placement="none")
    assert torch.equal(run(pipe, plain, **arguments_of(name))[0], run(pipe, ours, **arguments_of(name))[0])


@pytest.mark.parametrize("name", ["SD3", "FLUX, two branches", "SDXL"])
def test_runs_follow_each_other_after_other_step_counts_and_exceptions(name):
    pipe = pipeline(name)
    make = functools.partial(IECScheduler.from_config, EULER.config) if name == "SDXL" else IECFlowMatchScheduler
    fresh = {steps: run(pipe, make(), **arguments_of(name), num_inference_steps=steps)[0] for steps in (3, 5)}
    scheduler = make()

    def stop(pipe, i, t, kwargs):
        if i == 2:  # in the middle of step 1
            raise KeyboardInterrupt
        return {}

    for steps in (3, 5, 3):
        assert torch.equal(run(pipe, scheduler, **arguments_of(name), num_inference_steps=steps)[0], fresh[steps])
        with pytest.raises(KeyboardInterrupt):
            run(pipe, scheduler, **arguments_of(name), callback_on_step_end=stop)


@pytest.mark.parametrize("name", ["SD3", "FLUX", "Sana"])
def test_a_list_of_generators_makes_the_images_of_single_runs(name):
    pipe, scheduler = pipeline(name), IECFlowMatchScheduler(shift=3.0)
    twice = {k: torch.cat([v, v]) if torch.is_tensor(v) else v for k, v in arguments_of(name).items()}
    both = run(pipe, scheduler, **twice, generator=[seeded(0), seeded(1)])[0]
    single = [run(pipe, scheduler, **arguments_of(name), generator=seeded(i))[0] for i in range(2)]
    torch.testing.assert_close(both, torch.cat(single), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["SD3", "SDXL"])
def test_pipelines_are_saved_and_loaded(name, tmp_path):
    pipe = pipeline(name)
    if name == "SDXL":
        scheduler = IECScheduler.from_config(EULER.config, lambdas=0.3)
    else:
        scheduler = IECFlowMatchScheduler.from_config(FLOW.config, lambdas=0.3)
    last = run(pipe, scheduler, **arguments_of(name))[0]
    pipe.save_pretrained(tmp_path)
    absent = {key: None for key, value in pipe.components.items() if value is None}
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False, **absent))
    assert type(loaded.scheduler) is type(scheduler) and loaded.scheduler.correction.lambdas == (0.3,)
    assert torch.equal(run(loaded, loaded.scheduler, **arguments_of(name))[0], last)


IMAGE = torch.rand(1, 3, 16, 16, generator=seeded(7))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 8:] = 1
VARIANTS = {
    "SD3": (StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline),
    "FLUX": (FluxImg2ImgPipeline, FluxInpaintPipeline),
}


def variant(name, kind):
    parts = {k: v for k, v in pipeline(name).components.items() if k not in ("image_encoder", "feature_extractor")}
    return quiet(kind(**parts))


@pytest.mark.parametrize("strength", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("name", VARIANTS)
def test_image_to_image_starts_at_the_level_of_the_uncorrected_run(name, strength):
    pipe = variant(name, VARIANTS[name][0])
    arguments = {**arguments_of(name), "image": IMAGE, "strength": strength}
    _, plain, _ = run(pipe, FLOW, **arguments)
    scheduler = IECFlowMatchScheduler.from_config(FLOW.config, last_step="correct")
    _, calls, _ = run(pipe, scheduler, **arguments)
    torch.testing.assert_close(calls[0][2], plain[0][2], rtol=0, atol=0)  # the noised image
    assert calls[0][1] == plain[0][1] and len({t for _, t, _, _ in calls}) == len(plain)
    assert 2 * len(plain) - len(calls) in (0, 1)  # one correction is missing where the run begins at one


def test_image_to_image_by_sigmas_needs_the_same_number_of_calls_in_every_step():
    """FLUX gives sigmas, SD3 a number of steps: there the default, which leaves the last step out, works."""
    arguments = {"image": IMAGE, "strength": 0.6}
    with pytest.raises(ConfigError, match="last_step='correct'"):
        run(variant("FLUX", FluxImg2ImgPipeline), IECFlowMatchScheduler(shift=3.0), **arguments_of("FLUX"), **arguments)
    _, calls, _ = run(variant("SD3", StableDiffusion3Img2ImgPipeline), IECFlowMatchScheduler(), **arguments_of("SD3"), **arguments)
    assert len(calls) == 5


@pytest.mark.parametrize("name", VARIANTS)
def test_inpainting_puts_the_known_region_back_at_the_level_of_the_state(name):
    """Every call is given a state whose known region is sigma noise + (1 - sigma) image, for the level that the state has."""
    pipe, known = variant(name, VARIANTS[name][1]), []
    scheduler = IECFlowMatchScheduler.from_config(FLOW.config, last_step="correct")
    plain = scheduler.scale_noise
    scheduler.scale_noise = lambda image, t, noise: known.append((image, noise)) or plain(image, t, noise)
    arguments = {**arguments_of(name), "image": IMAGE, "mask_image": MASK, "strength": 0.6}
    _, calls, _ = run(pipe, scheduler, **arguments)
    theirs = FlowMatchEulerDiscreteScheduler.from_config(FLOW.config)
    _, plain_calls, _ = run(pipe, theirs, **arguments)
    image, noise = known[-1]
    assert torch.equal(calls[0][2], plain_calls[0][2])
    first = STEPS - len(plain_calls)
    assert len(calls) == 2 * len(plain_calls)
    region = (1 - MASK[..., ::2, ::2]).bool().expand(1, 16, 8, 8) if name == "SD3" else None
    for p, (_, _, state, _) in enumerate(calls):
        sigma = theirs.sigmas[first + (p + 1) // 2]
        expected = sigma * noise + (1 - sigma) * image
        if region is None:  # FLUX packs 2 x 2 pixels, so that whole columns of tokens are known
            state, expected = (v.view(1, 4, 4, -1)[:, :, :2] for v in (state, expected))
            torch.testing.assert_close(state, expected)
        else:
            torch.testing.assert_close(state[region], expected[region])


@pytest.mark.parametrize(
    ("name", "total"), {"SD3": STEPS, "Sana": STEPS, "Wan": STEPS, "FLUX": 2 * STEPS - 1, "SDXL": STEPS}.items()
)
def test_progress_bars_end(name, total, monkeypatch):
    """Those count steps, or entries where sigmas are given."""
    pipe, bars = pipeline(name), []
    monkeypatch.setattr(pipe, "progress_bar", lambda total: bars.append(Bar(total)) or bars[-1])
    scheduler = IECScheduler.from_config(EULER.config) if name == "SDXL" else IECFlowMatchScheduler()
    run(pipe, scheduler, **arguments_of(name))
    assert (bars[0].n, bars[0].total) == (total, total)


KINDS = {
    "text to image": (None, {}),
    "image to image": (StableDiffusionImg2ImgPipeline, {"strength": 0.6, "image": IMAGE[..., :8, :8].repeat(2, 1, 1, 1)}),
    "inpainting": (
        StableDiffusionInpaintPipeline,
        {
            "strength": 0.6, "image": IMAGE[..., :8, :8], "mask_image": MASK[..., 4:12, 4:12], "height": 8, "width": 8,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"iterations": 2, "lambdas": [0.5, 0.3], "last_step": "skip"}])
@pytest.mark.parametrize("kind", KINDS)
def test_euler_and_ddim_make_the_same_images(kind, settings):
    """The input of corrections is scaled at sigma_s, and known regions are put back at the level of the state."""
    torch.manual_seed(0)
    pipe, (cls, arguments) = stable_diffusion(), KINDS[kind]
    pipe = pipe if cls is None else quiet(cls(**pipe.components, requires_safety_checker=False))
    euler = IECScheduler.from_config(EULER.config, **settings)
    ddim = IECScheduler.from_config(EULER.config, clip_sample=False, set_alpha_to_one=True, **settings)
    assert type(euler) is IECEulerScheduler and type(ddim) is IECScheduler
    results = [run(pipe, scheduler, **TEXT, **arguments, output_type="latent") for scheduler in (euler, ddim, EULER)]
    (last, calls, _), (expected, others, _), (plain, _, _) = results
    assert len(calls) == len(others)
    assert (last - plain).abs().max() > 100 * (last - expected).abs().max()  # what is compared is the correction
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_sdxl_takes_a_correction_in_one_line_and_a_refiner_goes_on_from_it():
    pipe = pipeline("SDXL")
    pipe.scheduler = EULER
    with iec.apply(pipe, correction=iec.Correction(tolerance=0)):
        assert type(pipe.scheduler) is IECEulerScheduler
        assert len(run(pipe, pipe.scheduler, **SDXL, sigmas=[10.0, 3.0, 0.5, 0.0], num_inference_steps=3)[1]) == 6
    torch.manual_seed(0)
    fine, latents = refiner(), torch.randn(2, 4, 8, 8)
    arguments = {**TEXT, **SDXL_POOLED, "image": latents, "output_type": "latent"}
    for options, made in {(("iterations", 1),): 9, (("iterations", 2),): 12, (("last_step", "skip"),): 7}.items():
        scheduler = IECScheduler.from_config(EULER.config, **dict(options))
        last, calls, _ = run(fine, scheduler, denoising_start=0.6, num_inference_steps=10, **arguments)
        expected, _, _ = run(fine, scheduler, strength=1.0, timesteps=[301, 201, 101, 1], num_inference_steps=4,
                             denoising_start=None, latents=latents, **arguments)  # fmt: skip
        assert len(calls) == made and torch.equal(last, expected)


def test_apply_corrects_flow_pipelines_and_takes_it_off():
    pipe = pipeline("SD3")
    pipe.scheduler = FLOW
    with iec.apply(pipe, correction=iec.Correction(2, (0.7, 0.3), tolerance=0)):
        ours = run(pipe, pipe.scheduler, **arguments_of("SD3"))[0]
    assert pipe.scheduler is FLOW
    expected = IECFlowMatchScheduler(shift=3.0, iterations=2, lambdas=[0.7, 0.3])
    assert torch.equal(ours, run(pipe, expected, **arguments_of("SD3"))[0])
    for options in ({"placement": iec.Placement("all_steps")}, {"correction": iec.Correction(evaluate_at="s", tolerance=0)}):
        pipe.scheduler = FLOW
        with iec.apply(pipe, **{"correction": iec.Correction(tolerance=0), **options}):
            heun = "correction" in options
            assert (pipe.scheduler.correction.evaluate_at, pipe.scheduler.placement.last_step) == (
                ("s", "skip") if heun else ("t", "correct")
            )
    pipe.scheduler = expected  # keeps its own correction
    with iec.apply(pipe):
        assert pipe.scheduler is not expected and pipe.scheduler.correction == expected.correction


def test_apply_refuses_what_cannot_be_repeated():
    pipe = pipeline("SD3")
    pipe.scheduler = FLOW
    with pytest.raises(ConfigError, match="Apply the correction alone"):
        iec.apply(pipe, cache=iec.CachingConfig(2))
    pipe.transformer.register_to_config(use_meanflow=True)
    try:
        with pytest.raises(ConfigError, match="mean flow"):
            iec.apply(pipe, correction=iec.Correction(tolerance=0))
        iec.apply(pipe, placement=iec.Placement("none")).remove()
    finally:
        pipe.transformer.register_to_config(use_meanflow=False)
    scheduler = IECFlowMatchScheduler()
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(0)
    with pytest.raises(ConfigError, match="moves the step index"):
        scheduler._step_index -= 1

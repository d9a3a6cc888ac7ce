"""What speaks of steps keeps its meaning in pipelines whose loop counts calls."""

from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from diffusers.callbacks import SD3CFGCutoffCallback
from diffusers.guiders import ClassifierFreeGuidance

import iec
from iec.errors import ConfigError
from iec.pipelines.windows import BORDERS, COUNTED, count_steps, in_calls
from iec.sampling.placement import Placement
from tests.tiny_flow import OTHERS, SDXL_POOLED, WAYS, sdxl
from tests.tiny_pipelines import LATENT, TEXT, quiet, refiner, seeded, stable_diffusion

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
FIXED = iec.Correction(tolerance=0)
T = 10
KEPT = {
    "skip_layer_guidance_start": lambda i, count, total, v: not i > count * v,
    "skip_layer_guidance_stop": lambda i, count, total, v: i < count * v,
    "control_guidance_start": lambda i, count, total, v: i / total < v,
    "control_guidance_end": lambda i, count, total, v: not (i + 1) / total > v,
    "adapter_conditioning_factor": lambda i, count, total, v: i < int(count * v),
    "gligen_scheduled_sampling_beta": lambda i, count, total, v: i < int(total * v),
    "cfg_trunc_ratio": lambda i, count, total, v: not (i + 1) / total > v,
}
"""diffusers' own conditions for being before the border, at entry i of ``total``, ``count`` being taken for the number of steps."""


@pytest.mark.parametrize("listed", [False, True], ids=["steps", "sigmas"])
@pytest.mark.parametrize("placement", ["all_steps", "first_step", "K 3"])
@pytest.mark.parametrize("name", BORDERS)
def test_a_border_falls_before_the_first_call_of_its_step(name, placement, listed):
    options = {"iterations": 3} if placement == "K 3" else {"placement": placement}
    scheduler = iec.IECFlowMatchScheduler(**options)
    for steps in (1, 2, 5, 28):
        given = {"sigmas": torch.linspace(1, 1 / steps, steps).tolist()} if listed else {"num_inference_steps": steps}
        scheduler.set_timesteps(**given)
        calls = scheduler.run.calls
        for value in (0.0, 0.01, 0.2, 0.3, 0.5, 0.77, 1.0):
            if value == {"control_guidance_start": 1.0, "control_guidance_end": 0.0}.get(name):
                continue  # diffusers refuses it
            given |= {"skip_guidance_layers": [0], "control_guidance_end": 1.0, "control_guidance_start": 0.0} | {name: value}
            moved = in_calls(scheduler, given)[name]
            assert scheduler.run.calls is calls
            count = len(calls) if listed or name == "cfg_trunc_ratio" else steps
            before = [KEPT[name](p, count, len(calls), moved) for p in range(len(calls))]
            assert before == [KEPT[name](i, steps, steps, value) for i, _ in calls]
            assert not name.startswith("control") or 0 <= moved <= 1


def pattern(pipe, part, active, correction=None, placement=None, **arguments):
    """Where something is on: of the first calls of the steps, and of their corrections."""
    on, network = {}, getattr(pipe, part)
    scheduler = iec.apply(pipe, correction=correction, placement=placement or (None if correction else Placement("none"))).scheduler

    def look(_, args, kwargs):
        i, k = scheduler.upcoming
        on[i, k] = on.get((i, k), False) or active(kwargs, args)

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        pipe(**{"num_inference_steps": T, "generator": seeded(), "output_type": "latent", **arguments})
    finally:
        hook.remove()
        iec.remove(pipe)
    return ["".join(".F"[on[i, k]] if (i, k) in on else " " for i in range(T)) for k in range(2)]


def skips(kwargs, args):
    return kwargs.get("skip_layers") is not None


@pytest.mark.parametrize("given", ["steps", "sigmas"])
def test_skip_layer_guidance_is_on_in_the_same_steps(given):
    torch.manual_seed(0)
    pipe, arguments = WAYS["SD3"][0](FLOW), {**WAYS["SD3"][1], "skip_guidance_layers": [0]}
    if given == "sigmas":
        arguments |= {"sigmas": torch.linspace(1, 1 / T, T).tolist()}
    for window in ({}, {"skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.65}):
        plain, none = pattern(pipe, "transformer", skips, **arguments, **window)
        assert "F" in plain and not none.strip()
        first, corrections = pattern(pipe, "transformer", skips, FIXED, **arguments, **window)
        assert first == plain and corrections == plain[:-1] + " "
    assert pattern(pipe, "transformer", skips, FIXED, Placement("first_step"), **arguments)[0] == ".F........"


def test_guidance_is_truncated_in_the_same_steps():
    torch.manual_seed(0)
    pipe, arguments = WAYS["Lumina2"][0](FLOW), {**WAYS["Lumina2"][1], "cfg_trunc_ratio": 0.4}
    negative = arguments["negative_prompt_embeds"]
    guided = lambda kwargs, _: bool((kwargs["encoder_hidden_states"] == negative).all())  # noqa: E731
    plain = pattern(pipe, "transformer", guided, **arguments)[0]
    assert plain == "FFFF......"
    assert pattern(pipe, "transformer", guided, FIXED, **arguments) == [plain, plain[:-1] + " "]


def test_dynamic_guidance_is_the_same_in_the_same_steps():
    torch.manual_seed(0)
    make, arguments = OTHERS["CogVideoX"]
    pipe = make(CogVideoXDDIMScheduler())

    def scales(**options):
        seen = {}
        with iec.apply(pipe, **options) as applied:
            step = applied.scheduler.step

            @wraps(step)
            def recorded(*args, **kwargs):
                seen[applied.scheduler.upcoming] = pipe.guidance_scale
                return step(*args, **kwargs)

            applied.scheduler.step = recorded
            pipe(**arguments, num_inference_steps=4, use_dynamic_cfg=True, generator=seeded())
        return seen

    plain, corrected = scales(), scales(correction=FIXED)
    assert len(set(plain.values())) == 4 and corrected == {(i, k): plain[i, 0] for i in range(4) for k in range(2)}
    with iec.apply(pipe, correction=FIXED):
        with pytest.raises(ConfigError, match="use_dynamic_cfg divides by the number of steps"):
            pipe(**arguments, timesteps=[999, 500], use_dynamic_cfg=True)
        pipe(**arguments, timesteps=[999, 500], generator=seeded())


def controlled(kind=StableDiffusionControlNetPipeline):
    torch.manual_seed(0)
    base = stable_diffusion()
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4,)).eval()
    return quiet(kind(**base.components, controlnet=control, requires_safety_checker=False))


def controls(kwargs, _):
    return kwargs["conditioning_scale"] > 0


@pytest.mark.parametrize("window", [(0.25, 0.61), (0.31, 0.32)], ids=str)
def test_a_controlnet_is_on_in_the_same_steps(window):
    pipe, arguments = controlled(), {**TEXT, "image": torch.rand(2, 3, 8, 8)}
    arguments |= dict(zip(("control_guidance_start", "control_guidance_end"), window, strict=True))
    plain = pattern(pipe, "controlnet", controls, **arguments)[0]
    assert [plain, plain] == pattern(pipe, "controlnet", controls, FIXED, **arguments)
    assert plain == {0.25: "...FFF....", 0.31: ".........."}[window[0]]


def test_a_window_in_a_run_that_leaves_steps_out_is_refused_and_one_of_all_steps_is_not():
    pipe = controlled(StableDiffusionControlNetImg2ImgPipeline)
    image = {"image": torch.rand(2, 3, 8, 8), "control_image": torch.rand(2, 3, 8, 8)}
    arguments = {**TEXT, **image, "num_inference_steps": T, "generator": seeded(), "output_type": "latent", "strength": 0.5}
    with iec.apply(pipe, correction=FIXED):
        with pytest.raises(ConfigError, match="control_guidance_end would be counted in calls"):
            pipe(**arguments, control_guidance_end=0.5)
        pipe(**arguments)
        pipe(**{**arguments, "strength": 1.0}, control_guidance_end=0.5)
        with pytest.raises(ValueError, match="cannot be larger or equal to control guidance end"):
            pipe(**arguments, control_guidance_start=0.8, control_guidance_end=0.2)
    with iec.apply(pipe, placement=Placement("none")):
        pipe(**arguments, control_guidance_end=0.5)


def test_windows_of_several_controlnets_are_translated_one_by_one():
    scheduler, several = iec.IECScheduler.from_config(LATENT.config), {"num_inference_steps": T, "control_guidance_end": [0.5, 1.0]}
    for start in (0.3, [0.3, 0.0], [0.3, 0.9]):
        moved = in_calls(scheduler, {**several, "control_guidance_start": start})
        for i in range(2):
            single = {"control_guidance_start": (start if isinstance(start, list) else 2 * [start])[i]}
            single |= {"control_guidance_end": several["control_guidance_end"][i], "num_inference_steps": T}
            assert {name: values[i] for name, values in moved.items()} == in_calls(scheduler, single)


@pytest.mark.parametrize("factor", [0.45, 1.0])
def test_an_adapter_is_on_in_the_same_steps(factor):
    torch.manual_seed(0)
    base = sdxl(LATENT)
    adapter = T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter_xl")
    pipe = quiet(StableDiffusionXLAdapterPipeline(**base.components, adapter=adapter.eval()))
    arguments = {**TEXT, **SDXL_POOLED, "image": torch.rand(2, 3, 8, 8), "height": 8, "width": 8}
    told = lambda kwargs, _: kwargs["down_intrablock_additional_residuals"] is not None  # noqa: E731
    plain = pattern(pipe, "unet", told, **arguments, adapter_conditioning_factor=factor)[0]
    assert plain == "F" * int(T * factor) + "." * (T - int(T * factor))
    assert [plain, plain] == pattern(pipe, "unet", told, FIXED, **arguments, adapter_conditioning_factor=factor)


def test_a_callback_comes_once_a_step_after_its_corrections():
    torch.manual_seed(0)
    pipe, arguments = WAYS["SD3"][0](FLOW), {**WAYS["SD3"][1], "num_inference_steps": 4}
    kind, seen = type(pipe), []

    def callback(pipe, i, t, tensors):
        position = pipe.scheduler.position if pipe.scheduler is applied.scheduler else None
        seen.append((i, float(t), pipe.num_timesteps, position, tensors["latents"].clone()))
        return {}

    run = partial(pipe, **arguments, callback_on_step_end=callback)
    with iec.apply(pipe, correction=FIXED) as applied:
        assert type(pipe).__name__ == kind.__name__ and isinstance(pipe, kind)
        image = run(generator=seeded()).images
        laid_out = applied.scheduler.run
        with pytest.raises(TypeError, match="unexpected"):
            pipe(unheard_of=1)
    assert type(pipe) is kind
    assert [entry[:4] for entry in seen] == [(i, laid_out.timesteps[i], 4, laid_out.first_call(i + 1)) for i in range(4)]
    assert torch.equal(seen[-1][4], image)
    seen.clear()
    run(generator=seeded())
    assert [entry[0] for entry in seen] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["refiner", "FLUX"])
def test_a_callback_of_a_run_from_the_middle_is_told_the_steps_of_that_run(kind):
    """A refiner passes one entry over; FLUX begins at the entry of a correction."""
    torch.manual_seed(0)
    if kind == "refiner":
        pipe, arguments = refiner(), {**TEXT, **SDXL_POOLED, "denoising_start": 0.5}
    else:
        pipe = quiet(FluxImg2ImgPipeline(**WAYS["FLUX"][0](FLOW).components))
        arguments = {**WAYS["FLUX"][1], "strength": 0.5}
    arguments |= {"image": torch.rand(len(arguments["prompt_embeds"]), 3, *([16, 16] if kind == "FLUX" else [8, 8]))}
    told = lambda pipe, i, t, _: seen.append((i, float(t), pipe.num_timesteps)) or {}  # noqa: E731
    run = partial(pipe, **{**arguments, "output_type": "latent"}, num_inference_steps=5, callback_on_step_end=told)
    seen = []
    run(generator=seeded())
    plain = seen[:]
    seen.clear()
    with iec.apply(pipe, correction=FIXED, placement=Placement("all_steps")):
        run(generator=seeded())
    assert seen == plain and 2 <= len(seen) < 5


@pytest.mark.parametrize("cutoff", [{"cutoff_step_ratio": 0.3}, {"cutoff_step_ratio": None, "cutoff_step_index": 3}], ids=str)
def test_guidance_is_switched_off_after_the_same_step(cutoff):
    torch.manual_seed(0)
    pipe, callback = WAYS["SD3"][0](FLOW), SD3CFGCutoffCallback(**cutoff)
    guided = lambda kwargs, _: len(kwargs["hidden_states"]) == 2  # noqa: E731
    arguments = {**WAYS["SD3"][1], "callback_on_step_end": callback}
    plain = pattern(pipe, "transformer", guided, **arguments)[0]
    assert plain == "FFFF......"
    assert pattern(pipe, "transformer", guided, FIXED, **arguments) == [plain, plain[:-1] + " "]


@pytest.mark.parametrize("placement", [None, Placement("first_step")], ids=["all", "first"])
def test_a_callback_of_older_pipelines_comes_every_few_steps(placement):
    torch.manual_seed(0)
    make, arguments = OTHERS["PixArt"]
    pipe, seen = make(DPMSolverMultistepScheduler()), []
    with pytest.warns(UserWarning, match="first order"):
        pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config, clip_sample=False, placement="none")
    run = partial(pipe, **arguments, num_inference_steps=5, callback=lambda i, t, _: seen.append((i, int(t))), callback_steps=2)
    run(generator=seeded())
    plain = seen[:]
    seen.clear()
    with iec.apply(pipe, correction=FIXED, placement=placement):
        run(generator=seeded())
        with pytest.raises(ValueError, match="positive integer"):
            run(callback_steps=0)
    assert seen == plain and [i for i, _ in plain] == [0, 2, 4]


def test_another_scheduler_counts_as_it_does():
    torch.manual_seed(0)
    pipe, arguments = WAYS["SD3"][0](FLOW), {**WAYS["SD3"][1], "num_inference_steps": 3}
    seen = []
    with iec.apply(pipe, correction=FIXED):
        pipe.scheduler = iec.IECFlowMatchScheduler(last_step="correct")
        pipe(**arguments, callback_on_step_end=lambda p, i, t, k: seen.append(i) or {}, generator=seeded())
    assert seen == list(range(6))


@pytest.mark.parametrize("begin", [0, 6])
def test_a_guider_is_told_steps(begin):
    """As HunyuanVideo 1.5 tells it calls, also from the middle of the run."""

    class Pipe:
        def __call__(self):
            on = {}
            self.scheduler.set_timesteps(T)
            if begin:
                self.scheduler.set_begin_index(begin)
            entries = self.scheduler.timesteps[begin:]
            for i, t in enumerate(entries):
                self.guider.set_state(step=i, num_inference_steps=len(entries), timestep=t)
                on[self.scheduler.call(t).index, self.scheduler.call(t).correction] = self.guider._is_cfg_enabled()
                self.scheduler.step(torch.zeros(1), t, torch.zeros(1))
            return on

    pipe, scheduler = Pipe(), iec.IECFlowMatchScheduler()
    pipe.scheduler, pipe.guider = scheduler, ClassifierFreeGuidance(start=0.2, stop=0.6)
    take_off = count_steps(pipe, scheduler)
    first = begin // 2
    expected = [int(0.2 * (T - first)) <= i - first < int(0.6 * (T - first)) for i in range(T)]
    assert all(on == expected[i] for (i, _), on in pipe().items()) and any(expected)
    take_off()
    assert type(pipe) is Pipe and "set_state" not in vars(pipe.guider)


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_pipelines_that_count_steps_in_other_ways_are_refused(name):
    scheduler = iec.IECScheduler.from_config(LATENT.config)
    with pytest.raises(ConfigError, match=rf"counts the calls.*{name}.*placement='none'"):
        in_calls(scheduler, {"num_inference_steps": 3, name: 1})


def test_a_modular_pipeline_is_refused_with_a_correction():
    class ModularPipeline(type(stable_diffusion())):
        """By the name of its class."""

    pipe = ModularPipeline(**stable_diffusion().components, requires_safety_checker=False)
    with pytest.raises(ConfigError, match="is a modular pipeline"):
        iec.apply(pipe, correction=FIXED)
    iec.apply(pipe).remove()


def test_the_deprecated_callback_of_stable_diffusion_comes_every_few_steps():
    torch.manual_seed(0)
    pipe, seen = stable_diffusion(), []
    arguments = {**TEXT, "num_inference_steps": 5, "output_type": "latent", "callback_steps": 2}
    with iec.apply(pipe, correction=FIXED), pytest.warns(FutureWarning, match="deprecated"):
        pipe(**arguments, callback=lambda i, *_: seen.append(i), generator=seeded())
    assert seen == [0, 2, 4]


def test_the_page_names_what_is_translated_and_what_is_refused():
    page = (Path(__file__).parents[2] / "docs/pipelines.md").read_text()
    assert [name for name in {*BORDERS, *COUNTED} if f"`{name}`" not in page] == []

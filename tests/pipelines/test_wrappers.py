"""Who else has a hand in the UNet of a pipeline under iec.apply: hooks, forwards, torch.compile, offloading, other caches."""

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.hooks import HookRegistry, ModelHook, apply_pyramid_attention_broadcast
from torch import nn

from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.quantization import PTQConfig
from iec.errors import ConfigError
from iec.pipelines.apply import apply, remove
from iec.sampling.correction import Correction
from iec.sampling.placement import Placement
from tests.tiny_pipelines import KINDS, TEXT, quiet, seeded, stable_diffusion

FIXED, FULL = Correction(tolerance=0), CachingConfig(1)
STEPS = 2


@pytest.fixture
def sd():
    torch.manual_seed(0)
    return stable_diffusion()


def image(pipe, steps=STEPS, **options):
    return pipe(**TEXT, **{"num_inference_steps": steps, "output_type": "latent", "generator": seeded(), **options}).images


def quantization(steps=STEPS):
    calibration = {**TEXT, "num_inference_steps": steps, "output_type": "latent", "generator": seeded()}
    return {"quantize": PTQConfig(calibration_images=4, scale_rule="max"), "calibration": calibration}


def halved(module, arguments, out):
    return tuple(0.5 * part for part in out) if isinstance(out, tuple) else 0.5 * out


@pytest.mark.parametrize("part", ["up_blocks.0.resnets.0", "down_blocks.1.attentions.0", "mid_block", "conv_out"])
def test_full_calls_of_a_cache_run_the_hooks_of_parts(sd, part):
    sd.unet.get_submodule(part).register_forward_hook(halved)
    plain = image(sd)
    with apply(sd, cache=FULL):
        assert torch.equal(image(sd), plain)


@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("quantize", [False, True])
def test_hooks_of_the_whole_unet_run(sd, kind, when, quantize):
    def register():
        if kind == "hook":
            return sd.unet.register_forward_hook(
                lambda *a: type(a[2])(0.5 * a[2].sample) if hasattr(a[2], "sample") else halved(*a)
            )
        return sd.unet.register_forward_pre_hook(lambda _, a: (0.5 * a[0], *a[1:]))

    handle = register()
    plain = image(sd)
    if when == "after":
        handle.remove()
    with apply(sd, **(quantization() if quantize else {"cache": FULL})):
        if when == "after":
            register()
        error = (image(sd) - plain).abs().mean()
        assert error < 0.2 * plain.abs().mean() if quantize else error == 0


@pytest.mark.parametrize("block", ["down_blocks.0", "up_blocks.1"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_blocks_are_refused_by_a_cache(sd, block, register):
    """Before and after; off again is the way out. Nothing is computed."""
    handle = getattr(sd.unet.get_submodule(block), register)(lambda *_: None)
    with pytest.raises(ConfigError, match=f"{block} has a forward hook"):
        apply(sd, cache=CachingConfig(2))
    handle.remove()
    calls = []
    with apply(sd, cache=CachingConfig(2)):
        sd.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
        handle = getattr(sd.unet.get_submodule(block), register)(lambda *_: None)
        with pytest.raises(ConfigError, match=f"{block} has a forward hook"):
            image(sd)
        assert not calls
        handle.remove()
        image(sd)
        assert calls


def test_hooks_of_blocks_run_under_quantization_alone(sd):
    seen = []
    sd.unet.up_blocks[0].register_forward_hook(lambda *_: seen.append(1))
    with apply(sd, **quantization()):
        seen.clear()
        image(sd)
        assert len(seen) == STEPS


class Recorder:
    """A hook that is a bound method: a copied network must not copy what it records into."""

    def __init__(self):
        self.seen = []

    def __call__(self, module, arguments, out):
        self.seen.append(out.mean().item())

    def bound(self, module, arguments, out):
        self(module, arguments, out)


@pytest.mark.parametrize("layer", ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"])
def test_hooks_of_layers_run_under_quantization(sd, layer):
    """Registered before or after, once a call, and taken off by their handles; those registered meanwhile stay afterwards."""
    before, after = Recorder(), Recorder()
    handle = sd.unet.get_submodule(layer).register_forward_hook(before.bound)
    with apply(sd, **quantization()):
        sd.unet.get_submodule(layer).register_forward_hook(after)
        before.seen.clear()
        image(sd)
        assert len(before.seen) == len(after.seen) == STEPS and before.seen == after.seen
        handle.remove()
        image(sd)
        assert len(before.seen) == STEPS and len(after.seen) == 2 * STEPS
    image(sd)
    assert len(before.seen) == STEPS and len(after.seen) == 3 * STEPS


def test_a_hook_that_edits_a_layer_is_calibrated_with(sd):
    sd.unet.conv_in.register_forward_hook(halved)
    plain = image(sd)
    with apply(sd, **quantization()):
        edited = image(sd)
    assert (edited - plain).abs().mean() < 0.2 * plain.abs().mean()


def test_hooks_of_attention_products_are_refused(sd):
    with apply(sd, **quantization()):
        attention = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1
        handle = attention.processor.register_forward_hook(lambda *_: None)
        with pytest.raises(ConfigError, match="attn1.processor is called without its hooks"):
            image(sd)
        handle.remove()
        seen = []
        attention.register_forward_hook(lambda *_: seen.append(1))
        image(sd)
        assert len(seen) == STEPS


def uncompile(pipe):
    for m in pipe.unet.modules():
        m._compiled_call_impl = None


def test_a_compiled_unet_is_refused_by_a_cache(sd):
    sd.unet.compile(backend="eager")
    with pytest.raises(ConfigError, match="compiled in place"):
        apply(sd, cache=FULL)
    uncompile(sd)
    plain = image(sd)
    with apply(sd, cache=FULL):
        sd.unet.compile(backend="eager")
        with pytest.raises(ConfigError, match="compiled in place"):
            image(sd)
        uncompile(sd)
        sd.unet.compile_repeated_blocks(backend="eager")
        torch.testing.assert_close(image(sd), plain, rtol=1e-4, atol=1e-4)


def test_a_compiled_wrapper_is_refused_and_may_be_put_around(sd):
    plain = image(sd)
    sd.unet = torch.compile(sd.unet, backend="eager")
    for options in ({"cache": FULL}, quantization()):
        with pytest.raises(ConfigError, match="wrapped by torch.compile"):
            apply(sd, **options)
    sd.unet = sd.unet._orig_mod
    with apply(sd, cache=FULL):
        sd.unet = torch.compile(sd.unet, backend="eager")
        assert torch.equal(image(sd), plain)


def test_quantization_runs_uncompiled(sd):
    """A UNet that was compiled has a copy that is not; a wrapper around that is taken off before the copy goes."""
    sd.unet.compile(backend="eager")
    unet, applied = sd.unet, apply(sd, **quantization())
    assert sd.unet._compiled_call_impl is None
    wrapped = sd.unet = torch.compile(sd.unet, backend="eager")
    with pytest.raises(ConfigError, match="wrapped in a OptimizedModule"):
        applied.remove()
    sd.unet = wrapped._orig_mod
    sd.unet.compile_repeated_blocks(backend="eager")
    with pytest.raises(ConfigError, match="compiled in place"):
        image(sd)
    uncompile(sd)
    image(sd)
    applied.remove()
    assert sd.unet is unet and unet._compiled_call_impl is not None


@pytest.mark.parametrize("when", ["before", "after"])
def test_layerwise_casting_works_with_a_cache(sd, when):
    """Weights in half precision, arithmetic in float32: full calls are those of the cast UNet."""
    cast = {"storage_dtype": torch.float16, "compute_dtype": torch.float32}
    if when == "before":
        sd.unet.enable_layerwise_casting(**cast)
    with apply(sd, cache=FULL):
        if when == "after":
            sd.unet.enable_layerwise_casting(**cast)
        cached = image(sd)
    assert torch.equal(image(sd), cached)


def test_layerwise_casting_is_refused_by_quantization(sd):
    cast = {"storage_dtype": torch.float16, "compute_dtype": torch.float32}
    with apply(sd, **quantization()):
        sd.unet.enable_layerwise_casting(**cast)
        with pytest.raises(ConfigError, match="layerwise casting"):
            image(sd)
    image(sd)  # the pipeline's own UNet was not cast
    sd.unet.enable_layerwise_casting(**cast)
    with pytest.raises(ConfigError, match="layerwise casting"):
        apply(sd, **quantization())


class Moved(ModelHook):
    """What group offloading puts around a module (that needs accelerate), without moving anything."""

    def pre_forward(self, module, *args, **kwargs):
        self.fired = True
        return args, kwargs


def offload(module):
    hook = Moved()
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "moved")
    return hook


@pytest.mark.parametrize("when", ["before", "after"])
def test_offloading_of_leaves_works_with_a_cache_and_that_of_blocks_is_refused(sd, when):
    plain, options = image(sd), {"cache": FULL}
    if when == "after":
        apply(sd, **options)
    hooks = [offload(m) for m in sd.unet.modules() if not list(m.children())]
    if when == "before":
        apply(sd, **options)
    assert torch.equal(image(sd), plain) and sum(hasattr(hook, "fired") for hook in hooks) > 50
    remove(sd)
    offload(sd.unet.up_blocks[0])
    with pytest.raises(ConfigError, match="up_blocks.0 .*offload_type='leaf_level'"):
        apply(sd, **options)
    HookRegistry.check_if_exists_or_initialize(sd.unet).remove_hook("moved")
    with apply(sd, **options):
        offload(sd.unet.up_blocks[0])
        with pytest.raises(ConfigError, match="offload_type='leaf_level'"):
            image(sd)


def test_other_forwards_are_put_back_around_ours(sd):
    """What accelerate's offloading does to a UNet."""
    plain, inner, calls = image(sd), sd.unet.forward, []

    def wrap(forward):
        return lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)

    sd.unet.forward = wrap(inner)
    for options in ({"cache": FULL}, quantization()):
        with pytest.raises(ConfigError, match="forward of the network has been replaced already"):
            apply(sd, **options)
    del sd.unet.forward
    with apply(sd, cache=FULL):
        ours = sd.unet.forward
        sd.unet.forward = wrap(ours)
        assert torch.equal(image(sd), plain) and len(calls) == STEPS
        sd.unet.forward = ours


def test_a_unet_of_another_class_is_refused_by_a_cache(sd):
    class Louder(UNet2DConditionModel):
        def forward(self, sample, *args, **kwargs):
            return super().forward(0.5 * sample, *args, **kwargs)

    sd.unet.__class__ = Louder
    loud = image(sd)
    with pytest.raises(ConfigError, match="Louder .the UNet. has a forward of its own"):
        apply(sd, cache=FULL)
    with apply(sd, **quantization()):  # which calls it
        assert (image(sd) - loud).abs().mean() < 0.2 * loud.abs().mean()
    sd.unet.__class__ = UNet2DConditionModel
    apply(sd, cache=FULL).remove()


def test_another_network_in_the_place_of_the_unet_is_named(sd):
    sd.unet = nn.DataParallel(sd.unet)
    with pytest.raises(ConfigError, match="a DataParallel; .* Give the pipeline that one"):
        apply(sd, cache=FULL)
    sd.unet = sd.unet.module
    apply(sd, cache=FULL).remove()


def broadcast(pipe):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)


def test_another_cache_is_refused_where_it_would_answer_corrections(sd):
    name = "pyramid_attention_broadcast"
    broadcast(sd)
    for options in ({"correction": FIXED}, {"cache": CachingConfig(2)}, quantization()):
        with pytest.raises(ConfigError, match=f"cache \\({name}\\) is on unet"):
            apply(sd, **options)
    apply(sd, placement=Placement("none")).remove()
    HookRegistry.check_if_exists_or_initialize(sd.unet).remove_hook(name)  # the way out that is named
    with apply(sd, correction=FIXED):
        broadcast(sd)
        with pytest.raises(ConfigError, match=f"cache \\({name}\\) is on unet"):
            image(sd)
        HookRegistry.check_if_exists_or_initialize(sd.unet).remove_hook(name)
        image(sd)


@pytest.mark.parametrize(
    ("mark", "way_out"), [("_is_cached", "cache_dit.disable_cache"), ("is_cache_enabled", "disable_cache\\(\\)")]
)
def test_caches_of_transformers_are_refused_by_their_marks(mark, way_out):
    dit = KINDS["DiT"][0]()
    setattr(dit.transformer, mark, True)
    with pytest.raises(ConfigError, match=way_out):
        apply(dit, correction=FIXED)
    setattr(dit.transformer, mark, False)
    apply(dit, correction=FIXED).remove()


def test_guidance_switched_off_in_mid_run_refreshes_the_feature(sd):
    one = {key: value[:1] if torch.is_tensor(value) else value for key, value in TEXT.items()}
    one |= {"num_inference_steps": 6, "output_type": "latent"}
    full = []
    with apply(sd, cache=CachingConfig(3)):
        sd.unet.mid_block.register_forward_hook(lambda _, a, out: full.append(len(out)))
        sd(**one, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.2))
    assert full == [2, 1, 1]  # steps 0, 2, where guidance is off, and 3
    calibration = {"quantize": PTQConfig(calibration_images=2, scale_rule="max"), "calibration": one}
    with apply(sd, cache=CachingConfig(3), **calibration), pytest.raises(ConfigError, match="at a refresh step"):
        sd(**one, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.2))
    with apply(sd, cache=CachingConfig(3), **calibration):
        sd(**one, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2))


def test_another_pipeline_with_this_unet_is_told_so(sd):
    other = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    latents = torch.rand(2, 3, 8, 8, generator=seeded(9))
    with apply(sd, cache=FULL):
        with pytest.raises(ConfigError, match="another pipeline with the same network"):
            image(other, image=latents, strength=0.8)
        other.scheduler, own = sd.scheduler, other.scheduler
        cached = image(other, image=latents, strength=0.8)
    other.scheduler = own
    assert torch.equal(image(other, image=latents, strength=0.8), cached)
    remove(sd)


def test_image_to_image_with_a_cache_names_what_to_do_with_cached_steps(sd):
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    arguments = {"image": torch.rand(2, 3, 8, 8), "strength": 0.8}
    with apply(pipe, correction=FIXED, cache=CachingConfig(2)), pytest.raises(ConfigError, match="cached_steps='cached'.*'full'"):
        image(pipe, 5, **arguments)
    for way_out in ("cached", "full"):
        with apply(pipe, correction=FIXED, placement=Placement("all_steps", cached_steps=way_out), cache=CachingConfig(2)):
            image(pipe, 5, **arguments)


def test_image_to_image_is_calibrated_over_all_steps(sd):
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    arguments = {"image": torch.rand(2, 3, 8, 8)}
    options = quantization(5)
    options["calibration"] |= arguments
    with pytest.raises(ConfigError, match="Calibrate with strength=1"):
        apply(pipe, **options)
    options["calibration"]["strength"] = 1
    with apply(pipe, **options):
        image(pipe, 5, strength=0.5, **arguments)

"""iec.apply: cache and quantization under pipelines, by sampling step, against iec.Sampler; and all of it taken off again."""

import copy
import pickle
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate, quantize_unet
from iec.errors import ConfigError
from iec.models.unet import UNetNetwork
from iec.pipelines import unet as unet_module
from iec.pipelines.apply import apply, remove
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction, kept
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction, Step
from iec.sampling.placement import Placement
from tests.tiny_pipelines import (
    GUIDANCE,
    KINDS,
    LATENT,
    TEXT,
    WORDS,
    Given,
    Words,
    quiet,
    run,
    seeded,
    table_of,
)

STEPS = 7
FIXED = Correction(tolerance=0)
ALL = Placement("all_steps")


@pytest.fixture
def pipe(request):
    torch.manual_seed(0)
    return KINDS[request.param][0]()


@pytest.fixture
def sd():
    torch.manual_seed(0)
    return KINDS["Stable Diffusion"][0]()


@pytest.fixture
def ddim():
    torch.manual_seed(0)
    return KINDS["DDIM"][0]()


class Doubled:
    """Guidance over a network, for `Sampler`: a feature holds both rows of an image, [B, 2, ..]."""

    def __init__(self, network, cond):
        self.network, self.cond = network, cond

    def __call__(self, x, step, cond=None, cache=None):
        if cache is not None:
            cache = cache.changed(lambda value: value.transpose(0, 1).flatten(0, 1))
        out = self.network(torch.cat([x, x]), step, self.cond, cache)
        without, text = out.eps.chunk(2)
        made = [None if v is None else v.unflatten(0, (2, len(x))).transpose(0, 1) for v in (out.feature, out.probe)]
        return Prediction(without + GUIDANCE * (text - without), *made, out.history)


def network_of(kind, pipe, plain):
    """The network that a pipeline amounts to, for `Sampler`."""
    if kind == "Stable Diffusion":
        return Doubled(plain, torch.cat([WORDS["none"], WORDS["text"]]))
    if kind == "LDM text-to-image":
        return Doubled(plain, pipe.bert(Words()(["", "", "cat", "a dog"]).input_ids)[0])
    return plain


@contextmanager
def counted(unet):
    """Counts the full calls of a UNet (those that run its mid block)."""
    calls = SimpleNamespace(full=0)
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: setattr(calls, "full", calls.full + 1))
    yield calls
    hook.remove()


def go(pipe, **arguments):
    return run(pipe, pipe.scheduler, **{"num_inference_steps": STEPS, **arguments})


def reference(kind, pipe, network, start, correction, placement, refresh=None, timesteps=None):
    base = DDIMScheduler.from_config(pipe.scheduler.config)
    base.set_timesteps(STEPS)
    table = table_of(base.config, timesteps or base.timesteps.tolist())
    sampler = Sampler(table, correction, placement, refresh)
    return list(sampler.trajectory(network_of(kind, pipe, network), Given(start)))[-1].float()


CACHES = {
    "DeepCache alone": (None, None, 7, 3),
    "last feature": (FIXED, ALL, 10, 6),
    "first feature": (Correction(tolerance=0, cache_from="first"), ALL, 10, 6),
    "corrected with the cache": (FIXED, Placement("all_steps", cached_steps="cached"), 14, 6),
    "corrected in full": (FIXED, Placement("all_steps", cached_steps="full"), 14, 10),
    "two corrections, first step": (Correction(2, (1.0, 0.5), 0), Placement("first_step"), 9, 5),
}
"""name -> correction, placement, and the calls of 7 steps with refreshes at 0, 3 and 6: all, full."""


@pytest.mark.parametrize("case", CACHES)
@pytest.mark.parametrize("pipe", ["DDIM", "LDM", "LDM text-to-image", "Stable Diffusion"], indirect=True)
def test_cache_and_correction_equal_our_sampler(pipe, case, request):
    kind, (correction, placement, calls, full) = request.node.callspec.params["pipe"], CACHES[case]
    cut = 0 if kind == "Stable Diffusion" else 1
    with apply(pipe, correction=correction, placement=placement, cache=CachingConfig(3, cut=cut)), counted(pipe.unet) as seen:
        start, last, total = go(pipe, **KINDS[kind][1])
        assert (total, seen.full) == (calls, full)
        again = go(pipe, **KINDS[kind][1])[1]
    network = CachedUNetNetwork(pipe.unet, cut)
    expected = reference(kind, pipe, network, start, correction or FIXED, placement or Placement(), frozenset({0, 3, 6}))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(last, again)  # nothing is left from one run to the next


NEWTON = {"forecast": "newton", "forecast_order": 2, "forecast_clock": "log_snr"}


@pytest.mark.parametrize(("options", "least"), [(NEWTON, 1e-3), ({"forecast": "probe"}, 0)])
@pytest.mark.parametrize("pipe", ["DDIM", "Stable Diffusion"], indirect=True)
def test_forecasts_equal_our_sampler(pipe, options, least, request):
    """Also after corrections and in a second run. least: what the forecast changes at least."""
    kind = request.node.callspec.params["pipe"]
    caching = CachingConfig(2, cut=0 if kind == "Stable Diffusion" else 1, **options)
    with apply(pipe, correction=FIXED, placement=ALL, cache=caching):
        start, last, _ = go(pipe, **KINDS[kind][1])
        again = go(pipe, **KINDS[kind][1])[1]
        abar = pipe.scheduler.abar()
    network = CachedUNetNetwork(pipe.unet, caching.cut, caching.forecast_of(abar))
    expected = reference(kind, pipe, network, start, FIXED, ALL, frozenset({0, 2, 4, 6}))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(last, again)
    reused = reference(kind, pipe, CachedUNetNetwork(pipe.unet, caching.cut), start, FIXED, ALL, frozenset({0, 2, 4, 6}))
    assert (reused - expected).abs().max() > least


@pytest.mark.parametrize("pipe", ["DDIM", "Stable Diffusion"], indirect=True)
def test_converged_images_keep_their_feature_as_in_our_sampler(pipe, request, monkeypatch):
    """At the first tolerance at which one image of the batch converges before the other."""
    kind, masks = request.node.callspec.params["pipe"], []
    cut = 0 if kind == "Stable Diffusion" else 1
    monkeypatch.setattr(unet_module, "kept", lambda frozen, *caches: masks.append(frozen) or kept(frozen, *caches))
    for tolerance in torch.logspace(-2, 2, 60).tolist():
        correction = Correction(3, tolerance=tolerance)
        with apply(pipe, correction=correction, placement=ALL, cache=CachingConfig(3, cut=cut)):
            start, last, _ = go(pipe, **KINDS[kind][1])
        if any(not mask.all() for mask in masks):
            break
    assert any(not mask.all() for mask in masks)
    network = CachedUNetNetwork(pipe.unet, cut)
    expected = reference(kind, pipe, network, start, correction, ALL, frozenset({0, 3, 6}))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_everything_is_taken_off_again(sd):
    sd.unet.requires_grad_(True).train()
    before, scheduler, unet = go(sd, **TEXT)[1], sd.scheduler, sd.unet
    calibration = {**TEXT, "num_inference_steps": 3, "generator": seeded()}
    for options in (
        {"correction": FIXED},
        {"cache": CachingConfig(2)},
        {"quantize": PTQConfig(calibration_images=4, scale_rule="max"), "calibration": calibration, "cache": CachingConfig(2)},
    ):
        applied = apply(sd, **options)
        assert type(sd.scheduler) is IECScheduler
        with pytest.raises(ConfigError, match="already has"):
            apply(sd, correction=FIXED)
        remove(sd) if "cache" in options else applied.remove()
        applied.remove()
        remove(sd)
        assert sd.scheduler is scheduler and sd.unet is unet and "forward" not in vars(unet)
        assert all(p.requires_grad for p in unet.parameters()) and all(m.training for m in unet.modules())
        assert torch.equal(go(sd, **TEXT)[1], before)


APPLIED = [{"correction": FIXED}, {"placement": Placement("none")}, {"cache": CachingConfig(interval=2)}]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("given", APPLIED)
def test_a_pipeline_is_copied_without_what_was_applied(ddim, copied, given):
    """A copy would be a pipeline whose `remove` takes things off the other one."""
    apply(ddim, **given)
    for held in [ddim, *([ddim.unet] if "cache" in given and copied is not copy.copy else [])]:
        with pytest.raises(ConfigError, match=r"iec\.remove\(pipe\), then copy"):
            copied(held)
    remove(ddim)
    other = pickle.loads(pickle.dumps(ddim)) if copied is pickle.dumps else copied(ddim)
    apply(other, **given)
    remove(other)
    assert type(other.scheduler) is type(ddim.scheduler) is DDIMScheduler


def test_what_wraps_the_unet_later_is_taken_off_first(sd):
    applied = apply(sd, cache=CachingConfig(2))
    ours, sd.unet.forward = sd.unet.forward, lambda *args, **kwargs: None
    with pytest.raises(ConfigError, match="Take that off first"):
        remove(sd)
    sd.unet.forward = ours
    remove(sd)
    assert "forward" not in vars(sd.unet) and sd.scheduler is not applied.scheduler


def test_a_scheduler_put_in_meanwhile_stays(sd):
    mine = DDIMScheduler.from_config(LATENT.config)
    with apply(sd, correction=FIXED):
        sd.scheduler = mine
    assert sd.scheduler is mine


def test_image_to_image_refreshes_at_its_own_first_step(sd):
    """A pipeline of the same parts, started at step 2 of 7: the schedule is that of the 5 steps that are run."""
    applied = apply(sd, correction=FIXED, placement=Placement("all_steps", cached_steps="cached"), cache=CachingConfig(3, cut=0))
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    with counted(sd.unet) as seen:
        start, last, calls = go(pipe, image=torch.randn(2, 4, 8, 8), strength=0.8, **TEXT)
    assert (calls, seen.full) == (10, 4)
    steps = sorted(set(sd.scheduler.timesteps.tolist()), reverse=True)[2:]
    applied.remove()
    network, where = CachedUNetNetwork(sd.unet, 0), Placement("all_steps", cached_steps="cached")
    expected = reference("Stable Diffusion", sd, network, start, FIXED, where, frozenset({0, 3}), steps)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_correction_alone_needs_no_unet():
    """And DDIMPipeline, whose constructor drops an IECScheduler, has one."""
    torch.manual_seed(0)
    dit, ddim = KINDS["DiT"][0](), KINDS["DDIM"][0]()
    with apply(dit, correction=FIXED, placement=Placement("first_last", count=1)):
        assert go(dit, **KINDS["DiT"][1])[2] == STEPS + 2
    with apply(ddim, correction=FIXED):
        assert go(ddim)[2] == 2 * STEPS
    with pytest.raises(ConfigError, match="no UNet"):
        apply(dit, cache=CachingConfig(2))


def test_an_iec_scheduler_keeps_its_corrections(sd):
    sd.scheduler = IECScheduler.from_config(LATENT.config, iterations=2, placement="first_step")
    with apply(sd, cache=CachingConfig(2)):
        assert go(sd, **TEXT)[2] == STEPS + 2
    with apply(sd, placement=Placement("all_steps")):
        assert go(sd, **TEXT)[2] == 2 * STEPS


def test_the_scheduler_gets_the_whole_placement(sd):
    where = Placement("first_last", count=2, cached_steps="cached", last_step="skip")
    with apply(sd, placement=where) as applied:
        assert applied.scheduler.placement == where


CALIBRATION = {**TEXT, "num_inference_steps": STEPS, "generator": seeded()}
W4 = PTQConfig(weight_bits=4, calibration_images=4, scale_rule="max")


@pytest.mark.parametrize("cache", [None, CachingConfig(3, cut=0)])
def test_quantized_pipeline_equals_our_sampler(sd, cache):
    arguments = {"generator": seeded(), **TEXT}
    plain = go(sd, **{**arguments, "generator": seeded()})[1]
    with apply(sd, correction=FIXED, cache=cache, quantize=W4, calibration={**CALIBRATION, "generator": seeded()}) as applied:
        start, last, calls = go(sd, **arguments)
        quantized, calls_wanted = applied.quantized, STEPS + (STEPS if cache is None else 3)
    assert calls == calls_wanted and (last - plain).abs().max() > 1e-3
    deep = quantized.quantizers()["mid_block.resnets.0.conv1.input"].calibrated
    assert deep.tolist() == [cache is None or i in (0, 3, 6) for i in range(STEPS)]  # calibrated on the calls that are made
    inner = None if cache is None else CachedUNetNetwork(quantized.unet, 0)
    refresh = None if cache is None else frozenset({0, 3, 6})
    expected = reference("Stable Diffusion", sd, QuantizedNetwork(quantized, inner), start, FIXED, ALL, refresh)
    # a value next to a boundary may be rounded to the other side
    assert (last - expected).abs().median() < 1e-4 and (last - expected).abs().max() < 0.1 * (expected - plain).abs().max()


def test_calibration_is_on_the_float_run_of_the_pipeline(ddim):
    """The rows are those found on the states of `Sampler` from the same noise."""
    fine = {"activation_bits": 16, "softmax_bits": 16, "end_bits": 16}  # so that no rounding error is a whole step of a coarse grid
    config = PTQConfig(calibration_images=2, scale_rule="max", **fine)
    calibration = {"batch_size": 2, "num_inference_steps": STEPS, "generator": seeded()}
    with apply(ddim, correction=FIXED, quantize=config, calibration=calibration) as applied:
        found = applied.quantized.quantizers()
    ddim.scheduler.set_timesteps(STEPS)
    table = table_of(ddim.scheduler.config, ddim.scheduler.timesteps.tolist())
    start = torch.randn(2, 3, 8, 8, generator=seeded())
    states = list(Sampler(table).trajectory(UNetNetwork(ddim.unet), Given(start)))
    wanted = quantize_unet(ddim.unet, config, STEPS)
    calls = [CalibrationCall(states[i].float(), Step(i, t)) for i, (t, _) in enumerate(table.pairs)]
    calibrate(wanted, UNetNetwork(wanted.unet), calls)
    for name, quantizer in wanted.quantizers().items():
        torch.testing.assert_close(found[name].delta, quantizer.delta, rtol=1e-3, atol=1e-6)


def test_a_calibration_serves_its_own_timesteps_only(sd):
    with apply(sd, quantize=W4, calibration={**CALIBRATION, "generator": seeded()}):
        with pytest.raises(ConfigError, match="calibrated for the 7 timesteps"):
            go(sd, **TEXT, num_inference_steps=5)
        assert go(sd, **TEXT)[2] == STEPS


def test_deepcache_helper_is_refused(ddim):
    """By what its wrappers are: functions of a module of that name, in the place of forward."""
    module = ModuleType("DeepCache.extension.deepcache")
    exec("def wrap(f):\n    def wrapped(*a, **k):\n        return f(*a, **k)\n    return wrapped", module.__dict__)
    block = ddim.unet.mid_block
    plain, block.forward = block.forward, module.wrap(block.forward)
    for options in ({"cache": CachingConfig(2)}, {"correction": FIXED}):
        with pytest.raises(ConfigError, match="\\(DeepCacheSDHelper\\) is on unet.*disable\\(\\)"):
            apply(ddim, **options)
    block.forward = plain  # as its disable() leaves it
    apply(ddim, cache=CachingConfig(2)).remove()
    block.forward = lambda *args: plain(*args)
    with pytest.raises(ConfigError, match="replaced already"):
        apply(ddim, cache=CachingConfig(2))


def test_refusals_change_nothing(sd):
    scheduler, unet = sd.scheduler, sd.unet
    full = Placement("all_steps", cached_steps="full")
    wrong = {
        "belong together": {"quantize": W4},
        "is not there": {"cache": CachingConfig(2, cut=9)},
        "found by a calibration": {"cache": CachingConfig(schedule="planned")},
        "each image decides.* Choose uniform": {"cache": CachingConfig(schedule="adaptive", threshold=0.3)},
        "is not IEC": {"correction": Correction(evaluate_at="s")},
        "iec.Sampler only": {"correction": Correction(renorm=True)},
        "not calibrated|calibrated": {"cache": CachingConfig(2), "placement": full, "quantize": W4, "calibration": CALIBRATION},
        "on 4 inputs": {"quantize": PTQConfig(calibration_images=3), "calibration": CALIBRATION},
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            apply(sd, **options)
        assert sd.scheduler is scheduler and sd.unet is unet and "forward" not in vars(unet)


def test_calls_that_the_cache_cannot_serve_are_refused(sd):
    with apply(sd, cache=CachingConfig(2)):
        with pytest.raises(ConfigError, match="must be a whole number of 1 .. 1"):
            go(sd, **TEXT, num_inference_steps=1)
        sd.scheduler.set_timesteps(STEPS)
        x, t = torch.randn(2, 4, 8, 8), sd.scheduler.timesteps[0]
        with pytest.raises(ConfigError, match="cross_attention_kwargs"):
            sd.unet(x, t, encoder_hidden_states=WORDS["text"], cross_attention_kwargs={"scale": 0.5})
        sd.scheduler.set_timesteps(STEPS)
        sd.unet(x, t, encoder_hidden_states=WORDS["none"])
        with pytest.raises(ConfigError, match="called twice"):  # guidance as two calls
            sd.unet(x, t, encoder_hidden_states=WORDS["text"])


def test_a_feature_does_not_outlive_its_run(sd):
    with apply(sd, cache=CachingConfig(3)):
        go(sd, **TEXT)
        assert sd.unet.forward.cache is None
        with pytest.raises(KeyboardInterrupt):
            go(sd, **TEXT, callback_on_step_end=interrupt)
        clean = go(sd, **TEXT)[1]
        assert torch.equal(go(sd, **TEXT)[1], clean)


def interrupt(pipe, i, t, kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": True}, r"correction has to be a Correction, and is of type bool\. Give iec\.Correction\(\)\."),
        ({"correction": Correction}, r"is the class Correction\. Give iec\.Correction\(\)\."),
        ({"placement": "all_steps"}, r'placement .* is of type str\. Give e\.g\. iec\.Placement\("all_steps"\)'),
        ({"cache": 5}, r"cache .* is of type int\. Give e\.g\. iec\.CachingConfig\(interval=5\)"),
        ({"quantize": 8, "calibration": {}}, r"quantize .* is of type int\. Give e\.g\. iec\.PTQConfig\("),
        ({"quantize": PTQConfig(), "calibration": ["a cat"]}, r"calibration .* is of type list\. Give the arguments of a run"),
        ({"corrector": "unic"}, r"corrector has to be a Corrector, and is of type str\. Give one of iec\.correctors"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_to_give(sd, options, message):
    with pytest.raises(ConfigError, match=message):
        apply(sd, **options)
    assert not hasattr(sd, "_iec_applied")


def test_a_network_in_the_place_of_its_pipeline_is_refused(sd):
    with pytest.raises(ConfigError, match=r"UNet2DConditionModel is no pipeline of diffusers.*Give the pipeline itself"):
        apply(sd.unet, correction=Correction())


def test_what_was_applied_is_shown_without_the_pages_of_its_pipeline(sd):
    with apply(sd, correction=Correction()) as applied:
        assert "UNet2DConditionModel" not in repr(applied) and "IECScheduler" in repr(applied)

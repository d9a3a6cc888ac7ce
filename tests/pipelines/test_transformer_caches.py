"""Caches of diffusers under corrections, by the pattern of the calls that they compute (F) and those that they answer (.)."""

import functools

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig

import iec
from iec import Correction, Placement
from iec.errors import ConfigError
from iec.pipelines.flow import IECFlowMatchScheduler
from tests.tiny_flow import OTHERS, WAYS, cogvideo, flux, wan
from tests.tiny_pipelines import seeded

T = 12
DDIM = CogVideoXDDIMScheduler(
    snr_shift_scale=3.0, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
BUILD = {
    "FLUX": flux,
    "FLUX, two branches": flux,
    "Wan": functools.partial(wan, num_layers=2),
    "CogVideoX": functools.partial(cogvideo, num_layers=2),
}
BRANCHES = {"FLUX": 1, "FLUX, two branches": 2, "Wan": 2, "CogVideoX": 1}
ATTENTION = ["transformer_blocks.*attn", "single_transformer_blocks.*attn", "blocks.*attn1"]
CACHES = {
    "FirstBlockCache": lambda now: FirstBlockCacheConfig(0.28),
    "TaylorSeer": lambda now: TaylorSeerCacheConfig(cache_interval=3, cache_identifiers=ATTENTION),
    "MagCache": lambda now: MagCacheConfig(num_inference_steps=T, mag_ratios=[0.98] * T),
    "SeaCache": lambda now: SeaCacheConfig(0.25),
    "PAB": lambda now: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 960),
        current_timestep_callback=now,
    ),
    "FasterCache": lambda now: FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 901),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=now,
    ),
    "FasterCache, doubled batch": lambda now: FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=3,
        unconditional_batch_timestep_skip_range=(-1, 901),
        tensor_format="BFCHW",
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=now,
    ),
}
PATTERNS = {
    "TaylorSeer": "FFF.F..F..F.", "MagCache": "FF..F..F..F.", "PAB": "FFF.F.F.F.F.", "FasterCache": "FFF.F.F.F.F.",
}  # fmt: skip
"""Of one branch without corrections, where it follows from counters alone."""
TOGETHER = [
    *[(way, cache) for way in ("FLUX", "FLUX, two branches") for cache in ("FirstBlockCache", *PATTERNS)],
    *[("Wan", cache) for cache in ("FirstBlockCache", "SeaCache", *PATTERNS)],
    *[("CogVideoX", cache) for cache in ("FirstBlockCache", "PAB", "FasterCache, doubled batch")],
]


@functools.cache
def pipeline(way):
    torch.manual_seed(0)
    return BUILD[way](DDIM if way == "CogVideoX" else FLOW)


def arguments_of(way):
    return (OTHERS if way == "CogVideoX" else WAYS)[way][1]


@pytest.fixture
def cached(request):
    """A pipeline with a cache on it."""
    way, cache = request.param
    pipe = pipeline(way)
    pipe.transformer.enable_cache(CACHES[cache](lambda: float(pipe.current_timestep)))
    yield pipe
    iec.remove(pipe)
    pipe.transformer.disable_cache()


def go(pipe, way, steps=T, **kwargs):
    return pipe(**arguments_of(way), num_inference_steps=steps, generator=seeded(), return_dict=False, **kwargs)[0]


def patterns(pipe, way, steps=T):
    """(image, {(branch, correction): pattern}) of a run. F: the last block, or attention, was computed on the whole batch."""
    network, calls = pipe.transformer, []
    hooks = [
        hook
        for module in list(network.modules())[1:]
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values()
        if hook.fn_ref.original_forward is not None
    ]
    last, plain = hooks[-1].fn_ref, hooks[-1].fn_ref.original_forward

    def compute(*args, **kwargs):
        tensor = next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value))
        calls[-1] = "F" if len(tensor) == calls[-1] else "."
        return plain(*args, **kwargs)

    def asked(module, args, kwargs):
        calls.append(len(next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value))))

    handle, last.original_forward = network.register_forward_pre_hook(asked, with_kwargs=True), compute
    try:
        image = go(pipe, way, steps)
    finally:
        handle.remove()
        last.original_forward = plain
    run = getattr(pipe.scheduler, "run", None)
    entries = [k for _, k in run.calls] if run else [0] * steps
    branches, found = BRANCHES[way], {}
    for i, call in enumerate(calls):
        key = (i % branches, entries[i // branches])
        found[key] = found.get(key, "") + ("F" if call == "F" else ".")
    return image, found


def kept(mode, kind="all_steps", **where):
    return {"correction": Correction(), "placement": Placement(kind, cached_steps=mode, **where)}


@pytest.mark.parametrize(("way", "cache", "cached"), [(*pair, pair) for pair in TOGETHER], indirect=["cached"])
def test_first_calls_follow_the_pattern_of_the_run_without_corrections(way, cache, cached):
    image, plain = patterns(cached, way)
    if cache in PATTERNS and BRANCHES[way] == 1 and way != "CogVideoX":
        assert plain[0, 0] == PATTERNS[cache]
    assert BRANCHES[way] == 2 or set(plain[0, 0]) == {"F", "."}
    expected = [plain[branch, 0] for branch in range(BRANCHES[way])]
    if cache in ("PAB", "FasterCache") and BRANCHES[way] == 2:  # two calls on one counter spoil the run without corrections
        expected = [PATTERNS[cache]] * 2
    for mode in ("cached", "full", "skip"):
        with iec.apply(cached, **kept(mode)):
            found = patterns(cached, way)[1]
            if mode == "cached":
                assert patterns(cached, way)[1] == found  # a second run on the same pipeline
        first, correction = ([found[branch, k] for branch in range(BRANCHES[way])] for k in (0, 1))
        assert first == expected
        if mode == "full":
            assert correction == ["F" * T] * len(first)
        elif mode == "skip":  # where any branch reused anything
            assert correction == ["".join("F" if set(step) == {"F"} else "." for step in zip(*first, strict=True))] * len(first)
        elif cache not in ("FirstBlockCache", "SeaCache"):  # which decide by the state
            assert correction == first
    again, unchanged = patterns(cached, way)
    assert torch.equal(again, image) and unchanged == plain


def on(way, *caches):
    """For tests of these caches on one pipeline."""
    return pytest.mark.parametrize(("cache", "cached"), [(cache, (way, cache)) for cache in caches], indirect=["cached"])


@on("FLUX", "FirstBlockCache", "PAB")
def test_without_apply_corrections_are_taken_for_steps(cache, cached):
    """What is mended: the scheduler alone does not know the caches."""
    plain, cached.scheduler = cached.scheduler, IECFlowMatchScheduler.from_config(FLOW.config, last_step="correct")
    try:
        found = patterns(cached, "FLUX")[1]
    finally:
        cached.scheduler = plain
    assert "F" not in found[0, 1][2:8]
    assert found[0, 0] == "F" * T or cache == "FirstBlockCache"


@on("FLUX", *PATTERNS)
def test_skip_is_full_corrections_where_the_step_is_computed(cache, cached):
    computed = tuple(i for i, call in enumerate(PATTERNS[cache]) if call == "F")
    with iec.apply(cached, **kept("skip")):
        skipped = go(cached, "FLUX")
    with iec.apply(cached, **kept("full", "explicit", steps=computed)):
        assert torch.equal(go(cached, "FLUX"), skipped)


@on("FLUX", "FirstBlockCache", *PATTERNS)
def test_full_corrections_are_what_the_network_says_without_a_cache(cache, cached):
    network, calls, plain = cached.transformer, [], {}
    with iec.apply(cached, **kept("full")):
        scheduler = cached.scheduler

        def keep(module, args, kwargs, output):
            calls.append((scheduler.upcoming[1], kwargs, output[0]))

        handle = network.register_forward_hook(keep, with_kwargs=True)
        go(cached, "FLUX")
        handle.remove()
    network.disable_cache()
    with torch.no_grad():
        plain = [network(**kwargs)[0] for _, kwargs, _ in calls]
    network.enable_cache(CACHES["FirstBlockCache"](None))  # which the fixture takes off
    exact = [torch.equal(output, expected) for (_, _, output), expected in zip(calls, plain, strict=True)]
    assert all(same for (k, _, _), same in zip(calls, exact, strict=True) if k)
    assert not all(exact)


@on("FLUX", *PATTERNS)
def test_corrections_after_an_uncorrected_step_are_computed(cache, cached):
    with iec.apply(cached, **kept("cached", "first_last", count=5)):
        found = patterns(cached, "FLUX")[1]
    assert found == {(0, 0): PATTERNS[cache], (0, 1): PATTERNS[cache][:5] + "F" * 5}


@on("FLUX", "TaylorSeer", "PAB")
def test_every_iteration_has_a_state_of_its_own(cache, cached):
    with iec.apply(cached, **kept("cached") | {"correction": Correction(iterations=2, lambdas=(0.5, 0.3))}):
        found = patterns(cached, "FLUX")[1]
    assert found == {(0, k): PATTERNS[cache] for k in range(3)}


@on("FLUX, two branches", "TaylorSeer", "PAB")
def test_a_run_after_an_exception_and_with_other_steps_starts_anew(cache, cached):
    way = "FLUX, two branches"

    def stop(pipe, i, t, given):
        if i == 7:
            raise KeyboardInterrupt
        return given

    with iec.apply(cached, **kept("cached")):
        image, found = patterns(cached, way, 9)
        for steps in (T, 9):
            with pytest.raises(KeyboardInterrupt):
                go(cached, way, steps, callback_on_step_end=stop)
        again, after = patterns(cached, way, 9)
        assert torch.equal(again, image) and after == found
        states = cached.transformer._diffusers_hook.hooks["iec_cache_states"]
        assert not states.states and not states.answers  # no tensors are held


@on("Wan", "SeaCache", "FasterCache", "MagCache")
def test_a_cache_that_was_taken_off_or_put_on_meanwhile(cache, cached):
    """SeaCache and FasterCache have a hook on the network itself, MagCache has none."""
    network, config = cached.transformer, cached.transformer._cache_config
    expected = go(cached, "Wan")
    applied = iec.apply(cached, **kept("cached"))
    network.disable_cache()
    corrected = go(cached, "Wan")
    network.enable_cache(config)
    if cache == "MagCache":
        go(cached, "Wan")
        applied.remove()
    else:
        with pytest.raises(ConfigError, match="pipe.transformer.disable_cache.. and iec.remove.pipe., enable the cache again"):
            go(cached, "Wan")
        with pytest.raises(ConfigError, match="Take that off first"):
            applied.remove()
        network.disable_cache()
        applied.remove()
        network.enable_cache(config)
    assert torch.equal(go(cached, "Wan"), expected)
    network.disable_cache()
    with iec.apply(cached, **kept("cached")):
        assert torch.equal(go(cached, "Wan"), corrected)
        network.enable_cache(config)
        with pytest.raises(ConfigError, match="after iec.apply"):
            go(cached, "Wan")


def offload(network):
    """As accelerate does it."""
    plain = network._old_forward = network.forward
    network._hf_hook = object()
    network.forward = functools.update_wrapper(lambda *args, **kwargs: network._old_forward(*args, **kwargs), plain)


def bring_back(network):
    network.forward = network._old_forward
    del network._old_forward, network._hf_hook


@on("FLUX", "MagCache", "FasterCache")
def test_offloading_stays_around_the_states(cache, cached):
    network = cached.transformer
    with iec.apply(cached, **kept("cached")):
        image, found = patterns(cached, "FLUX")
    with iec.apply(cached, **kept("cached")):
        offload(network)
        assert patterns(cached, "FLUX")[1] == found
    assert hasattr(network, "_hf_hook")
    if cache == "FasterCache":
        with pytest.raises(ConfigError, match="remove_all_hooks"):
            iec.apply(cached, **kept("cached"))
        bring_back(network)
        return
    with iec.apply(cached, **kept("cached")):
        for _ in range(2):
            assert torch.equal(go(cached, "FLUX"), image)
            bring_back(network)  # after every run
            offload(network)
    bring_back(network)

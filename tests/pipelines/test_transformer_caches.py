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
    "FirstBlockCache": lambda now: FirstBlockCacheConfig(0.1),
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
    assert "F" in plain[0, 0]
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

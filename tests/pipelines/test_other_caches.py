"""Caches that are refused under corrections, and by what they are known."""

import functools
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, TextKVCacheConfig, apply_pyramid_attention_broadcast, apply_text_kv_cache

import iec
from iec import Correction
from iec.errors import ConfigError
from iec.pipelines.flow import IECFlowMatchScheduler
from iec.pipelines.other_caches import keep_states
from iec.pipelines.transformer_caches import CacheStates
from tests.tiny_flow import WAYS, flux, sd3
from tests.tiny_pipelines import seeded

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.fixture(scope="module")
def pipe():
    return flux(FLOW)


def wrapped(module, network, plain):
    """``network.forward`` replaced by a function of this module, under the name of what it replaces."""
    source = ModuleType(module)
    exec("def wrap(f):\n    def new(self, *a, **k):\n        return f(*a, **k)\n    return new", source.__dict__)
    return functools.wraps(plain)(source.wrap(plain)).__get__(network)


@pytest.mark.parametrize(
    ("module", "name", "way_out"),
    [
        ("nunchaku.caching.teacache", "nunchaku", "leave the `with TeaCache"),
        ("para_attn.first_block_cache", "ParaAttention", "Load the transformer again"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_caches_of_other_packages_are_known_by_their_functions(pipe, module, name, way_out, when):
    network = pipe.transformer
    plain = network.forward
    arguments = {**WAYS["FLUX"][1], "num_inference_steps": 2}
    if when == "after":
        iec.apply(pipe, correction=Correction())
    network.forward = wrapped(module, network, plain)
    with pytest.raises(ConfigError, match=f"\\({name}\\) is on transformer.*{way_out}"):
        iec.apply(pipe, correction=Correction()) if when == "before" else pipe(**arguments)
    network.forward = plain
    if when == "after":
        pipe(**arguments)
        iec.remove(pipe)
    iec.apply(pipe, correction=Correction()).remove()


@pytest.mark.parametrize("package", [None, "nunchaku.caching.teacache"])
def test_nothing_is_left_behind_by_a_refusal(pipe, package):
    network, scheduler = pipe.transformer, pipe.scheduler
    network.enable_cache(FirstBlockCacheConfig(0.1))
    plain = network.forward
    if package is None:
        network._is_cached = True
    else:
        network.forward = wrapped(package, network, plain)
    with pytest.raises(ConfigError, match="is on transformer"):
        iec.apply(pipe, correction=Correction())
    assert pipe.scheduler is scheduler and "iec_cache_states" not in network._diffusers_hook.hooks
    network.forward, network._is_cached = plain, False
    iec.apply(pipe, correction=Correction()).remove()
    network.disable_cache()


def test_a_second_network_that_fails_leaves_nothing_on_the_first(pipe, monkeypatch):
    both = SimpleNamespace(components={"transformer": pipe.transformer, "transformer_2": flux(FLOW).transformer})
    networks = list(both.components.values())
    for network in networks:
        network.enable_cache(FirstBlockCacheConfig(0.1))
    forwards, install = [network.forward for network in networks], CacheStates.install
    with monkeypatch.context() as patch:
        patch.setattr(CacheStates, "install", lambda states: 1 / 0 if states.network is networks[1] else install(states))
        with pytest.raises(ZeroDivisionError):
            keep_states(both, IECFlowMatchScheduler())
    for network, forward in zip(networks, forwards, strict=True):
        assert "iec_cache_states" not in network._diffusers_hook.hooks and network.forward.__func__ is forward.__func__
    removals = keep_states(both, IECFlowMatchScheduler())
    assert all("iec_cache_states" in network._diffusers_hook.hooks for network in networks)
    for remove in removals:
        remove()
    pipe.transformer.disable_cache()


def test_a_cache_of_text_passes(pipe):
    apply_text_kv_cache(pipe.transformer, TextKVCacheConfig())
    arguments = {**WAYS["FLUX"][1], "num_inference_steps": 3, "return_dict": False}
    with iec.apply(pipe, correction=Correction()):
        image = pipe(**arguments, generator=seeded())[0]
        pipe.transformer._diffusers_hook.remove_hook("text_kv_cache_transformer")
        assert torch.equal(pipe(**arguments, generator=seeded())[0], image)


def test_networks_that_are_not_reset_after_a_run_are_refused():
    """diffusers' functions put a cache on any network, but only those with ``enable_cache`` are reset by the pipeline."""
    pipe = sd3(FLOW)
    now = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
    apply_pyramid_attention_broadcast(pipe.transformer, now)
    with pytest.raises(ConfigError, match="pyramid_attention_broadcast. is on transformer.*HookRegistry.*remove_hook"):
        iec.apply(pipe, correction=Correction())
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook("pyramid_attention_broadcast")
    iec.apply(pipe, correction=Correction()).remove()


def test_what_cache_dit_leaves_behind_is_not_refused(pipe):
    """Its disable_cache() takes the mark off, and leaves forwards of its own with another signature."""
    network = pipe.transformer
    plain = network.forward
    network.forward, network._is_cached = wrapped("cache_dit.caching.patch_functors.functor_flux", network, plain), True
    with pytest.raises(ConfigError, match="cache-dit. is on transformer.*cache_dit.disable_cache"):
        iec.apply(pipe, correction=Correction())
    del network._is_cached
    iec.apply(pipe, correction=Correction()).remove()
    network.forward = plain

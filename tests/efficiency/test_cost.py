"""Multiply-accumulates of full and cached calls."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.cost import network_cost
from iec.models import load_model
from iec.sampling.network import FeatureCache, Step
from tests.efficiency.caching.unets import PAPER, cuts_of, macs_of, make

PUBLISHED = {1: 6.1, 2: 4.15, 3: 3.54, 5: 3.01, 10: 2.63}
"""MACs in G of one step, on average over the refresh interval N: DeepCache (arXiv 2312.00858), CIFAR-10, 32 x 32."""


def average(full, cached, interval):
    return (full + (interval - 1) * cached) / interval / 1e9


def share(unet, cut):
    """MACs of a cached call over those of a full one."""
    full, cached = macs_of(unet, cut, (3, 32, 32))
    return cached / full


def test_cifar_costs_what_deepcache_publishes():
    """Its numbers, and its measured speedup of 2.07 at N = 10, are those of the cut after the second residual block (cut 2)."""
    full, cached = macs_of(PAPER["DDPM CIFAR-10"](), 2, (3, 32, 32))
    for interval, published in PUBLISHED.items():
        assert average(full, cached, interval) == pytest.approx(published, rel=0.025)


def test_the_cut_of_the_released_code_costs_more_than_deepcache_publishes():
    """The released "branch 2" is one skip deeper: it also runs a residual block, an attention and the upsampler above."""
    full, cached = macs_of(PAPER["DDPM CIFAR-10"](), "pixel", (3, 32, 32))
    assert cached / full == pytest.approx(0.544, abs=0.001)
    assert average(full, cached, 10) == pytest.approx(3.67, abs=0.01)


def test_a_deeper_cut_costs_more_and_never_all():
    unet = load_model(device="cpu", random_weights=True).unet
    costs = [share(unet, k) for k in cuts_of(unet)]
    assert costs == sorted(costs) and costs[0] > 0 and costs[-1] < 1
    assert share(unet, "pixel") == costs[2] == pytest.approx(0.421, abs=0.001)


@pytest.mark.parametrize("name", ["pixel", "residual samplers", "labels", "text"])
def test_the_count_agrees_with_torchs_own(name):
    unet, cond = make(name)
    cond = None if cond is None else cond[:1]
    network, x, step = CachedUNetNetwork(unet, 1), torch.randn(1, 3, 8, 8), Step(0, 5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as full:  # fused kernels are not counted on a CPU
        feature = network(x, step, cond).feature
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as cached:
        network(x, Step(0, 5, "cached"), cond, FeatureCache(feature, step))
    macs = (full.get_total_flops() // 2, cached.get_total_flops() // 2)
    assert macs_of(unet, 1, (3, 8, 8), cond) == macs


def test_counting_leaves_the_unet_alone():
    unet, cond = make("text")
    before = [m for m in unet.modules() if m._forward_hooks or m._forward_pre_hooks]
    macs_of(unet, 0, (3, 8, 8), cond[:1])
    assert before == [m for m in unet.modules() if m._forward_hooks or m._forward_pre_hooks] == []


@pytest.mark.parametrize("cut", [0, "pixel"])
@pytest.mark.parametrize(("name", "features"), [("none", 1), ("linear", 2), ("probe", 2)])
def test_what_the_sampling_loop_stores_of_an_image_is_counted(name, features, cut):
    unet, _ = make("pixel")
    forecast = CachingConfig(forecast=name).forecast_of(np.array([0.1, 0.9]))
    made = CachedUNetNetwork(unet, cut, forecast)(torch.randn(1, 3, 8, 8), Step(0, 5))
    stored = features * sum(value.nbytes for value in (made.feature, made.probe) if value is not None)
    cost = network_cost(unet, (3, 8, 8), 0, cut=cut, branches=2, forecast=forecast)
    assert cost.cache_bytes == 2 * stored and (made.probe is None) == (name != "probe")
    assert network_cost(unet, (3, 8, 8), 0).cache_bytes is None

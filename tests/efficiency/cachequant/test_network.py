"""The corrected cache: per-channel, per-step, bit-identical to plain caching without a correction, and refused elsewhere."""

from dataclasses import replace

import pytest
import torch

from iec.efficiency.cachequant import CacheTables, CorrectedCacheNetwork
from iec.efficiency.caching import CachedUNetNetwork
from iec.errors import ArtifactError, ConfigError
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from tests.efficiency.cachequant.conftest import REFRESH, SHAPE, TABLE
from tests.efficiency.caching.unets import make

NOISE = Noise(0, (0, 1, 2), SHAPE)


def tables(channels, refresh=REFRESH):
    a, b = 1 + torch.randn(5, channels) / 4, torch.randn(5, channels) / 4
    a[sorted(refresh)], b[sorted(refresh)] = 1, 0
    return CacheTables(refresh, a, b)


def run(network, cond=None, **options):
    return list(Sampler(TABLE, refresh=REFRESH, **options).trajectory(network, NOISE, cond))


@pytest.mark.parametrize(("name", "cut"), [("pixel", "pixel"), ("residual samplers", 4), ("text", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_rows_are_plain_caching_bit_for_bit(name, cut, dtype):
    unet, cond = make(name)
    plain = CachedUNetNetwork(unet.to(dtype), cut)
    cond = None if cond is None else cond.to(dtype)
    identity = CacheTables.identity(REFRESH, 5, plain.cut.channels)
    pairs = zip(run(CorrectedCacheNetwork(plain, identity), cond), run(plain, cond), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_cached_call_gets_the_corrected_feature_and_a_full_call_passes_through():
    unet, _ = make("pixel")
    plain = CachedUNetNetwork(unet, "pixel")
    table = tables(plain.cut.channels)
    network, x, step = CorrectedCacheNetwork(plain, table), torch.randn(3, *SHAPE), Step(0, 800)
    full = network(x, step)
    assert torch.equal(full.eps, plain(x, step).eps) and torch.equal(full.feature, plain(x, step).feature)
    for i in (1, 2):
        corrected = table.a[i].view(1, -1, 1, 1) * full.feature + table.b[i].view(1, -1, 1, 1)
        cached = Step(i, 500, "cached")
        found = network(x, cached, cache=FeatureCache(full.feature, step)).eps
        assert torch.equal(found, plain(x, cached, cache=FeatureCache(corrected, step)).eps)
        assert not torch.equal(found, plain(x, cached, cache=FeatureCache(full.feature, step)).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_feature_keeps_its_dtype_and_is_rounded_once(dtype):
    table, feature = tables(4), torch.randn(2, 4, 3, 3).to(dtype)
    found = table.apply(1, feature)
    assert found.dtype == dtype
    exact = table.a[1].double().view(-1, 1, 1) * feature.double() + table.b[1].double().view(-1, 1, 1)
    torch.testing.assert_close(found, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype.itemsize > 2 else 0)


def test_images_are_corrected_alone():
    table, feature = tables(4), torch.randn(3, 4, 2, 2)
    assert torch.equal(table.apply(2, feature)[1:2], table.apply(2, feature[1:2]))


def test_sampling_with_another_schedule_is_refused():
    unet, _ = make("pixel")
    plain = CachedUNetNetwork(unet, "pixel")
    network = CorrectedCacheNetwork(plain, tables(plain.cut.channels))
    assert torch.isfinite(run(network)[-1]).all()
    for refresh in ({0}, {0, 2}, {0, 1, 3}):
        with pytest.raises(ConfigError, match=r"refresh steps \[0, 3\]"):
            list(Sampler(TABLE, refresh=frozenset(refresh)).trajectory(network, NOISE))
    list(Sampler(TABLE, refresh=frozenset(range(5))).trajectory(network, NOISE))  # every call is full: nothing to correct


def test_a_cached_call_at_a_refresh_step_is_refused_even_with_its_own_feature():
    unet, _ = make("pixel")
    plain, x, step = CachedUNetNetwork(unet, "pixel"), torch.randn(1, *SHAPE), Step(3, 200)
    network = CorrectedCacheNetwork(plain, tables(plain.cut.channels))
    with pytest.raises(ConfigError, match="cached call at step 3"):
        network(x, replace(step, mode="cached"), cache=FeatureCache(plain(x, step).feature, step))


@pytest.mark.parametrize("mode", ["full", "cached"])
def test_a_step_without_a_row_is_refused(mode):
    unet, _ = make("pixel")
    plain = CachedUNetNetwork(unet, "pixel")
    network, x = CorrectedCacheNetwork(plain, tables(plain.cut.channels)), torch.randn(1, *SHAPE)
    cache = FeatureCache(plain(x, Step(0, 800)).feature, Step(3, 200)) if mode == "cached" else None
    with pytest.raises(ArtifactError, match=r"step 5 has no cache correction; .* 0 \.\. 4"):
        network(x, Step(5, 0, mode), cache=cache)


def test_a_cached_call_without_a_feature_says_so():
    unet, _ = make("pixel")
    plain = CachedUNetNetwork(unet, "pixel")
    with pytest.raises(ConfigError, match="first step a refresh step"):
        CorrectedCacheNetwork(plain, tables(plain.cut.channels))(torch.randn(1, *SHAPE), Step(1, 600, "cached"))


def test_tables_of_another_cut_are_refused():
    with pytest.raises(ConfigError, match="32 channels and cut 0 has 16"):
        CorrectedCacheNetwork(CachedUNetNetwork(make("pixel")[0], 0), tables(32))


def test_corrections_at_cached_steps_reuse_the_corrected_feature_and_full_ones_are_refused():
    unet, _ = make("pixel")
    plain = CachedUNetNetwork(unet, "pixel")
    network = CorrectedCacheNetwork(plain, tables(plain.cut.channels))
    base = run(network)[-1]
    reused = run(network, correction=Correction(1), placement=Placement("all_steps", cached_steps="cached"))[-1]
    assert torch.isfinite(reused).all() and not torch.equal(reused, base)
    with pytest.raises(ConfigError, match=r"iec\.cached_steps=skip"):  # the feature of step 1 is not what row 2 was fitted to
        run(network, correction=Correction(1), placement=Placement("all_steps", cached_steps="full"))

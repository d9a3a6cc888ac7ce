"""A UNet run by parts is the UNet; the cached feature goes in and out, and nowhere else."""

import pytest
import torch

from iec.efficiency.caching import CachedUNetNetwork, uniform
from iec.errors import ConfigError
from iec.models.unet import UNetNetwork
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, FeatureCache, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import CASES, cuts_of, make

SHAPE = (3, 8, 8)
NOISE = Noise(0, (0, 1, 2), SHAPE)
TABLE = Timetable.spaced("leading_plus_one", 4, NoiseSchedule())  # ends at timestep 1: Fourier features take its logarithm
SHORT = Timetable.spaced("leading_plus_one", 2, NoiseSchedule())
FULL, CACHED = Step(0, 501), Step(0, 501, "cached")


def run(sampler, network, cond=None):
    return list(sampler.trajectory(network, NOISE, cond))


@pytest.mark.parametrize("name", CASES)
def test_a_full_call_is_the_unet_bit_for_bit(name):
    unet, cond = make(name)
    x = torch.randn(3, *SHAPE)
    expected = UNetNetwork(unet)(x, FULL, cond).eps
    for cut in cuts_of(unet):
        assert torch.equal(CachedUNetNetwork(unet, cut)(x, FULL, cond).eps, expected), cut


@pytest.mark.parametrize("name", CASES)
def test_a_cached_call_where_its_feature_was_made_is_the_full_call_at_every_cut(name):
    unet, cond = make(name)
    x = torch.randn(3, *SHAPE)
    for cut in cuts_of(unet):
        network = CachedUNetNetwork(unet, cut)
        full = network(x, FULL, cond)
        cached = network(x, CACHED, cond, FeatureCache(full.feature, FULL))
        assert torch.equal(cached.eps, full.eps), cut
        assert cached.feature is None


@pytest.mark.parametrize("name", CASES)
def test_a_cached_call_elsewhere_differs_from_the_full_call_and_depends_on_its_input(name):
    unet, cond = make(name)
    x, other = torch.randn(2, 3, *SHAPE)
    for cut in cuts_of(unet):
        network = CachedUNetNetwork(unet, cut)
        cache = FeatureCache(network(other, FULL, cond).feature, FULL)
        cached = network(x, CACHED, cond, cache).eps
        assert not torch.equal(cached, network(x, FULL, cond).eps), cut
        assert not torch.equal(cached, network(other, CACHED, cond, cache).eps), cut
        assert not torch.equal(cached, network(x, Step(0, 20, "cached"), cond, cache).eps), cut  # the time is always fresh


@pytest.mark.parametrize("name", CASES)
def test_refreshing_at_every_step_is_the_uncached_sampler_bit_for_bit(name):
    unet, cond = make(name)
    expected = run(Sampler(SHORT), UNetNetwork(unet), cond)
    for cut in cuts_of(unet):
        counted = CountingNetwork(CachedUNetNetwork(unet, cut))
        states = run(Sampler(SHORT, refresh=frozenset(range(2))), counted, cond)
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True)), cut
        assert (counted.calls.full, counted.calls.cached) == (6, 0)


def test_cached_steps_change_the_result_and_are_counted():
    unet, _ = make("pixel")
    counted = CountingNetwork(CachedUNetNetwork(unet, "pixel"))
    states = run(Sampler(TABLE, refresh=uniform(4, 2)), counted)
    expected = run(Sampler(TABLE), UNetNetwork(unet))
    assert (counted.calls.full, counted.calls.cached) == (6, 6)
    assert [torch.equal(a, b) for a, b in zip(states, expected, strict=True)] == [True, True, False, False, False]


def test_sizes_that_do_not_halve_are_run_as_diffusers_runs_them():
    unet, cond = make("text")
    x = torch.randn(3, 3, 10, 6)
    for cut in cuts_of(unet):
        network = CachedUNetNetwork(unet, cut)
        full = network(x, FULL, cond)
        assert torch.equal(full.eps, unet(x, 501, cond).sample)
        assert torch.equal(network(x, CACHED, cond, FeatureCache(full.feature, FULL)).eps, full.eps), cut


def test_a_unet_without_an_output_norm():
    unet, cond = make("text")
    unet.conv_norm_out = None
    x = torch.randn(3, *SHAPE)
    assert torch.equal(CachedUNetNetwork(unet, 1)(x, FULL, cond).eps, unet(x, 501, cond).sample)


def test_the_network_works_in_the_dtype_of_its_weights():
    unet, _ = make("pixel")
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    network = CachedUNetNetwork(unet.to(torch.bfloat16), "pixel")
    full = network(x, FULL)
    assert full.eps.dtype == full.feature.dtype == torch.bfloat16
    assert torch.equal(full.eps, UNetNetwork(unet)(x, FULL).eps)
    assert torch.equal(network(x, CACHED, cache=FeatureCache(full.feature, FULL)).eps, full.eps)


def test_images_of_a_batch_do_not_share_a_feature():
    """The cache of some of the images, in another order, gives the predictions of those images."""
    unet, cond = make("labels")
    x, rows = torch.randn(3, *SHAPE), torch.tensor([2, 0])
    network = CachedUNetNetwork(unet, "pixel")
    feature = network(torch.randn(3, *SHAPE), FULL, cond).feature
    whole = network(x, CACHED, cond, FeatureCache(feature, FULL)).eps
    part = network(x[rows], CACHED, cond[rows], FeatureCache(feature[rows], FULL)).eps
    torch.testing.assert_close(part, whole[rows])


@pytest.mark.parametrize("weight", [0.5, 0.0])  # 0: the call renews the feature, and the state stays
@pytest.mark.parametrize("cache_from", ["first", "last"])
def test_a_correction_at_a_refresh_step_decides_what_the_next_step_reuses(cache_from, weight):
    unet, _ = make("pixel")
    network = CachedUNetNetwork(unet.double(), "pixel")
    sampler = Sampler(TABLE, Correction(1, (weight,), cache_from=cache_from), Placement("first_step"), refresh=frozenset({0}))
    states = run(sampler, network)
    (t0, _), (t1, _) = TABLE.pairs[:2]

    def target(i, t, y):
        prediction = network(y, Step(i, t))
        return TABLE.A[0] * states[0] + TABLE.B[0] * prediction.eps, prediction.feature

    y, first = target(0, t0, states[0])
    g, last = target(0, t0, y)
    torch.testing.assert_close(states[1], y + weight * (g - y))
    reused = FeatureCache(first if cache_from == "first" else last, Step(0, t0))
    eps = network(states[1], Step(1, t1, "cached"), cache=reused).eps
    torch.testing.assert_close(states[2], TABLE.A[1] * states[1] + TABLE.B[1] * eps, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first, last)


def test_a_correction_at_a_cached_step_moves_the_images_that_need_it():
    unet, _ = make("pixel")
    counted = CountingNetwork(CachedUNetNetwork(unet, "pixel"))
    refresh, plain = uniform(4, 2), Correction(2, (0.5,), tolerance=0)
    states = run(Sampler(TABLE, plain, Placement("explicit", steps=(1,)), refresh=refresh), counted)
    assert (counted.calls.full, counted.calls.cached, counted.calls.cached_correction) == (6, 6, 6)
    once = run(Sampler(TABLE, Correction(1), Placement("explicit", steps=(1,)), refresh=refresh), counted.network)
    change = torch.linalg.vector_norm((once[2] - run(Sampler(TABLE, refresh=refresh), counted.network)[2]).flatten(1), dim=1)
    between = change.sort().values[:2].mean().item()  # one of the three images stops after its first correction
    stopped = CountingNetwork(counted.network)
    some = run(Sampler(TABLE, Correction(2, tolerance=between), Placement("explicit", steps=(1,)), refresh=refresh), stopped)
    assert stopped.calls.cached_correction == 6  # the frozen image is evaluated with the others
    quick = change.argmin()
    for i in range(3):
        torch.testing.assert_close(some[2][i], (once if i == quick else states)[2][i], rtol=1e-5, atol=1e-5)


class Guided:
    """Classifier-free guidance over a network: both halves in one batch, one row of the feature an image."""

    def __init__(self, network, uncond, scale):
        self.network, self.uncond, self.scale = network, uncond, scale

    def __call__(self, x, step, cond=None, cache=None):
        if cache is not None:
            cache = FeatureCache(cache.feature.transpose(0, 1).flatten(0, 1), cache.step)
        both = torch.cat([self.uncond.expand_as(cond), cond])
        prediction = self.network(torch.cat([x, x]), step, both, cache)
        low, high = prediction.eps.chunk(2)
        feature = None if prediction.feature is None else prediction.feature.unflatten(0, (2, len(x))).transpose(0, 1)
        return Prediction(low + self.scale * (high - low), feature)


@pytest.mark.parametrize(("name", "uncond"), [("text", torch.zeros(1, 4, 6)), ("labels", torch.tensor([3]))])
def test_guidance_folds_both_features_of_an_image_into_one_row(name, uncond):
    unet, cond = make(name)
    x = torch.randn(3, *SHAPE)
    expected = run(Sampler(SHORT), Guided(UNetNetwork(unet), uncond, 3.0), cond)
    for cut in cuts_of(unet):
        network = Guided(CachedUNetNetwork(unet, cut), uncond, 3.0)
        states = run(Sampler(SHORT, refresh=frozenset(range(2))), network, cond)
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True)), cut
        full = network(x, FULL, cond)
        assert full.feature.shape[:2] == (3, 2)
        assert torch.equal(network(x, CACHED, cond, FeatureCache(full.feature, FULL)).eps, full.eps), cut
        rows = torch.tensor([2, 0])
        part = network(x[rows], CACHED, cond[rows], FeatureCache(full.feature[rows], FULL)).eps
        torch.testing.assert_close(part, full.eps[rows], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_the_call_is_refused():
    unet, _ = make("pixel")
    x, network = torch.randn(3, *SHAPE), CachedUNetNetwork(unet, "pixel")
    feature = network(x, FULL).feature
    with pytest.raises(ConfigError, match="needs the feature"):
        network(x, CACHED)
    for other in (CachedUNetNetwork(unet, 0)(x, FULL).feature, feature[:2], feature[..., :2]):
        with pytest.raises(ConfigError, match="cut 3 at up_blocks.1.resnets.2"):
            network(x, CACHED, cache=FeatureCache(other, FULL))
    with pytest.raises(ConfigError, match="Leave cond out"):
        network(x, FULL, torch.zeros(3))
    with pytest.raises(ConfigError, match="one label an image"):
        CachedUNetNetwork(make("labels")[0], 0)(x, FULL)
    with pytest.raises(ConfigError, match="text embeddings"):
        CachedUNetNetwork(make("text")[0], 0)(x, FULL)


def test_nothing_is_kept_between_calls():
    unet, _ = make("pixel")
    network, x = CachedUNetNetwork(unet, "pixel"), torch.randn(3, *SHAPE)
    before = dict(vars(network))
    full = network(x, FULL)
    network(torch.randn(3, *SHAPE), Step(1, 300))
    assert torch.equal(network(x, CACHED, cache=FeatureCache(full.feature, FULL)).eps, full.eps)
    assert vars(network) == before

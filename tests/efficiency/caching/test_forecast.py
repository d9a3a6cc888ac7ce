"""Forecasts of the cached feature: closed forms on chosen features, whatever the gaps between refreshes."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite import hermval

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.caching.forecast import REUSE, Extrapolated, Probed, hermite, newton, taylor, weights
from iec.efficiency.caching.forecast_config import ForecastConfig, log_snr
from iec.errors import ConfigError
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import make

TABLE, SHORT = (Timetable.spaced("uniform", steps, NoiseSchedule()) for steps in (20, 8))
UNEVEN, EVEN = (9, 7, 2, 1), (12, 8, 4, 0)
BASES = {"taylor": taylor, "newton": newton, "hicache": hermite(0.5)}


def stored(value, indices, probe=lambda u: None):
    """A cache whose features, and probes, are a function of the index of their step, newest first."""
    caches = [FeatureCache(value(i), Step(i, 999), probe(i)) for i in indices]
    return replace(caches[0], earlier=tuple(caches[1:]))


def forecast(method, cache, i, probe=None):
    return method.feature(cache, Step(i, 999, "cached"), probe)


def powers(coefficients):
    """u -> a polynomial with other coefficients for each pixel, [2, 3, 4, 4]."""
    return lambda u: sum(c * float(u) ** k for k, c in enumerate(coefficients))


@pytest.mark.parametrize("nodes", [UNEVEN, EVEN])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_newton_is_exact_on_polynomials_of_its_order(order, nodes):
    polynomial = powers(torch.randn(order + 1, 2, 3, 4, 4, dtype=torch.float64))
    cache = stored(polynomial, nodes[: order + 1])
    for i in (nodes[0], nodes[0] + 1, nodes[0] + 5):
        torch.testing.assert_close(forecast(Extrapolated(newton, order), cache, i), polynomial(i), rtol=1e-9, atol=1e-9)


def test_newton_is_exact_in_log_snr_too():
    clock = log_snr(TABLE.abar_t)
    assert all(a < b for a, b in pairwise(clock))
    polynomial = powers(torch.randn(3, 2, 3, 4, 4, dtype=torch.float64))
    found = forecast(Extrapolated(newton, 2, clock), stored(lambda i: polynomial(clock[i]), UNEVEN[:3]), 12)
    torch.testing.assert_close(found, polynomial(clock[12]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_the_released_rule_on_even_gaps(order):
    """Which keeps differences D_0 .. D_m, and at a refresh divides what changed of each by the gap since the last one."""
    features = {i: torch.randn(2, 3, 4, 4, dtype=torch.float64) for i in EVEN}
    differences, last = [], None
    for i in reversed(EVEN):
        fresh = [features[i]]
        for d in range(min(order, len(differences))):
            fresh.append((fresh[d] - differences[d]) / (i - last))
        differences, last = fresh, i
    cache = stored(features.get, EVEN[: order + 1])
    for k in (1, 3, 4):
        expected = sum(d * k**n / math.factorial(n) for n, d in enumerate(differences))
        torch.testing.assert_close(forecast(Extrapolated(taylor, order), cache, EVEN[0] + k), expected)


@pytest.mark.parametrize("older", [1, 4, 6])
def test_taylor_of_a_square_is_wrong_by_the_slope_between_refreshes_alone(older):
    """It takes the slope half a gap ago for that at u_0; the gap before, which the released rule ignores, makes no difference."""
    square = lambda u: torch.full((1, 1, 1, 1), float(u) ** 2, dtype=torch.float64)  # noqa: E731
    found = forecast(Extrapolated(taylor, 2), stored(square, (10, 8, 8 - older)), 13)
    torch.testing.assert_close(found, square(13) - 2 * 3)


def test_hicache_is_hermite_and_looks_ahead():
    k, sigma, nodes = 3.0, 0.7, (9.0, 7.0, 2.0, 1.0)
    for i in range(4):
        assert hermite(sigma)(nodes, 9 + k, i) == pytest.approx(sigma**i * hermval(sigma * k, [0] * i + [1]))
    damped = weights(hermite(0.5), (8.0, 4.0), 12.0)  # linear with rho = 2 sigma^2 = 1/2, forwards
    assert damped == pytest.approx([1.5, -0.5])
    assert weights(hermite(0.5**0.5), nodes[:2], 12.0) == pytest.approx(weights(newton, nodes[:2], 12.0))
    offset = weights(hermite(0.5), (8.0, 4.0, 0.0), 8.0)  # at u_0: F_0 - sigma^2 D_2, D_2 the second difference over gap^2
    assert offset == pytest.approx([1 - 0.25 / 16, 0.5 / 16, -0.25 / 16])


@pytest.mark.parametrize("name", BASES)
def test_weights_are_one_in_sum_and_the_newest_feature_at_its_own_step(name):
    for order in range(4):
        nodes = [float(u) for u in UNEVEN[: order + 1]]
        assert sum(weights(BASES[name], nodes, 14.0)) == pytest.approx(1)
        if name != "hicache":
            assert weights(BASES[name], nodes, nodes[0]) == pytest.approx([1, *[0] * order])
    even = {"taylor": [2.5, -2, 0.5], "newton": [3, -3, 1]}
    if name in even:
        assert weights(BASES[name], (8.0, 4.0, 0.0), 12.0) == pytest.approx(even[name])


@pytest.mark.parametrize("basis", BASES.values())
def test_the_order_is_lower_while_the_history_is_shorter(basis):
    features = {i: torch.randn(2, 3, 4, 4) for i in UNEVEN}
    for length in (2, 3):
        cache = stored(features.get, UNEVEN[:length])
        expected = forecast(Extrapolated(basis, length - 1), cache, 12)
        assert torch.equal(forecast(Extrapolated(basis, 3), cache, 12), expected)
    one = stored(features.get, UNEVEN[:1])
    assert all(forecast(method, one, 12) is one.feature for method in (Extrapolated(basis, 3), Probed(), REUSE))


def test_of_refreshes_at_one_time_the_newest_counts():
    """Repeated timesteps (spacing quad) have one log-SNR; a divided difference between them would be infinite."""
    clock = (0.0, 1.0, 1.0, 2.0)
    features = {i: torch.randn(2, 3, 4, 4) for i in range(3)}
    found = forecast(Extrapolated(newton, 2, clock), stored(features.get, (2, 1, 0)), 3)
    torch.testing.assert_close(found, 2 * features[2] - features[0])


def test_a_step_without_a_clock_is_refused():
    with pytest.raises(ConfigError, match="step 9 has no clock.*5 steps"):
        forecast(Extrapolated(newton, 1, (0.0, 1.0, 2.0, 3.0, 4.0)), stored(lambda i: torch.zeros(1, 1, 1, 1), (9, 7)), 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_stays_and_the_sum_is_float32_at_least(dtype):
    cache = stored(lambda i: torch.full((1, 1, 2, 2), 1 + i / 128).to(dtype), (16, 8))
    found = forecast(Extrapolated(newton, 1), cache, 24)
    assert found.dtype == dtype and found.eq(1 + 24 / 128).all()


def test_probe_measures_the_way_since_the_last_refreshes_by_the_image():
    """F is affine in p: exact where p has gone on by no more than half a gap, reuse where it has not moved on."""
    base, direction = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    way = torch.tensor([1.0, 1.25, 3.0, 0.5], dtype=torch.float64).view(-1, 1, 1, 1)
    feature = lambda p: 7 * p + 1  # noqa: E731
    older, newer, now = base, base + direction, base + way * direction
    cache = FeatureCache(feature(newer), Step(7, 1), newer, (FeatureCache(feature(older), Step(2, 1), older),))
    found = forecast(Probed(), cache, 9, now)
    torch.testing.assert_close(found, feature(base + way.clamp(1, 1.5) * direction))
    assert torch.equal(found[:1], cache.feature[:1])
    for n in range(4):
        alone = cache.changed(lambda value, n=n: value[n : n + 1])
        assert torch.equal(forecast(Probed(), alone, 9, now[n : n + 1])[0], found[n])
    still = replace(cache, earlier=(replace(cache.earlier[0], probe=newer),))
    assert torch.equal(forecast(Probed(), still, 9, now), cache.feature)
    torch.testing.assert_close(forecast(Probed(3.0), cache, 9, now)[2], feature(now)[2])
    with pytest.raises(ConfigError, match="no probe"):
        forecast(Probed(), replace(cache, probe=None), 9, now)


def run(network, indices=(0, 1, 2), refresh=frozenset({0, 2, 5})):
    return list(Sampler(SHORT, refresh=refresh).trajectory(network, Noise(0, indices, (3, 8, 8))))


def equal(states, others):
    return [torch.equal(a, b) for a, b in zip(states, others, strict=True)]


METHODS = {
    "linear": CachingConfig(forecast="linear"),
    "taylor": CachingConfig(forecast="taylor", forecast_order=2),
    "newton": CachingConfig(forecast="newton", forecast_order=3, forecast_clock="log_snr"),
    "hicache": CachingConfig(forecast="hicache", forecast_order=2),
    "probe": CachingConfig(forecast="probe"),
}


@pytest.mark.parametrize("name", METHODS)
def test_in_the_loop_every_run_begins_anew_and_an_image_is_alone(name):
    plain = CachedUNetNetwork(make("pixel")[0], "pixel")
    network = CachedUNetNetwork(plain.module, "pixel", METHODS[name].forecast_of(SHORT.abar_t))
    states = run(network)
    same = equal(states, run(plain))
    assert all(same[:4]) and not any(same[4:])  # step 2 makes the second feature, and step 3 is the first to forecast
    assert all(equal(run(network), states))
    torch.testing.assert_close(run(network, (1,))[-1], states[-1][1:2], rtol=1e-3, atol=1e-4)
    once = frozenset({0})
    assert all(equal(run(network, refresh=once), run(plain, refresh=once)))


def test_names_of_one_forecast_and_what_is_none():
    """Order 0 is the cell that reuses the feature; linear, taylor and newton are one at order 1."""
    none, linear = CachingConfig(), CachingConfig(forecast="linear")
    for order_0 in (CachingConfig(forecast=name, forecast_order=0) for name in BASES):
        assert order_0.forecast_of(TABLE.abar_t) is REUSE and order_0.forecast_identity() == none.forecast_identity() == {}
    for name in ("taylor", "newton"):
        one = CachingConfig(forecast=name, forecast_order=1, forecast_clock="index")
        assert one.forecast_identity() == linear.forecast_identity()
        nodes = [float(u) for u in UNEVEN[:2]]
        assert weights(BASES[name], nodes, 12.0) == weights(taylor, nodes, 12.0) == pytest.approx([2.5, -1.5])
    identities = [str(config.forecast_identity()) for config in (*METHODS.values(), replace(METHODS["taylor"], forecast_order=3))]
    assert len(set(identities)) == 6
    assert ForecastConfig(forecast="hicache") == ForecastConfig(forecast="hicache", forecast_sigma=None)
    assert METHODS["probe"].forecast_identity() == replace(METHODS["probe"], forecast_clip=1.5).forecast_identity()


REFUSED = {
    "forecast_clip": ({"forecast": "taylor", "forecast_clip": 1.5}, "belongs to efficiency.forecast=probe"),
    "order of none": ({"forecast_order": 2}, "belongs to efficiency.forecast=taylor or newton or hicache, not none"),
    "order of linear": ({"forecast": "linear", "forecast_order": 2}, "belongs to .*not linear"),
    "order": ({"forecast": "taylor", "forecast_order": 4}, "must be 0, 1, 2 or 3"),
    "sigma": ({"forecast": "hicache", "forecast_sigma": 0.0}, r"outside \(0, 1\]"),
    "clip": ({"forecast": "probe", "forecast_clip": 0.9}, "at least 1"),
    "clock": ({"forecast": "linear", "forecast_clock": "time"}, "index or log_snr"),
    "method": ({"forecast": "spline"}, "none, linear, taylor, newton, hicache, probe"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_what_is_no_forecast_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CachingConfig(**options)


def test_log_snr_of_pure_noise_is_refused_and_the_index_is_not():
    abar = np.array([0.0, 0.5])
    with pytest.raises(ConfigError, match="forecast_clock=index"):
        CachingConfig(forecast="linear", forecast_clock="log_snr").forecast_of(abar)
    assert CachingConfig(forecast="linear", forecast_clock="index").forecast_of(abar).history == 1

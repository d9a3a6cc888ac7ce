"""CacheQuant where cached steps forecast: both corrections are fitted to, and act on, what the forecast leaves."""

from dataclasses import replace

import pytest
import torch

from iec.efficiency.cachequant import CacheQuantConfig, CorrectedCacheNetwork, FloatRuns, fit_cache
from iec.efficiency.cachequant.trajectories import with_source
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.caching.forecast import Extrapolated, newton
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.sampling.network import FeatureCache, Step
from tests.efficiency.cachequant.conftest import SHAPE, TABLE
from tests.efficiency.caching.unets import make

REFRESH, COUNT = frozenset({0, 1, 3}), 3
PROBE = CachingConfig(forecast="probe").forecast_of(TABLE.abar_t)


def runs_of(forecast, cond=None, guidance=None):
    unet = make("pixel" if cond is None else "text")[0]
    return FloatRuns(CachedUNetNetwork(unet, 1, forecast), TABLE, SHAPE, 7, 2, cond, guidance)


@pytest.mark.parametrize("forecast", [Extrapolated(newton, 1), PROBE], ids=["newton", "probe"])
def test_the_cache_correction_is_least_squares_on_the_forecast(forecast):
    runs = runs_of(forecast)
    tables, pairs = fit_cache(runs, REFRESH, COUNT), {}
    for call, source in with_source(runs.calls(COUNT, "test"), REFRESH, forecast):
        pairs.setdefault(call.step.index, []).append((source, call.feature))
    for i, found in pairs.items():
        x, y = (torch.cat(values).double().transpose(0, 1).flatten(1) for values in zip(*found, strict=True))
        if i in REFRESH:
            assert torch.equal(x, y) and tables.a[i].eq(1).all()
            continue
        a = ((x - x.mean(1, keepdim=True)) * (y - y.mean(1, keepdim=True))).sum(1) / (x - x.mean(1, keepdim=True)).square().sum(1)
        torch.testing.assert_close(tables.a[i], a, rtol=1e-5, atol=1e-6)
    features = {i: torch.cat([y for _, y in found]) for i, found in pairs.items()}
    if forecast is not PROBE:  # step 2 from 1 and 0, step 4 from 3 and 1: uneven gaps
        torch.testing.assert_close(torch.cat([x for x, _ in pairs[2]]), 2 * features[1] - features[0])
        torch.testing.assert_close(torch.cat([x for x, _ in pairs[4]]), 1.5 * features[3] - 0.5 * features[1])


@pytest.mark.parametrize("forecast", [Extrapolated(newton, 1), PROBE], ids=["newton", "probe"])
def test_what_is_forecast_is_corrected_and_probes_are_not(forecast):
    runs = runs_of(forecast)
    tables, plain = fit_cache(runs, REFRESH, COUNT), runs.network
    x, cache = torch.randn(COUNT, *SHAPE), None
    for i in (0, 1):
        made = plain(torch.randn(COUNT, *SHAPE), Step(i, 900 - i))
        cache = FeatureCache(made.feature, Step(i, 900 - i), made.probe).after(cache, made.history)
    step = Step(2, 400, "cached")
    probe = plain(x, Step(2, 400)).probe
    corrected = tables.apply(2, forecast.feature(cache, step, probe))
    expected = CachedUNetNetwork(plain.module, 1)(x, step, cache=FeatureCache(corrected, Step(1, 899))).eps
    torch.testing.assert_close(CorrectedCacheNetwork(plain, tables)(x, step, cache=cache).eps, expected, rtol=1e-4, atol=1e-5)


def test_calibration_calls_carry_features_and_probes_of_the_last_refreshes():
    cond = torch.randn(COUNT, 2, 4, 6)
    runs = runs_of(PROBE, cond, guidance=3.0)
    calls, made = runs.calibration_calls(REFRESH, COUNT), {}
    for call in runs.calls(COUNT, "test"):
        made.setdefault(call.step.index, []).append(call)
    assert [[c.step.index for c in call.cache.stored] for call in calls if call.cache] == [[1, 0], [3, 1]]
    for stored in calls[4].cache.stored:
        parts = made[stored.step.index]
        assert torch.equal(stored.feature, torch.cat([call.feature for call in parts])) and len(stored.feature) == 2 * COUNT
        assert torch.equal(stored.probe, torch.cat([call.probe for call in parts]))
    first = calls[4].select(slice(0, 1)).cache
    assert all(torch.equal(a.probe, b.probe[:1]) for a, b in zip(first.stored, calls[4].cache.stored, strict=True))


def test_without_a_forecast_the_calibration_depends_on_what_it_did():
    plain = CacheQuantConfig(2, 1)
    assert "forecast" not in plain.as_dict() and plain.as_dict() == replace(plain, forecast=ForecastConfig()).as_dict()
    linear = replace(plain, forecast=ForecastConfig(forecast="linear")).as_dict()
    assert linear == {**plain.as_dict(), "forecast": {"method": "linear", "order": 1, "clock": "index"}}

"""The planned schedule is the cheapest of all, and errors are those of the features that cached steps get."""

from itertools import combinations

import numpy as np
import pytest
import torch

from iec.efficiency.cachequant.trajectories import FloatCall
from iec.efficiency.caching.forecast import REUSE, Extrapolated, Probed, hermite, newton
from iec.efficiency.planning.features import cheapest_refreshes, forecast_errors, inner_products, reuse, rule_of
from iec.errors import ConfigError, NonFiniteError
from iec.sampling.network import FeatureCache, Step

linear = rule_of(Extrapolated())


def cost_of(errors, refresh):
    """Sum over steps, each with the last two of its refreshes."""
    steps, total = sorted(refresh), 0.0
    for u in range(len(errors)):
        last = [i for i in steps if i <= u][-2:]
        total += errors[last[0], last[-1], u] if u not in refresh else 0.0
    return total


def schedules(steps, count):
    return [frozenset({0, *rest}) for rest in combinations(range(1, steps), count - 1)]


def calls(features):
    """As `FloatRuns` gives them, of batches of features [T, B, ...]."""
    for batch in features:
        for i, feature in enumerate(batch):
            yield FloatCall(Step(i, 0), torch.zeros(0), None, feature)


def products(*features):
    return inner_products(calls(features), len(features[0]))


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 12])
def test_the_dynamic_program_finds_what_brute_force_finds_for_every_budget(steps):
    errors = np.random.default_rng(steps).random((steps, steps, steps)) ** 4
    for count in range(1, steps + 1):
        found, cost = cheapest_refreshes(errors, count)
        assert len(found) == count and 0 in found
        assert cost == pytest.approx(cost_of(errors, found), abs=1e-12)
        assert cost == pytest.approx(min(cost_of(errors, refresh) for refresh in schedules(steps, count)), abs=1e-12)


def test_the_cheapest_way_to_a_refresh_may_leave_a_worse_one_to_forecast_from():
    """With one predecessor kept for each refresh, as published, 1 would be kept for 3 (0 against 0.5), and step 4 would cost 9."""
    errors = np.full((5, 5, 5), 9.0)
    errors[0, 0, 1], errors[0, 1, 2], errors[2, 3, 4] = 0.5, 0.0, 0.0
    assert cheapest_refreshes(errors, 3) == ({0, 2, 3}, 0.5)


def test_constant_errors_of_age_give_an_even_schedule():
    ages = np.arange(12)[None, None, :] - np.arange(12)[None, :, None]
    errors = np.broadcast_to(np.maximum(ages, 0), (12, 12, 12)).astype(float)
    assert cheapest_refreshes(errors, 4)[0] == {0, 3, 6, 9}


@pytest.mark.parametrize(("count", "steps"), [(0, 5), (6, 5), (2.0, 5), (True, 5)])
def test_a_budget_that_the_steps_do_not_have_is_refused(count, steps):
    with pytest.raises(ConfigError, match=r"refreshes=.* 1 \.\. 5"):
        cheapest_refreshes(np.zeros((steps,) * 3), count)


@pytest.mark.parametrize("rule", [reuse, linear])
def test_errors_are_those_of_the_features_that_cached_steps_get(rule):
    batches = torch.randn(6, 3, 4, 2, 2), torch.randn(6, 2, 4, 2, 2)
    errors = forecast_errors(products(*batches), rule)
    features = torch.cat(batches, 1).double().flatten(2)
    for i, j, u in [(0, 0, 1), (0, 0, 5), (0, 2, 3), (1, 2, 5), (0, 4, 5)]:
        weights = rule(u, (j,) if i == j else (j, i))
        given = sum(w * features[k] for w, k in zip(weights, (j, i), strict=False))
        expected = ((given - features[u]).norm(dim=1) / features[u].norm(dim=1)).mean()
        assert errors[i, j, u] == pytest.approx(float(expected), rel=1e-9)
    assert (errors[:, range(6), range(6)] == 0).all()
    assert not errors[3, 2].any() and not errors[2, 4, :5].any()


def test_the_line_is_exact_for_features_on_a_line_and_uneven_gaps():
    start, slope = torch.randn(2, 1, 3, 4, 2, 2, dtype=torch.float64)
    line = start + torch.arange(7, dtype=torch.float64)[:, None, None, None, None] * slope
    errors = forecast_errors(products(line), linear)
    assert errors[0, 1:].max() < 1e-7 < errors[0, 0, 1]
    assert cheapest_refreshes(errors, 2)[0] == {0, 1}


FORECASTS = [Extrapolated(), Extrapolated(hermite(0.5)), Extrapolated(newton, 2, (0.0, 0.1, 0.1, 0.7, 1.0, 2.0))]


@pytest.mark.parametrize("forecast", FORECASTS)
def test_a_rule_gives_what_the_network_forecasts_from_two_features(forecast):
    features = [torch.randn(2, 3, 1, 1, dtype=torch.float64) for _ in range(6)]
    for i, j, u in [(0, 3, 5), (1, 2, 4), (0, 1, 2)]:
        stored = FeatureCache(features[j], Step(j, 0), None, (FeatureCache(features[i], Step(i, 0)),))
        expected = forecast.feature(stored, Step(u, 0), None)
        given = rule_of(forecast)(u, (j, i))
        torch.testing.assert_close(sum(w * features[k] for w, k in zip(given, (j, i), strict=False)), expected)
        assert rule_of(forecast)(u, (j,)) == [1.0]
    assert rule_of(REUSE) is reuse and rule_of(Probed()) is None


def test_features_of_a_broken_network_are_refused():
    with pytest.raises(NonFiniteError, match="features have NaN"):
        products(torch.full((2, 1, 1, 1, 1), torch.nan))

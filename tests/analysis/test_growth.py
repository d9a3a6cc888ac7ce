"""Growth of errors that are made to grow."""

import numpy as np
import pytest

from iec.analysis.errors import Errors
from iec.analysis.growth import fit, growth
from iec.errors import ConfigError


def made_of(curve, images=20, spread=0.0, factor=1.1):
    """Errors [N, T + 1] that follow ``curve`` [T] after state 0, each image scaled."""
    scale = np.exp(spread * np.random.default_rng(0).standard_normal((images, 1)))
    total = np.concatenate([np.zeros((images, 1)), scale * curve], axis=1)
    steps = len(curve)
    ratio = np.full((images, steps), factor)
    ratio[:, 0] = np.nan
    return Errors(total, total[:, 1:], total[:, 1:], ratio, tuple(range(steps)))


K = np.arange(1, 31)


def test_an_exponential_is_recognised_with_its_rate():
    found = growth(made_of(1e-3 * np.exp(0.13 * K), spread=0.4))
    assert found.rate.value == pytest.approx(0.13)
    assert (found.rate.low, found.rate.high) == pytest.approx((0.13, 0.13))
    assert found.delta_aic.value < 0 and found.power_share == 0
    assert found.r2_exponential == pytest.approx(1) and found.r2_power < 0.9


@pytest.mark.parametrize("p", [1.0, 1.7])
def test_a_power_law_is_recognised_with_its_exponent(p):
    found = growth(made_of(1e-3 * K**p, spread=0.4))
    assert found.exponent.value == pytest.approx(p)
    assert found.delta_aic.value > 0 and found.power_share == 1
    assert found.r2_power == pytest.approx(1) and found.r2_exponential < 0.9


def test_steps_are_counted_from_the_first_error_and_without_those_that_change_nothing():
    """Two steps without an error, then k^1 with every third step a no-op."""
    total, effective, k = [0.0, 0.0, 0.0], [0, 1], 0
    for i in range(2, 32):
        if i % 3:
            effective.append(i)
            k += 1
        total.append(0.01 * k)
    values = np.tile(total, (5, 1))
    ratios = np.full((5, 32), np.nan)
    ratios[:, effective[4:]] = 1.2
    found = growth(Errors(values, values[:, 1:], values[:, 1:], ratios, tuple(effective)))
    assert found.exponent.value == pytest.approx(1)
    assert found.first == 3


def test_amplification_is_the_geometric_mean_and_counts_steps_above_one():
    errors = made_of(1e-3 * K)
    errors.growth[:, 1:11] = 0.8
    found = growth(errors)
    assert found.amplification.value == pytest.approx((0.8**10 * 1.1**19) ** (1 / 29))
    assert (found.above_one, found.below_one) == pytest.approx((19 / 29, 10 / 29))


def test_intervals_of_slopes_are_those_of_the_mean_over_images():
    """Images with rates of their own: the slope of the mean of logs is the mean of slopes."""
    rates = np.random.default_rng(1).normal(0.1, 0.02, 40)
    logs = rates[:, None] * K
    errors = made_of(1e-3 * K, images=40)
    errors.total[:, 1:] = np.exp(logs - 8)
    found = growth(errors)
    assert found.rate.value == pytest.approx(rates.mean())
    half = 1.96 * rates.std(ddof=1) / 40**0.5
    assert found.rate.low == pytest.approx(rates.mean() - half, abs=0.3 * half)
    assert found.rate.high == pytest.approx(rates.mean() + half, abs=0.3 * half)


def test_the_fit_equals_polyfit():
    logs = np.random.default_rng(2).standard_normal((7, 9))
    u = np.log(np.arange(1, 10))
    weights = np.eye(7)
    slopes, rss, spread = fit(logs, u, weights)
    for row, target in enumerate([logs.mean(axis=0), *logs]):
        coefficients, residual, *_ = np.polyfit(u, target, 1, full=True)
        assert slopes[row] == pytest.approx(coefficients[0])
        assert rss[row] == pytest.approx(residual[0])
        assert spread[row] == pytest.approx(np.square(target - target.mean()).sum())


def test_the_fit_ends_before_the_error_vanishes_in_an_image():
    """As on an ideal network, where both runs end at the same image of the data: what is carried over is 0 there."""
    errors = made_of(1e-3 * K**1.7, spread=0.4)
    whole = growth(errors)
    errors.total[3, -1:] = 0
    errors.growth[3, -1] = 0
    found = growth(errors)
    assert (whole.last, found.first, found.last) == (30, 1, 29)
    assert found.exponent.value == pytest.approx(1.7) and found.amplification.value == pytest.approx(1.1)
    errors.total[3, 4:] = 0
    with pytest.raises(ConfigError, match="4 successive states"):
        growth(errors)


def test_too_few_errors_are_refused():
    with pytest.raises(ConfigError, match="4 successive states"):
        growth(made_of(1e-3 * K[:3]))
    with pytest.raises(ConfigError, match="4 successive states"):
        growth(made_of(0.0 * K))

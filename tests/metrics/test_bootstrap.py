import numpy as np
import pytest

from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.metrics.interval import centred_interval, mean_interval, resample_counts


def test_resamples_are_whole_and_repeatable():
    counts = resample_counts(20, 5, seed=1)
    assert (counts.sum(axis=1) == 20).all()
    assert (counts == np.round(counts)).all()
    np.testing.assert_array_equal(counts, resample_counts(20, 5, seed=1))
    assert (counts != resample_counts(20, 5, seed=2)).any()


def test_a_shift_of_all_resamples_does_not_move_the_interval():
    resampled = np.arange(101.0)
    low, high = centred_interval(7.0, resampled, level=0.9)
    assert (low, high) == pytest.approx((7 - 45, 7 + 45))
    assert centred_interval(7.0, resampled + 1000, level=0.9) == pytest.approx((low, high))


def test_no_resamples_no_interval():
    assert np.isnan(centred_interval(1.0, np.array([]))).all()


def test_mean_interval_has_the_normal_width():
    x = np.random.default_rng(0).normal([0.0, 5.0], 1.0, (400, 2))
    low, high = mean_interval(x, resamples=4000)
    np.testing.assert_allclose((high - low) / (2 * 1.96 * x.std(axis=0) / 20), 1.0, atol=0.06)
    np.testing.assert_allclose((high + low) / 2, x.mean(axis=0), atol=0.01)


def test_coverage_of_the_frechet_distance():
    """The centred interval holds the mean of FID_N; the plain percentile interval of the same resamples mostly does not."""
    draw, d, n = np.random.default_rng(0), 8, 100
    real = GaussianStatistics.of(draw.standard_normal((20_000, d)))

    def sample():
        return 0.9 * draw.standard_normal((n, d)) + 0.1

    def distance(x, counts):
        return frechet_distance(GaussianStatistics.of(x, counts), real)

    target = np.mean([distance(sample(), np.ones(n)) for _ in range(1000)])
    centred = plain = 0
    for k in range(60):
        x = sample()
        value = distance(x, np.ones(n))
        resampled = np.array([distance(x, c) for c in resample_counts(n, 60, k)])
        low, high = centred_interval(value, resampled)
        assert low <= value <= high
        centred += low <= target <= high
        low, high = np.quantile(resampled, [0.025, 0.975])
        plain += low <= target <= high
    assert centred >= 53  # 0.95 of 60 = 57; below 53 has probability < 0.02 even at exactly 0.95
    assert plain <= 30

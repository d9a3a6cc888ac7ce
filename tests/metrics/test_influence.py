import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.metrics.infinity import frechet_infinity
from iec.metrics.influence import influence, linear_interval

draw = np.random.default_rng(0)


def correlated(n, d, shift=0.0):
    return draw.standard_normal((n, d)) @ np.random.default_rng(7).standard_normal((d, d)) / d**0.5 + shift


def with_weight(x, k, extra):
    """Statistics (divisor n) when image k has the weight 1 + extra."""
    w = np.ones(len(x))
    w[k] += extra
    w /= w.sum()
    mean = w @ x
    return GaussianStatistics(len(x), mean, (x - mean).T @ ((x - mean) * w[:, None]))


def test_the_influence_is_the_derivative():
    x, real = correlated(200, 6, 0.3), GaussianStatistics.of(correlated(5000, 6))
    moved = influence(x, with_weight(x, 0, 0.0), real)
    step = 1e-4
    for k in range(4):
        up, down = (frechet_distance(with_weight(x, k, sign * step), real) for sign in (1, -1))
        assert moved[k] / len(x) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)
    assert abs(moved.mean()) < 1e-12


@pytest.mark.parametrize(("n", "d"), [(300, 12), (24, 12), (8, 12)])
@pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")
def test_coverage(n, d):
    """Also where the covariance is singular."""
    real = GaussianStatistics.of(correlated(20_000, d))
    values, errors = [], []
    for _ in range(200):
        x = 0.9 * correlated(n, d, 0.2)
        own = GaussianStatistics.of(x)
        values.append(frechet_distance(own, real))
        low, high = linear_interval(values[-1], x, own, real)
        assert (low + high) / 2 == pytest.approx(values[-1])
        errors.append((high - low) / 2)
    held = np.abs(np.array(values) - np.mean(values)) <= errors
    assert held.mean() >= 0.87 and np.mean(errors) / (1.96 * np.std(values)) == pytest.approx(1.1, abs=0.3)


def test_infinity_removes_the_bias():
    """Of N(0, 0.9^2 S) against N(0, S): 0.01 tr S. FID_N is above it, FID at infinity is not."""
    d = 8
    real = GaussianStatistics.of(correlated(200_000, d))
    limit = 0.01 * np.trace(real.cov)
    plain, fitted = [], []
    for k in range(40):
        x = 0.9 * correlated(400, d)
        plain.append(frechet_distance(GaussianStatistics.of(x), real))
        fitted.append(frechet_infinity(x, real, seed=k))
    noise = np.std(fitted) / 40**0.5
    assert np.mean(plain) > limit + 3 * noise and np.mean(fitted) == pytest.approx(limit, abs=3 * noise)
    assert frechet_infinity(x, real, seed=1) == frechet_infinity(x, real, seed=1) != frechet_infinity(x, real, seed=2)


def test_infinity_needs_subsets_larger_than_the_features():
    with pytest.raises(MetricError, match="needs N >= 90, got 89"):
        frechet_infinity(np.zeros((89, 8)), GaussianStatistics.of(correlated(100, 8)))

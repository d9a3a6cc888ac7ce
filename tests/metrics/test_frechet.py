import warnings

import numpy as np
import pytest
import scipy.linalg

from iec.errors import MetricError
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics, Moments, frechet_distance

draw = np.random.default_rng(0)


def gaussian(mean, cov, n=10_000):
    return GaussianStatistics(n, np.atleast_1d(np.asarray(mean, float)), np.atleast_2d(np.asarray(cov, float)))


def random_covariance(d):
    a = draw.standard_normal((2 * d, d))
    return a.T @ a / (2 * d)


def test_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    assert frechet_distance(gaussian(1.0, 4.0), gaussian(-2.0, 0.25)) == pytest.approx(9 + (2 - 0.5) ** 2, rel=1e-14)


def test_commuting_covariances():
    """Q diag(a) Q^T and Q diag(b) Q^T: sum of (sqrt a - sqrt b)^2."""
    q, _ = np.linalg.qr(draw.standard_normal((6, 6)))
    a, b = draw.uniform(0.1, 5, 6), draw.uniform(0.1, 5, 6)
    m = draw.standard_normal(6)
    distance = frechet_distance(gaussian(m, q * a @ q.T), gaussian(np.zeros(6), q * b @ q.T))
    assert distance == pytest.approx(m @ m + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


def test_against_sqrtm_where_covariances_do_not_commute():
    a, b = gaussian(np.zeros(20), random_covariance(20)), gaussian(np.ones(20), random_covariance(20))
    expected = 20 + np.trace(a.cov + b.cov - 2 * scipy.linalg.sqrtm(a.cov @ b.cov).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_a_set_against_itself_and_in_another_order():
    x = draw.standard_normal((300, 12)) @ draw.standard_normal((12, 12)) + 50
    a = GaussianStatistics.of(x)
    assert frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, GaussianStatistics.of(x[::-1])) < 1e-9
    order = draw.permutation(12)
    b = GaussianStatistics.of(draw.standard_normal((300, 12)))
    moved = [GaussianStatistics(s.n, s.mean[order], s.cov[np.ix_(order, order)]) for s in (a, b)]
    assert frechet_distance(*moved) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_fewer_images_than_features_warns_and_stays_exact():
    """Rank-deficient on both sides, in subspaces at right angles: no overlap, so the trace term is zero."""
    x, y = np.zeros((4, 20)), np.zeros((5, 20))
    x[:, :10], y[:, 10:] = draw.standard_normal((4, 10)), draw.standard_normal((5, 10))
    a, b = GaussianStatistics.of(x), GaussianStatistics.of(y)
    difference = a.mean - b.mean
    with pytest.warns(FewSamplesWarning, match="4 images for 20 features"):
        distance = frechet_distance(a, b)
    assert distance == pytest.approx(difference @ difference + np.trace(a.cov) + np.trace(b.cov), rel=1e-9)
    with pytest.warns(FewSamplesWarning):
        assert frechet_distance(a, a) < 1e-9
    with pytest.warns(FewSamplesWarning, match="20 images for 20 features"):
        frechet_distance(*(GaussianStatistics.of(draw.standard_normal((20, 20))) for _ in range(2)))


def test_far_fewer_images_than_features_is_exact_where_sqrtm_is_not():
    """With n - 1 = 19 directions a side the trace is the sum of singular values of a 20 x 25 matrix, exactly."""
    x, y = (np.maximum(draw.standard_normal((n, 300)) + 0.3, 0) for n in (20, 25))
    a, b = (v - v.mean(axis=0) for v in (x, y))
    trace = np.linalg.svd(a @ b.T / np.sqrt(19 * 24), compute_uv=False).sum()
    expected = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.square(a).sum() / 19 + np.square(b).sum() / 24 - 2 * trace
    with pytest.warns(FewSamplesWarning):
        assert frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y)) == pytest.approx(expected, rel=1e-9)


def test_a_singular_side_gives_the_same_on_either_side():
    """The definite side is factored by Cholesky, the singular one by its eigenvectors."""
    flat = random_covariance(8)
    flat[3], flat[:, 3] = 0, 0
    a, b = gaussian(np.zeros(8), flat), gaussian(np.zeros(8), random_covariance(8))
    rest = np.delete(np.arange(8), 3)
    values = np.linalg.eigvals(b.cov[np.ix_(rest, rest)] @ flat[np.ix_(rest, rest)]).real
    expected = np.trace(a.cov) + np.trace(b.cov) - 2 * np.sqrt(values).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_enough_images_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(*(GaussianStatistics.of(draw.standard_normal((13, 12))) for _ in range(2)))


def test_streaming_equals_two_passes_far_from_the_origin():
    x = (1e6 + draw.standard_normal((1000, 5))).astype(np.float64)
    one, two = Moments(), Moments()
    for block in np.split(x[:600], 6):
        one.add(block)
    two.add(x[600:999])
    two.add(x[999:])
    one.merge(two)
    one.merge(Moments())
    got = one.statistics()
    assert got.n == 1000
    np.testing.assert_allclose(got.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(got.cov, np.cov(x.T), rtol=1e-9, atol=1e-10)


def test_blocks_of_any_size_equal_two_passes(monkeypatch):
    x = np.maximum(draw.standard_normal((500, 7)) + 3, 0).astype(np.float32)
    mean, cov = x.astype(np.float64).mean(axis=0), np.cov(x.astype(np.float64).T)
    for block in (1, 64, 8192):
        monkeypatch.setattr("iec.metrics.frechet.BLOCK", block)
        got = GaussianStatistics.of(x)
        np.testing.assert_allclose(got.mean, mean, rtol=1e-13)
        np.testing.assert_allclose(got.cov, cov, rtol=1e-12, atol=1e-13)


def test_counts_are_repeated_rows():
    x, counts = draw.standard_normal((6, 3)), np.array([0, 3, 1, 0, 2, 0])
    repeated = np.repeat(x, counts, axis=0)
    got = GaussianStatistics.of(x, counts)
    assert got.n == 6
    np.testing.assert_allclose(got.mean, repeated.mean(axis=0))
    np.testing.assert_allclose(got.cov, np.cov(repeated.T))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianStatistics.of(np.full((3, 2), np.nan)),
        lambda: GaussianStatistics.of(np.array([[1.0, np.inf], [0, 0]])),
        lambda: GaussianStatistics.of(np.zeros((1, 2))),
        lambda: GaussianStatistics.of(np.zeros((4, 2, 2))),
        lambda: gaussian([0.0, np.nan], np.eye(2)),
        lambda: gaussian([0.0, 0.0], np.eye(3)),
        lambda: gaussian([0.0, 0.0], [[1.0, 0.5], [0.4, 1.0]]),
        lambda: gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]),
        lambda: frechet_distance(gaussian(0.0, 1.0), gaussian([0.0, 0.0], np.eye(2))),
        lambda: Moments().statistics(),
    ],
)
def test_refusals(make):
    with pytest.raises(MetricError):
        make()


def test_blocks_of_another_width_are_refused():
    gathered = Moments()
    gathered.add(np.zeros((2, 3)))
    with pytest.raises(MetricError, match="width 4"):
        gathered.add(np.zeros((2, 4)))

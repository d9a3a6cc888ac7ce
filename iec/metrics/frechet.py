"""Frechet distance between two Gaussians, and their statistics gathered in a stream.

    d^2(N(m1, S1), N(m2, S2)) = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^{1/2} S2 S1^{1/2})^{1/2}

Dowson and Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; as a score of images: arXiv 1706.08500.
The last trace is the sum of the square roots of the eigenvalues of S1 S2. That matrix is not symmetric, but L^T S1 L with
S2 = L L^T is, and has the same eigenvalues: L is the Cholesky factor, or comes from the eigenvectors where S2 is singular. So
the result is real by construction and needs neither a multiple of the identity added nor scipy.linalg.sqrtm, the usual way.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from iec.errors import MetricError

ASYMMETRY = 1e-6
"""Of a covariance, relative to its largest entry."""
BLOCK = 8192
"""Samples that are kept in float64 at a time."""


class FewSamplesWarning(UserWarning):
    """A Frechet distance from no more images than features: mostly bias, and a singular covariance."""


@dataclass(frozen=True)
class GaussianStatistics:
    """n samples, their mean [d] and covariance [d, d] with divisor n - 1; float64.

    Raises `MetricError` for shapes that do not fit, n < 2, NaN or infinity, and a covariance that cannot be one: not symmetric, or
    a negative variance (beyond `ASYMMETRY` of its largest entry, which float32 statistics keep).
    """

    n: int
    mean: np.ndarray
    cov: np.ndarray

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.cov.shape != self.mean.shape * 2:
            raise MetricError(f"Mean {self.mean.shape} and covariance {self.cov.shape} do not fit; pass [d] and [d, d].")
        if self.n < 2:
            raise MetricError(f"A covariance needs at least 2 images, got {self.n}; use more images.")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise MetricError("The statistics hold NaN or infinity; check the images and the extractor's weights.")
        allowed = ASYMMETRY * float(np.abs(self.cov).max(initial=0.0))
        if (
            float(np.abs(self.cov - self.cov.T).max(initial=0.0)) > allowed
            or float(self.cov.diagonal().min(initial=0.0)) < -allowed
        ):
            raise MetricError("The covariance is not symmetric or has a negative variance: the file is damaged; make it again.")

    @staticmethod
    def of(features: np.ndarray, counts: np.ndarray | None = None) -> "GaussianStatistics":
        """Of features [N, d]; ``counts`` [N] says how often each sample is taken (a resample), once each by default."""
        if counts is None:
            gathered = Moments()
            gathered.add(features)
            return gathered.statistics()
        x, w = np.asarray(features, np.float64), np.asarray(counts, np.float64)
        n = w.sum()
        mean = w @ x / n
        centred = (x - mean) * np.sqrt(w)[:, None]
        return GaussianStatistics(round(n), mean, centred.T @ centred / (n - 1))


class Moments:
    """Mean and covariance of a stream in float64 and O(d^2) memory.

    Each block is centred before its products are taken, and blocks are joined by Chan's update, so that a large mean costs no
    digits: equal to two passes over all samples to about 1e-12. The result depends on the order and size of the blocks only in the
    last bits. Moments of parts, from several processes say, are joined by `merge`.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: np.ndarray | None = None
        self.scatter: np.ndarray | None = None  # sum of (x - mean)(x - mean)^T

    def add(self, features: np.ndarray) -> None:
        """Take in features [B, d]. Raises `MetricError` on NaN, infinity, or another d than before."""
        if np.ndim(features) != 2:
            raise MetricError(f"Features must be [N, d], got shape {np.shape(features)}; flatten them first.")
        for start in range(0, len(features), BLOCK):
            self._add(np.asarray(features[start : start + BLOCK], np.float64))

    def _add(self, x: np.ndarray) -> None:
        if not np.isfinite(x).all():
            raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
        mean = x.mean(axis=0)
        self._join(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: "Moments") -> None:
        """Take in all that another accumulator has seen."""
        if other.mean is not None and other.scatter is not None:
            self._join(other.n, other.mean, other.scatter)

    def statistics(self) -> GaussianStatistics:
        """Raises `MetricError` when fewer than 2 samples were seen."""
        if self.mean is None or self.scatter is None or self.n < 2:
            raise MetricError(f"A covariance needs at least 2 images, got {self.n}; use more images.")
        return GaussianStatistics(self.n, self.mean, self.scatter / (self.n - 1))

    def _join(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self.mean is None or self.scatter is None:
            self.n, self.mean, self.scatter = n, mean.copy(), scatter.copy()
            return
        if mean.shape != self.mean.shape:
            raise MetricError(f"Features of width {len(mean)} cannot join features of width {len(self.mean)}.")
        total, delta = self.n + n, mean - self.mean
        self.scatter += scatter + np.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared Frechet distance of two Gaussians, >= 0, in squared units of the features; the FID when a feature network made them.

    The distance of finite samples is biased upward, roughly as 1 / n (arXiv 1911.07023): compare values only at equal n. Warns with
    `FewSamplesWarning` when a side has n <= d, where most of the value is bias. Raises `MetricError` for unequal d.
    """
    if a.mean.shape != b.mean.shape:
        raise MetricError(f"Statistics of width {len(a.mean)} and {len(b.mean)} come from different extractors or layers.")
    few = min(a.n, b.n)
    if few <= len(a.mean):
        warnings.warn(
            f"{few} images for {len(a.mean)} features: the Frechet distance is mostly upward bias. Compare it only at equal N, "
            "or use more images.",
            FewSamplesWarning,
            stacklevel=2,
        )
    difference = a.mean - b.mean
    return max(0.0, float(difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * _overlap(a.cov, b.cov)))


def _overlap(s1: np.ndarray, s2: np.ndarray) -> float:
    """tr (S1^{1/2} S2 S1^{1/2})^{1/2} >= 0."""
    import scipy.linalg  # half a second that only a distance needs

    try:
        values = scipy.linalg.eigvalsh(s1, s2, type=3, driver="gv")
    except np.linalg.LinAlgError:  # S2 is not positive definite
        half = factor(s2)
        values = np.linalg.eigvalsh(half.T @ s1 @ half)
    return float(np.sqrt(clean(values)).sum())


def factor(cov: np.ndarray) -> np.ndarray:
    """L with L L^T = cov, from the eigenvectors: [d, d], also where cov is singular."""
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(clean(values))


def clean(values: np.ndarray) -> np.ndarray:
    """Eigenvalues of a covariance with those below rounding (d eps times the largest) set to 0."""
    floor = len(values) * np.finfo(np.float64).eps * max(float(values.max()), 0.0)
    return np.where(values > floor, values, 0.0)

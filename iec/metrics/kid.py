"""Kernel inception distance: the unbiased squared MMD with a cubic kernel (arXiv 1801.01401).

    k(x, y) = (x.y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

`kid` uses all pairs, so there is no sampling noise of the estimator's own; `kid_of_subsets` averages over random subsets of 1000 as
the paper and torch-fidelity do. Expectation 0 when both sides have one distribution, whatever N; single values can be negative.
"""

import numpy as np

from iec.errors import MetricError
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.references.reference import Reference

HEIGHT, ENTRIES = 1024, 2**23
"""Images against all others, and entries of the kernel matrix, in memory at a time, whichever is less."""


SUBSET = 1000
"""Images of each side in a random subset."""


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3 of [N, d] and [M, d] -> [N, M]."""
    values = x @ y.T
    values /= x.shape[1]
    values += 1
    return values * values * values


def kid(features: np.ndarray, reference: np.ndarray) -> float:
    """Unbiased MMD^2 of features [N, d] and [M, d], computed in float64 with O(N + M) x 1024 numbers at a time.

    Raises `MetricError` for NaN, unequal d or fewer than 2 images on a side.
    """
    return float(kid_of_resamples(features, reference, np.ones((1, len(features))))[0])


def kid_of_resamples(features: np.ndarray, reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """KID of B resamples at once; counts [B, N] says how often resample b has each image. Returns [B].

    A pair of one image with its own copy is left out, as i = j is in the estimator: sum_{i != j} c_i c_j k_ij / (n^2 - sum c_i^2).
    With copies paired, every resample would score too high by about (k_ii - mean k) / n.
    """
    x, y, c = (np.asarray(value, np.float64) for value in (features, reference, counts))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise MetricError(f"KID needs [N, d] and [M, d] with N, M >= 2 and one d, got {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
    own, cross = np.zeros(len(c)), np.empty(len(x))
    height = _height(len(x))
    for start in range(0, len(x), height):
        part = slice(start, start + height)
        block = kernel(x[part], x)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        own += np.einsum("br,rb->b", c[:, part], block @ c.T)
        cross[part] = kernel(x[part], y).mean(axis=1)
    n = c.sum(axis=1)
    return own / (n * n - np.square(c).sum(axis=1)) + _mean_off_diagonal(y) - 2 * (c @ cross) / n


def kid_of_subsets(
    features: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = SUBSET, seed: int = 2020
) -> np.ndarray:
    """KID of random subsets of both sides, [subsets]; torch-fidelity's (metric_kid.py, with its defaults) is their mean.

    The draws are numpy's legacy ones, first of the features, then of the reference, as there; the kernel is float64 here, float32
    there. Raises `MetricError` if a side has fewer than ``size`` images.
    """
    if min(len(features), len(reference)) < size:
        raise MetricError(
            f"KID over subsets of {size} needs that many images on both sides, got {len(features)} and {len(reference)} real ones; "
            "use more, or the protocol 'inception', whose KID takes all pairs."
        )
    draw = np.random.RandomState(seed)  # the draws are the convention
    values = np.empty(subsets)
    for k in range(subsets):
        x = features[draw.choice(len(features), size, replace=False)]
        y = reference[draw.choice(len(reference), size, replace=False)]
        values[k] = kid(x, y)
    return values


def _height(n: int) -> int:
    return max(1, min(HEIGHT, ENTRIES // n))


def _mean_off_diagonal(y: np.ndarray) -> float:
    total, height = 0.0, _height(len(y))
    for start in range(0, len(y), height):
        total += float(kernel(y[start : start + height], y).sum())
    diagonal = float(((np.square(y).sum(axis=1) / y.shape[1] + 1) ** 3).sum())
    return (total - diagonal) / (len(y) * (len(y) - 1))


def measure(x: np.ndarray, real: np.ndarray, resamples: Resamples, rules: Rules) -> Interval:
    """All pairs with a bootstrap interval, or the mean over ``rules.kid_subsets``, which has none."""
    if rules.kid_subsets:
        return Interval(float(kid_of_subsets(x, real, rules.kid_subsets).mean()))
    return Interval.centred(kid_of_resamples(x, real, resamples.counts))


def _least_real(rules: Rules) -> int:
    return SUBSET if rules.kid_subsets else 2


def _least(rules: Rules, reference: Reference) -> int:
    return _least_real(rules)


KID = Metric("kid", "KID ({})", measure, part="kid", least=_least, least_real=_least_real)

"""Kernel inception distance: the unbiased squared MMD with a cubic kernel (arXiv 1801.01401).

    KID = MMD^2,   k(x, y) = (x.y / d + 1)^3

`kid` uses all pairs (`iec.metrics.mmd`), so there is no sampling noise of the estimator's own; `kid_of_subsets` averages over
random subsets of 1000 as the paper and torch-fidelity do.
"""

import numpy as np

from iec.errors import MetricError
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.mmd import Kernel, mmd_of_resamples
from iec.metrics.references.reference import Reference

SUBSET = 1000
"""Images of each side in a random subset."""


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3 of [N, d] and [M, d] -> [N, M]."""
    values = x @ y.T
    values /= x.shape[1]
    values += 1
    return values * values * values


CUBIC = Kernel("KID", kernel, lambda x: (np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3)


def kid(features: np.ndarray, reference: np.ndarray) -> float:
    """Unbiased MMD^2 of features [N, d] and [M, d], computed in float64 with O(N + M) x 1024 numbers at a time.

    Raises `MetricError` for NaN, unequal d or fewer than 2 images on a side.
    """
    return float(kid_of_resamples(features, reference, np.ones((1, len(features))))[0])


def kid_of_resamples(features: np.ndarray, reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """KID of B resamples at once; counts [B, N] says how often resample b has each image. Returns [B]."""
    return mmd_of_resamples(features, reference, counts, CUBIC)


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

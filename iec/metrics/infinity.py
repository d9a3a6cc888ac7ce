"""FID at infinitely many generated images, by extrapolation (arXiv 1911.07023).

The distance of N images is biased upward by about c / N, with a c that differs between generators. So it is computed on random
subsets of 15 sizes, evenly spaced from N / 10 to N, and the line  FID_n = FID_inf + c / n  is fitted by least squares; the
intercept is the score. Paper's settings: 15 sizes from 5000 to 50,000. The bias from the finite reference stays.
"""

import numpy as np

from iec.errors import MetricError
from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.references.reference import Reference

SIZES, SHARE = 15, 10


def frechet_infinity(features: np.ndarray, real: GaussianStatistics, seed: int = 0) -> float:
    """Intercept at 1 / n = 0; can be negative near the floor. features [N, d]; seed: of the subsets.

    Raises `MetricError` unless the smallest subset, N / 10, has more images than features: below that the bias is no line in 1 / n.
    """
    n, d = features.shape
    if n // SHARE <= d:
        raise MetricError(
            f"FID at infinity fits subsets from N / {SHARE} images up, each larger than the {d} features: it needs N >= "
            f"{SHARE * (d + 1)}, got {n}. Use more images, or leave fid_inf out."
        )
    draw = np.random.default_rng(seed)
    sizes = np.linspace(n // SHARE, n, SIZES).astype(int)
    distances = [frechet_distance(GaussianStatistics.of(features[np.sort(draw.permutation(n)[:size])]), real) for size in sizes]
    return float(np.polynomial.Polynomial.fit(1 / sizes, distances, 1).convert().coef[0])


def measure(x: np.ndarray, real: GaussianStatistics, resamples: Resamples, rules: Rules) -> Interval:
    """Without an interval."""
    return Interval(frechet_infinity(x, real, resamples.seed))


def _least(rules: Rules, reference: Reference) -> int:
    return SHARE * ((0 if reference.pooled is None else len(reference.pooled.mean)) + 1)


FID_INFINITY = Metric("fid_inf", "FID at infinity ({})", measure, part="pooled", least=_least)

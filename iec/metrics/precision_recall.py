"""Improved precision and recall (arXiv 1904.06991): is an image inside a ball around some image of the other side?

    precision = share of generated images within reach of a real one,  recall = share of real images within reach of a generated one

An image reaches as far as its k-th nearest neighbour on its own side, k = 3. Distances are Euclidean in the pooled features, in
float64, a strip of the matrix at a time. Both scores depend on how many images there are on each side: compare them at equal
numbers only. The evaluator of arXiv 2105.05233 has the same definition in float16, which moves a radius by some 0.15 %;
torch-fidelity (metric_prc.py) in float32.
"""

from collections.abc import Iterator

import numpy as np

from iec.errors import MetricError
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.references.reference import Reference

NEIGHBOURS = 3
ENTRIES = 2**23
"""Distances in memory at a time: 64 MiB."""


def precise(features: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Whether each of features [N, d] is inside the ball of one of the reference [M, d]; bool [N], its mean is the precision.

    Raises `MetricError` for NaN, unequal d, or no more than k images on the side that has the balls.
    """
    return _inside(features, reference, neighbours)


def recalled(features: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Whether each of the reference [M, d] is inside the ball of one of features [N, d]; bool [M], its mean is the recall."""
    return _inside(reference, features, neighbours)


def _inside(points: np.ndarray, centres: np.ndarray, neighbours: int) -> np.ndarray:
    if points.ndim != 2 or centres.ndim != 2 or points.shape[1] != centres.shape[1]:
        raise MetricError(f"Precision and recall need [N, d] and [M, d] with one d, got {points.shape} and {centres.shape}.")
    if len(centres) <= neighbours:
        raise MetricError(f"{len(centres)} images have no {neighbours}-th neighbour; use more images.")
    if not (np.isfinite(points).all() and np.isfinite(centres).all()):
        raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
    reach = squared_radii(centres, neighbours)
    return np.concatenate([(strip <= reach).any(axis=1) for _, strip in _squared_distances(points, centres)])


def squared_radii(centres: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Squared distance of each image's features [N, d] to those of its k-th nearest other image; [N]."""
    radii = np.empty(len(centres))
    for start, strip in _squared_distances(centres, centres):
        own = np.arange(len(strip))
        strip[own, start + own] = 0.0  # itself, exactly: the nearest of k + 1
        radii[start : start + len(strip)] = np.partition(strip, neighbours, axis=1)[:, neighbours]
    return radii


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(start, |a_i - b_j|^2 of a from there on, a strip) until all of a is done; float64."""
    b = b.astype(np.float64)
    norms = np.square(b).sum(axis=1)
    height = max(1, ENTRIES // len(b))
    for start in range(0, len(a), height):
        x = a[start : start + height].astype(np.float64)
        strip = x @ b.T
        strip *= -2
        strip += np.square(x).sum(axis=1)[:, None]
        strip += norms
        yield start, np.maximum(strip, 0.0, out=strip)


def measure_precision(x: np.ndarray, real: np.ndarray, resamples: Resamples, rules: Rules) -> Interval:
    """The real images' balls are the same in every resample."""
    return Interval.centred(resamples.counts @ precise(x, real).astype(np.float64) / len(x))


def measure_recall(x: np.ndarray, real: np.ndarray, resamples: Resamples, rules: Rules) -> Interval:
    """Without an interval: in a resample an image's copy would be its nearest neighbour."""
    return Interval(float(recalled(x, real).mean()))


def _centres(rules: Rules) -> int:
    return NEIGHBOURS + 1


def _least(rules: Rules, reference: Reference) -> int:
    return _centres(rules)


PRECISION = Metric("precision", "precision ({})", measure_precision, part="kid", higher_is_better=True, least_real=_centres)
RECALL = Metric("recall", "recall ({})", measure_recall, part="kid", higher_is_better=True, least=_least)

"""Squared maximum mean discrepancy of two sets of vectors, its unbiased estimate over all pairs (Gretton et al., JMLR 13, 2012).

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Expectation 0 when both sides have one distribution, whatever N; single values can be negative.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iec.errors import MetricError

HEIGHT, ENTRIES = 1024, 2**23
"""Images against all others, and entries of the kernel matrix, in memory at a time, whichever is less."""


@dataclass(frozen=True)
class Kernel:
    """name: of the score, for messages. matrix: [N, d], [M, d] -> k(x_i, y_j), [N, M]. diagonal: [N, d] -> k(x_i, x_i), [N]."""

    name: str
    matrix: Callable[[np.ndarray, np.ndarray], np.ndarray]
    diagonal: Callable[[np.ndarray], np.ndarray]


def mmd_of_resamples(features: np.ndarray, reference: np.ndarray, counts: np.ndarray, kernel: Kernel) -> np.ndarray:
    """MMD^2 of B resamples of features [N, d] to the reference [M, d] at once, in float64 with O(N + M) x 1024 numbers at a time.
    counts [B, N] says how often resample b has each image. Returns [B].

    A pair of one image with its own copy is left out, as i = j is in the estimator: sum_{i != j} c_i c_j k_ij / (n^2 - sum c_i^2).
    With copies paired, every resample would score too high by about (k_ii - mean k) / n. Raises `MetricError` for NaN, unequal d or
    fewer than 2 images on a side.
    """
    x, y, c = (np.asarray(value, np.float64) for value in (features, reference, counts))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise MetricError(f"{kernel.name} needs [N, d] and [M, d] with N, M >= 2 and one d, got {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
    own, cross = np.zeros(len(c)), np.empty(len(x))
    height = _height(len(x))
    for start in range(0, len(x), height):
        part = slice(start, start + height)
        block = kernel.matrix(x[part], x)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        own += np.einsum("br,rb->b", c[:, part], block @ c.T)
        cross[part] = kernel.matrix(x[part], y).mean(axis=1)
    n = c.sum(axis=1)
    return own / (n * n - np.square(c).sum(axis=1)) + _mean_off_diagonal(y, kernel) - 2 * (c @ cross) / n


def _height(n: int) -> int:
    return max(1, min(HEIGHT, ENTRIES // n))


def _mean_off_diagonal(y: np.ndarray, kernel: Kernel) -> float:
    total, height = 0.0, _height(len(y))
    for start in range(0, len(y), height):
        total += float(kernel.matrix(y[start : start + height], y).sum())
    return (total - float(kernel.diagonal(y).sum())) / (len(y) * (len(y) - 1))

"""Inception score (arXiv 1606.03498): exp of the mean KL divergence of each image's class distribution from their average.

    IS = exp( mean_n sum_k p_nk (log p_nk - log pbar_k) ),    1 <= IS <= number of classes

Over chunks of consecutive images the score depends on the order: class-ordered images have chunks with few classes, hence
a low score. So the images are shuffled first, always with the same permutation of N (`SHUFFLE_SEED`).
"""

import numpy as np
from scipy.special import log_softmax

from iec.errors import MetricError

SHUFFLE_SEED = 2020
CHUNK = 5000
"""Images in a chunk when the number of splits is not given, as in the evaluator of arXiv 2105.05233."""


def splits_for(n: int) -> int:
    """One split for each 5000 images, at least one. A split of n images cannot score above n, so small sets stay whole."""
    return max(1, n // CHUNK)


def inception_score(logits: np.ndarray, splits: int | None = None, seed: int = SHUFFLE_SEED) -> float:
    """Mean over ``splits`` equal chunks (sizes differ by at most one) of the shuffled images' IS; float64.

    logits [N, K], before the softmax. ``splits=None`` takes `splits_for(N)`. Raises `MetricError` for NaN or splits outside 1 .. N.
    """
    return float(inception_score_of_resamples(logits, np.ones((1, len(logits))), splits, seed)[0])


def inception_score_of_resamples(
    logits: np.ndarray, counts: np.ndarray, splits: int | None = None, seed: int = SHUFFLE_SEED
) -> np.ndarray:
    """IS of B resamples at once; counts [B, N] says how often resample b holds each image. Returns [B].

    A chunk keeps its own images, with their counts. An empty chunk is left out of the mean.
    """
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or len(z) < 2 or not np.isfinite(z).all():
        raise MetricError(f"The inception score needs finite logits [N >= 2, K], got shape {z.shape}.")
    splits = splits_for(len(z)) if splits is None else splits
    if not 1 <= splits <= len(z):
        raise MetricError(f"splits={splits} with {len(z)} images; choose 1 .. {len(z)}.")
    order = np.random.default_rng(seed).permutation(len(z))
    scores = np.full((splits, len(counts)), np.nan)
    for k, chunk in enumerate(np.array_split(order, splits)):
        log_p = log_softmax(z[chunk], axis=1)
        p = np.exp(log_p)
        c = np.asarray(counts, np.float64)[:, chunk]
        n = c.sum(axis=1)
        filled = n > 0
        mean = c[filled] @ p / n[filled, None]  # B x K
        own = c[filled] @ (p * log_p).sum(axis=1) / n[filled]
        average = (mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny))).sum(axis=1)
        scores[k, filled] = np.exp(own - average)
    return np.nanmean(scores, axis=0)

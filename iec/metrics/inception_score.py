"""Inception score (arXiv 1606.03498): exp of the mean KL divergence of each image's class distribution from their average.

    IS = exp( mean_n sum_k p_nk (log p_nk - log pbar_k) ),    1 <= IS <= number of classes

Over chunks of consecutive images the score depends on the order: class-ordered images have chunks with few classes, hence a low
score. How images come into chunks differs between evaluators (`CHUNKS`); ours shuffles first, always with the same permutation of
N.
"""

from collections.abc import Callable

import numpy as np

from iec.errors import MetricError
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.references.reference import Reference

SHUFFLE_SEED = 2020
CHUNK = 5000
"""Images in a chunk when the number of splits is not given, as in the evaluator of arXiv 2105.05233."""


TORCH_FIDELITY_SPLITS = 10


def splits_for(n: int) -> int:
    """One split for each 5000 images, at least one. A split of n images cannot score above n, so small sets stay whole."""
    return max(1, n // CHUNK)


def shuffled_chunks(n: int, splits: int | None = None, seed: int = SHUFFLE_SEED) -> list[np.ndarray]:
    """Indices of 0 .. n - 1, shuffled, in ``splits`` chunks whose sizes differ by at most one; `splits_for` (n) by default."""
    splits = splits_for(n) if splits is None else splits
    if not 1 <= splits <= n:
        raise MetricError(f"splits={splits} with {n} images; choose 1 .. {n}.")
    return np.array_split(np.random.default_rng(seed).permutation(n), splits)


def adm_chunks(n: int) -> list[np.ndarray]:
    """guided-diffusion, evaluations/evaluator.py: file order, chunks of 5000, a short last one weighs as much as the others."""
    return [np.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def torch_fidelity_chunks(n: int) -> list[np.ndarray]:
    """torch-fidelity, metric_isc.py with its defaults: numpy's legacy permutation of seed 2020, 10 chunks."""
    if n < TORCH_FIDELITY_SPLITS:
        raise MetricError(f"torch-fidelity's inception score needs 10 images, got {n}; use more images.")
    order = np.random.RandomState(SHUFFLE_SEED).permutation(n)  # the order is the convention
    splits = TORCH_FIDELITY_SPLITS
    return [order[k * n // splits : (k + 1) * n // splits] for k in range(splits)]


CHUNKS: dict[str, Callable[[int], list[np.ndarray]]] = {
    "shuffled": shuffled_chunks,
    "adm": adm_chunks,
    "torch_fidelity": torch_fidelity_chunks,
}
"""How the images 0 .. n - 1 are cut into chunks, by name."""


def inception_score(logits: np.ndarray, splits: int | None = None, seed: int = SHUFFLE_SEED) -> float:
    """Mean over the chunks of the shuffled images (`shuffled_chunks`) of their IS; float64.

    logits [N, K], before the softmax. Raises `MetricError` for NaN or splits outside 1 .. N.
    """
    return float(inception_score_of_resamples(logits, np.ones((1, len(logits))), splits, seed)[0])


def inception_score_of_resamples(
    logits: np.ndarray, counts: np.ndarray, splits: int | None = None, seed: int = SHUFFLE_SEED
) -> np.ndarray:
    """IS of B resamples at once; counts [B, N] says how often resample b has each image. Returns [B]."""
    return inception_score_of_chunks(logits, counts, shuffled_chunks(len(logits), splits, seed))


def inception_score_of_chunks(logits: np.ndarray, counts: np.ndarray, chunks: list[np.ndarray]) -> np.ndarray:
    """The same with the images' indices in each chunk given.

    A chunk keeps its own images, with their counts. An empty chunk is left out of the mean.
    """
    from scipy.special import log_softmax

    z = np.asarray(logits)
    if z.ndim != 2 or len(z) < 2 or not np.isfinite(z).all():
        raise MetricError(f"The inception score needs finite logits [N >= 2, K], got shape {z.shape}.")
    scores = np.full((len(chunks), len(counts)), np.nan)
    for k, chunk in enumerate(chunks):
        log_p = log_softmax(z[chunk].astype(np.float64), axis=1)
        p = np.exp(log_p)
        c = np.asarray(counts, np.float64)[:, chunk]
        n = c.sum(axis=1)
        filled = n > 0
        mean = c[filled] @ p / n[filled, None]  # B x K
        own = c[filled] @ (p * log_p).sum(axis=1) / n[filled]
        average = (mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny))).sum(axis=1)
        scores[k, filled] = np.exp(own - average)
    return np.nanmean(scores, axis=0)


def measure(logits: np.ndarray, real: None, resamples: Resamples, rules: Rules) -> Interval:
    """Over the chunks of ``rules``."""
    return Interval.centred(inception_score_of_chunks(logits, resamples.counts, CHUNKS[rules.chunks](len(logits))))


def _least(rules: Rules, reference: Reference) -> int:
    return TORCH_FIDELITY_SPLITS if rules.chunks == "torch_fidelity" else 2


INCEPTION_SCORE = Metric("is", "IS ({})", measure, features="logits", higher_is_better=True, least=_least)

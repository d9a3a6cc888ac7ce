"""The refresh schedule of CacheQuant (arXiv 2503.01323): dynamic programming over the features of full-precision runs."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from iec.errors import NonFiniteError
from iec.sampling.refresh import require_interval


def bounds(interval: int) -> tuple[int, int]:
    """(lo, hi): a segment takes ceil(N / 2) .. 2 N steps (``feature_to_interval_seq_optimal`` in the official code)."""
    return -(-interval // 2), 2 * interval


class FeatureDistances:
    """d(j, m) = || F_{j+m} - F_j ||_1, summed over images, channels and pixels, for m < 2 N.

    Distances add over batches, and of each batch only the last 2 N - 1 features are held: the memory depends neither on the
    number of images nor on T.
    """

    def __init__(self, num_steps: int, interval: int, device: torch.device | str = "cpu") -> None:
        horizon = min(bounds(interval)[1], num_steps)
        self._table = torch.zeros(num_steps, horizon, dtype=torch.float64, device=device)
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=horizon - 1)

    def add(self, i: int, feature: Tensor) -> None:
        """F_i [B, C, H, W] of a batch. The steps of a batch come one after another, from 0."""
        if i == 0:
            self._recent.clear()
        for j, earlier in self._recent:
            self._table[j, i - j] += (feature - earlier).abs().sum(dtype=torch.float64)
        self._recent.append((i, feature))

    def table(self) -> np.ndarray:
        """d, float64 [T, min(2 N, T)]; zero where j + m is not a step. Raises `NonFiniteError`."""
        table = self._table.cpu().numpy()
        if not np.isfinite(table).all():
            raise NonFiniteError("The features have NaN or infinity. Check the weights, or use a wider network dtype.")
        return table


def cheapest_refreshes(distances: np.ndarray, interval: int) -> frozenset[int]:
    """The K = ceil(T / N) segment starts that minimise the total distance of features to those they are replaced by.

    distances: d [T, >= min(2 N, T)], see `FeatureDistances`. With D(j, n) = sum_{m < n-j} d(j, m), the cost of the segment
    j .. n-1 whose steps all use F_j,

        L(n, k) = min_j L(j, k-1) + D(j, n)   over lo <= n - j <= hi,      L(0, 0) = 0,

    and the starts are those of L(T, K). The smallest j wins where two are equal. With 1 <= N <= T there always is a partition.
    Raises `ConfigError` for another N.
    """
    steps = len(distances)
    require_interval(interval, steps)
    segments, (lo, hi) = -(-steps // interval), bounds(interval)
    within = np.cumsum(distances, axis=1)  # within[j, m - 1] = D(j, j + m)
    cost = np.full((segments + 1, steps + 1), np.inf)
    start = np.zeros((segments + 1, steps + 1), dtype=np.int64)
    cost[0, 0] = 0
    for k in range(1, segments + 1):
        for n in range(lo, steps + 1):
            j = np.arange(max(0, n - hi), n - lo + 1)
            candidates = cost[k - 1, j] + within[j, n - j - 1]
            best = int(candidates.argmin())  # the first of equals
            cost[k, n], start[k, n] = candidates[best], j[best]
    found, n = [], steps
    for k in range(segments, 0, -1):
        n = int(start[k, n])
        found.append(n)
    return frozenset(found)

"""Refresh decided for each image while it is sampled, from what the image has computed so far: AdaCache's rule (2411.02397).

    rate = |F_0 - F_1|_1 / |F_1|_1 / (u_0 - u_1)

F_0, F_1 are the features of the image's last two full calls, at the steps u_0 > u_1: its relative change a step. If it goes on at
this rate, the feature is wrong by k rate after k steps. An image reuses its feature while k rate <= threshold, and refreshes at the
first step where it is more.

AdaCache maps the rate to a number of steps by a table (100 steps: 0.03 to 12, 0.05 to 10, 0.07 to 8, 0.09 to 6, 0.11 to 4, above to
3). The products of its entries lie between 0.36 and 0.56, so that one number says about the same. Differences: an image decides for
itself, where the released code takes the mean over the batch, and the rule has one number instead of a table.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.network import FeatureCache


@dataclass(frozen=True)
class AdaptiveRefresh:
    """threshold: the relative change of the feature that is tolerated, above 0 and finite. Raises `ConfigError`."""

    threshold: float

    history: ClassVar[int] = 1
    """How many features of earlier refreshes the rule looks at beside the last."""

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not (number and 0 < self.threshold < math.inf):
            raise ConfigError(
                f"efficiency.threshold={self.threshold!r} must be a finite number above 0: the relative change of the feature that "
                "is tolerated, e.g. 0.3."
            )

    def due(self, cache: FeatureCache | None, i: int, images: int) -> list[bool]:
        """Of each image, whether it refreshes at step i. An image without two refreshes has no rate, and refreshes."""
        if cache is None or not cache.earlier:
            return [True] * images
        newer, older = cache, cache.earlier[0]
        changes = (_size(newer.feature - older.feature) / _size(older.feature)).tolist()
        return [self._is_due(change, newer.index_of(b), older.index_of(b), i) for b, change in enumerate(changes)]

    def _is_due(self, change: float, newer: int, older: int, i: int) -> bool:
        if newer == older:
            return True
        return not (i - newer) * change / (newer - older) <= self.threshold  # true for NaN, the change of a feature of zeros


def _size(value: Tensor) -> Tensor:
    """L1 norm of each image, float64 [B]."""
    return value.abs().flatten(1).sum(dim=1, dtype=torch.float64)

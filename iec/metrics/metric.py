"""What a metric is: one object that says what it needs and how it is measured. One file each; `iec.metrics.scores` lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from iec.errors import ConfigError
from iec.metrics.interval import Interval, resample_counts
from iec.metrics.references.reference import Reference

FEATURES = ("pooled", "spatial", "logits")
PARTS = {"pooled": "statistics of pooled features", "spatial": "statistics of spatial features", "kid": "features of real images"}
"""Of a reference."""


@dataclass(frozen=True)
class Rules:
    """Where conventions differ in how features become scores.

    chunks: of the inception score, a name of `iec.metrics.inception_score.CHUNKS`. kid_subsets: random subsets of 1000 to average
    over; 0: all pairs. linear: intervals of Frechet distances by `iec.metrics.influence` instead of resampling.
    """

    chunks: str = "shuffled"
    kid_subsets: int = 0
    linear: bool = False


OWN_RULES = Rules()


@dataclass(frozen=True)
class Resamples:
    """counts: float64 [1 + B, N], how often each image is in the images themselves (all ones) and in each of B resamples.
    seed: theirs, and of any other draw that a metric makes."""

    counts: np.ndarray
    seed: int

    @classmethod
    def draw(cls, n: int, resamples: int, seed: int) -> "Resamples":
        """Of n images."""
        images = np.ones((1, n))
        return cls(np.concatenate([images, resample_counts(n, resamples, seed)]) if resamples else images, seed)

    def __len__(self) -> int:
        """B."""
        return len(self.counts) - 1


Measure = Callable[[np.ndarray, Any, Resamples, Rules], Interval]
"""(features [N, d], part of the reference or None, resamples, rules) -> value and interval; the same digits for the same input."""


def two(rules: Rules, reference: Reference) -> int:
    """Images that a metric needs unless it says otherwise."""
    return 2


def none(rules: Rules) -> int:
    """Real images that a metric needs unless it says otherwise."""
    return 0


@dataclass(frozen=True)
class Metric:
    """A score of features, complete.

    label: ``FID ({})``, with a place for the protocol's label. features: the kind that ``measure`` gets, one of `FEATURES`.
    part: of the reference that it compares with, a key of `PARTS`; None for a score without a reference. least: the fewest images.
    least_real: the fewest real images whose features the reference holds. linear: whether `Rules.linear` is about its interval.
    Raises `ConfigError` for an unknown kind of features or part, and a label without a place.
    """

    name: str
    label: str
    measure: Measure
    features: str = "pooled"
    part: str | None = None
    higher_is_better: bool = False
    least: Callable[[Rules, Reference], int] = two
    least_real: Callable[[Rules], int] = none
    linear: bool = False

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ConfigError(f"{self.name}: unknown features {self.features!r}; choose one of {', '.join(FEATURES)}.")
        if self.part is not None and self.part not in PARTS:
            raise ConfigError(f"{self.name}: unknown part {self.part!r}; choose one of {', '.join(PARTS)}, or None.")
        if self.label.count("{}") != 1:
            raise ConfigError(f"{self.name}: {self.label!r} has no place for the protocol; write it as 'FID ({{}})'.")

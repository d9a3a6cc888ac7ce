"""A rule that says from one number whether a correction pays: fitted on one set of pairs, tested on others.

A pair is a technique at one T, without and with the correction. The rule says that the correction pays where the predictor is above
a threshold c. It pays in truth where the 95 % interval of the paired change of a score lies on the better side of 0: a change that
the images cannot tell from 0 does not pay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import rankdata

from iec.errors import ConfigError
from iec.metrics.influence import NORMAL_QUANTILE
from iec.metrics.interval import Interval


@dataclass(frozen=True)
class Pair:
    """label: of the corrected row. gain: of the score by the correction, above 0 where it is better. predictors: name -> one
    number an image that was measured, [n].
    """

    model: str
    label: str
    gain: Interval
    predictors: dict[str, np.ndarray]

    @property
    def pays(self) -> bool:
        return self.gain.sign > 0

    def predicted(self, name: str, images: int | None = None) -> float:
        """Mean over the first ``images`` of them; None: all."""
        return float(np.mean(self.predictors[name][:images]))


@dataclass(frozen=True)
class ErrorRate:
    """wrong of ``pairs`` pairs, one at least."""

    wrong: int
    pairs: int

    @property
    def interval(self) -> Interval:
        """The rate, with Wilson's 95 % interval, as if pairs were drawn independently."""
        return wilson(self.wrong, self.pairs)

    def __str__(self) -> str:
        rate, low, high = (100 * v for v in self.interval)
        return f"{self.wrong} of {self.pairs}, {rate:.0f} % [{low:.0f}, {high:.0f}]"


def wilson(count: int, n: int) -> Interval:
    """count / n with its 95 % score interval (Wilson, JASA 22, 1927), for 0 <= count <= n and n >= 1; z = 1.96, p = count / n:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p, z2 = count / n, NORMAL_QUANTILE**2
    middle, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))
    low, high = (max(middle - half, 0.0) / (1 + z2 / n), min((middle + half) / (1 + z2 / n), 1.0))
    return Interval(p, low if count else 0.0, high if count < n else 1.0)


def threshold(values: Sequence[float], pays: Sequence[bool]) -> float:
    """c with the fewest errors of "it pays where value > c".

    Candidates lie halfway between neighbours among the finite values; of those with as few errors the one with the widest gap is
    taken, and of these the one nearest to 0. -inf (always) and inf (never) are taken only if they make fewer errors than all these.
    Raises `ConfigError` without a value, or with one that is nan.
    """
    x, truth = np.asarray(values, np.float64), np.asarray(pays, bool)
    if not len(x) or np.isnan(x).any():
        raise ConfigError("A threshold is fitted to pairs that have a predictor, one at least. Measure more of them.")
    finite = np.unique(x[np.isfinite(x)])
    inner = [((low + high) / 2, high - low) for low, high in pairwise(finite)]
    candidates = [*inner, (-np.inf, 0.0), (np.inf, 0.0)]
    return float(min(candidates, key=lambda c: (int(((x > c[0]) != truth).sum()), -c[1], abs(c[0])))[0])


def errors_of(pairs: Sequence[Pair], predictor: str, c: float, images: int | None = None) -> ErrorRate:
    """Of the rule "it pays where ``predictor`` > c"; c = -inf: always, inf: never."""
    return ErrorRate(sum((pair.predicted(predictor, images) > c) != pair.pays for pair in pairs), len(pairs))


def rank_correlation(pairs: Sequence[Pair], predictor: str, images: int | None = None) -> float:
    """Spearman's, of the predictor and the gain: whether larger gains are predicted larger; nan for fewer than 2 pairs."""
    if len(pairs) < 2:
        return math.nan
    ranks = [rankdata(values) for values in ([p.predicted(predictor, images) for p in pairs], [p.gain.value for p in pairs])]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks)[0, 1])


@dataclass(frozen=True)
class Transfer:
    """A rule that is fitted on the pairs of ``fitted_on`` and tested on those of ``tested_on``, models. untuned: with c = 0. ranks:
    `rank_correlation` of the pairs that it is tested on.
    """

    predictor: str
    images: int
    fitted_on: str
    tested_on: str
    c: float
    fitted: ErrorRate
    tested: ErrorRate
    untuned: ErrorRate
    ranks: float


def transfers(pairs: Sequence[Pair], predictor: str, images: int) -> list[Transfer]:
    """Of every model on every other; on itself where there is one model alone, which is no test."""
    models = list(dict.fromkeys(pair.model for pair in pairs))
    by_model = {model: [pair for pair in pairs if pair.model == model] for model in models}
    found = []
    for fitted_on, own in by_model.items():
        c = threshold([pair.predicted(predictor, images) for pair in own], [pair.pays for pair in own])
        for tested_on, others in by_model.items():
            if tested_on != fitted_on or len(models) == 1:
                fitted, tested, untuned = (
                    errors_of(of, predictor, at, images) for of, at in ((own, c), (others, c), (others, 0.0))
                )
                ranks = rank_correlation(others, predictor, images)
                found.append(Transfer(predictor, images, fitted_on, tested_on, c, fitted, tested, untuned, ranks))
    return found

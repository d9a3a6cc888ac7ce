"""Does an error grow like an exponential or like a power of the number of steps?

With E_k the relative error after k steps, counted from the first step that leaves one to the last before it vanishes in an image
(steps that change nothing left out). On an ideal network it does at the end, where both runs arrive at the same image of the data.

    exponential  log E_k = a + r k           power law  log E_k = a + p log k        (linear growth is p = 1)

Both have two parameters and are fitted by least squares to the mean of log E_k over images, so AIC = K log(RSS / K) + 4 ranks them
as their residuals do. It takes residuals for independent, which those of neighbouring steps are not: read the sign of a difference
and how often resampling the images keeps it, not its size. R^2 says whether the better one is any good.
"""

from typing import Any, NamedTuple

import numpy as np

from iec.analysis.errors import RESOLUTION, Errors
from iec.errors import ConfigError
from iec.metrics.interval import LEVEL, Interval, resample_counts
from iec.sampling.timetable import Timetable

RESAMPLES = 1000
LEAST_STEPS = 4


class Growth(NamedTuple):
    """first, last: sampling indices of the states that the fits use. rate: r, per step. exponent: p. delta_aic: AIC of the
    exponential less that of the power law, so positive where the power law fits better; power_share: of the resamples in which it
    does. amplification: geometric mean over the steps of |carried over| / |error before|. above_one: share of the steps where the
    interval of this factor lies above 1; below_one: below.
    """

    first: int
    last: int
    rate: Interval
    exponent: Interval
    r2_exponential: float
    r2_power: float
    delta_aic: Interval
    power_share: float
    amplification: Interval
    above_one: float
    below_one: float

    def __str__(self) -> str:
        return (
            f"k^p with p = {self.exponent} (R^2 {self.r2_power:.2f}) or e^(r k) with r = {self.rate} "
            f"(R^2 {self.r2_exponential:.2f}); the power fits better in {self.power_share:.0%} of the resamples; "
            f"growth a step {self.amplification}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, Interval) else v for key, v in self._asdict().items()}


def require_growth(table: Timetable) -> None:
    """Raises `ConfigError` for a timetable that is too short for `growth`, whatever the errors."""
    if sum(not table.is_noop(i) for i in range(len(table))) < LEAST_STEPS:
        raise ConfigError(f"Growth needs {LEAST_STEPS} steps or more that change something. Use a longer timetable.")


def growth(errors: Errors, resamples: int = RESAMPLES, seed: int = 0) -> Growth:
    """Raises `ConfigError` if fewer than 4 successive states have an error to fit."""
    states = [i + 1 for i in errors.effective]
    has_error = np.asarray((errors.total[:, states] > RESOLUTION).all(axis=0))
    first = int(has_error.argmax())
    used = [state for state, has in zip(states[first:], np.logical_and.accumulate(has_error[first:]), strict=True) if has]
    if len(used) < LEAST_STEPS:
        raise ConfigError(
            f"Growth needs an error at {LEAST_STEPS} successive states or more. Use a longer timetable, or a coarser technique."
        )
    logs = np.log(errors.total[:, used])  # N x K
    k = np.arange(1, len(used) + 1, dtype=np.float64)
    weights = resample_counts(len(logs), resamples, seed) / len(logs)
    rate, rss_exponential, spread = fit(logs, k, weights)
    exponent, rss_power, _ = fit(logs, np.log(k), weights)
    with np.errstate(divide="ignore"):
        delta = len(k) * (np.log(rss_exponential) - np.log(rss_power))
    before = [i for i in errors.effective if i + 1 in used and not np.isnan(errors.growth[:, i]).any()]
    factors = np.log(errors.growth[:, before])
    low, high = _interval(weights @ factors)
    mean = np.exp(np.concatenate([[factors.mean()], (weights @ factors).mean(axis=1)]))
    return Growth(
        first=used[0],
        last=used[-1],
        rate=_value(rate),
        exponent=_value(exponent),
        r2_exponential=float(1 - rss_exponential[0] / spread[0]),
        r2_power=float(1 - rss_power[0] / spread[0]),
        delta_aic=_value(delta),
        power_share=float((delta[1:] > 0).mean()),
        amplification=_value(mean),
        above_one=float((low > 0).mean()),
        below_one=float((high < 0).mean()),
    )


def fit(logs: np.ndarray, u: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(slopes, residual sums of squares, total sums of squares) of the mean over images of ``logs`` [N, K] against u [K].

    weights: [R, N], of the images in each resample. Entry 0 is all images alike, the others are the resamples: [R + 1].
    """
    means = np.concatenate([logs.mean(axis=0, keepdims=True), weights @ logs])
    means = means - means.mean(axis=1, keepdims=True)
    centred = u - u.mean()
    slopes = means @ centred / (centred @ centred)
    residuals = means - slopes[:, None] * centred
    return slopes, np.square(residuals).sum(axis=1), np.square(means).sum(axis=1)


def _value(values: np.ndarray) -> Interval:
    """Entry 0, with the interval of the others."""
    low, high = _interval(values[1:])
    return Interval(float(values[0]), float(low), float(high))


def _interval(resampled: np.ndarray) -> np.ndarray:
    tail = (1 - LEVEL) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0)

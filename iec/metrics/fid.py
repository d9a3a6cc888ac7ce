"""FID (arXiv 1706.08500) and sFID (arXiv 2103.03841): the Frechet distance of pooled, and of spatial features."""

import warnings

import numpy as np

from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics, frechet_distance
from iec.metrics.influence import linear_interval
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules


def measure(x: np.ndarray, real: GaussianStatistics, resamples: Resamples, rules: Rules) -> Interval:
    """Distance of features [N, d] to the reference's statistics. Warns once with `FewSamplesWarning` when N <= d."""
    if rules.linear:
        own = GaussianStatistics.of(x)
        value = frechet_distance(own, real)
        return Interval(value, *linear_interval(value, x, own, real)) if len(resamples) else Interval(value)
    values, x = [], x.astype(np.float64)
    for k, counts in enumerate(resamples.counts):
        with warnings.catch_warnings():
            if k:  # the warning about few images is for the score, not for each of its resamples
                warnings.simplefilter("ignore", FewSamplesWarning)
            values.append(frechet_distance(GaussianStatistics.of(x, counts), real))
    return Interval.centred(np.array(values))


FID = Metric("fid", "FID ({})", measure, part="pooled", linear=True)
SFID = Metric("sfid", "sFID ({})", measure, features="spatial", part="spatial", linear=True)

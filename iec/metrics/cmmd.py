"""CMMD (Jayasumana et al. 2024, arXiv 2401.09603): the squared MMD of CLIP features with a Gaussian kernel.

    CMMD = 1000 MMD^2,   k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),   sigma = 10,   x and y of unit length

As the paper says, the estimate is unbiased: `iec.metrics.mmd`. The authors' code (google-research, cmmd/distance.py) keeps the
pairs of an image with itself instead, the "minimum-variance" estimate. With off-diagonal means m_x, m_y of k on the two sides
its value is higher by exactly

    1000 ((1 - m_x) / N + (1 - m_y) / M),

and 1 - m is nearly a hundredth of 1 - (the mean cosine): with a mean cosine of 0.6 that is 0.0003 at the paper's N = M =
30,000, but 0.06 at 128. The paper's network is that of the protocol `clip_vit_l_14_336px`; its code resizes bicubically,
torch-fidelity bilinearly.
"""

import numpy as np

from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.mmd import Kernel, mmd_of_resamples

SIGMA, SCALE = 10.0, 1000.0


def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)) of vectors of unit length, for which |x - y|^2 = 2 - 2 x.y: [N, d] and [M, d] -> [N, M]."""
    return np.asarray(np.exp((x @ y.T - 1) / SIGMA**2))


GAUSSIAN = Kernel("CMMD", gaussian, lambda x: np.ones(len(x)))


def cmmd_of_resamples(features: np.ndarray, reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """CMMD of features [N, d] to [M, d] for B resamples; counts [B, N] -> [B]. Raises `MetricError` as `mmd_of_resamples`, and
    for a vector of zeros, which has no direction.
    """
    return SCALE * mmd_of_resamples(_unit(features), _unit(reference), counts, GAUSSIAN)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):  # a vector of zeros becomes NaN, which is refused
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def measure(x: np.ndarray, real: np.ndarray, resamples: Resamples, rules: Rules) -> Interval:
    """All pairs, with a bootstrap interval."""
    return Interval.centred(cmmd_of_resamples(x, real, resamples.counts))


def _two_real(rules: Rules) -> int:
    return 2


CMMD = Metric("cmmd", "CMMD ({})", measure, part="kid", least_real=_two_real)

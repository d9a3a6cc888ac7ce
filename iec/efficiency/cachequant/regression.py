"""Y ~ a X + b for each channel, from a stream of pairs."""

import torch
from torch import Tensor

from iec.efficiency.moments import PairSums
from iec.errors import NonFiniteError


class AffineRegression(PairSums):
    """Least squares of Y on X for every step i and channel c over all images and pixels, without keeping them:

    a = cov(X, Y) / var(X),   b = mean Y - a mean X          (CacheQuant, arXiv 2503.01323, the corrections of both errors)
    """

    def solve(self, official_divisors: bool = False) -> tuple[Tensor, Tensor]:
        """(a, b), float64 [T, C]; steps without pairs get a = 1, b = 0.

        A channel whose X does not vary says nothing about a: a = 1, b = mean Y - mean X (the original divides by zero).
        official_divisors: the covariance over n, but the variance over n - 1, which makes a smaller by (n - 1) / n.
        Raises `NonFiniteError`.
        """
        m = self.moments()
        slope = m.cov / m.var_x
        if official_divisors:
            n = m.count.clamp_min(1)
            slope = slope * (n - 1) / n
        a = torch.where(m.var_x > 0, slope, 1.0)
        b = torch.where(m.count > 0, m.mean_y - a * m.mean_x, 0.0)
        if not bool((torch.isfinite(a) & torch.isfinite(b)).all()):
            raise NonFiniteError(
                "The features that a correction is fitted to are not finite. Check the weights, or use a wider network dtype."
            )
        return a, b

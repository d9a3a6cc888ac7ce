"""Y ~ a X + b for each channel, from a stream of pairs."""

import torch
from torch import Tensor

from iec.errors import NonFiniteError

PIXELS = (0, 2, 3)
CHUNK = 1 << 22
"""Elements taken at a time: their float64 copies are what an update needs beside the sums."""


class AffineRegression:
    """Least squares of Y on X for every step i and channel c over all images and pixels, without keeping them:

    a = cov(X, Y) / var(X),   b = mean Y - a mean X          (CacheQuant, arXiv 2503.01323, the corrections of both errors)

    X and Y are shifted by the first value of their channel that comes in, so that sums of squares do not cancel where the mean is
    much larger than the deviation. Sums are float64 [T, C] on ``device``, whatever the number of images.
    """

    def __init__(self, steps: int, channels: int, device: torch.device | str = "cpu") -> None:
        self.count = [0] * steps
        self.shift = torch.zeros(2, steps, channels, dtype=torch.float64, device=device)  # of X and Y
        self.sums = torch.zeros(4, steps, channels, dtype=torch.float64, device=device)  # of x, y, x x and x y, shifted

    def add(self, step: int, x: Tensor, y: Tensor) -> None:
        """Pairs x, y [B, C, H, W] of one step."""
        if not self.count[step]:
            self.shift[:, step] = torch.stack([x[0, :, 0, 0], y[0, :, 0, 0]]).double()
        x_shift, y_shift = self.shift[:, step, :, None, None]
        images = max(1, CHUNK // x[0].numel())
        for x_part, y_part in zip(x.split(images), y.split(images), strict=True):
            u, v = x_part.double() - x_shift, y_part.double() - y_shift
            self.sums[:, step] += torch.stack([term.sum(PIXELS) for term in (u, v, u * u, u * v)])
        self.count[step] += x.numel() // x.shape[1]

    def solve(self, official_divisors: bool = False) -> tuple[Tensor, Tensor]:
        """(a, b), float64 [T, C]; steps without pairs get a = 1, b = 0.

        A channel whose X does not vary says nothing about a: a = 1, b = mean Y - mean X (the original divides by zero).
        official_divisors: the covariance over n, but the variance over n - 1, which makes a smaller by (n - 1) / n.
        Raises `NonFiniteError`.
        """
        count = torch.tensor(self.count, dtype=torch.float64, device=self.sums.device)[:, None]
        n = count.clamp_min(1)
        x, y, xx, xy = self.sums / n
        covariance, variance = xy - x * y, xx - x * x
        slope = covariance / variance
        if official_divisors:
            slope = slope * (n - 1) / n
        a = torch.where(variance > 0, slope, 1.0)
        b = torch.where(count > 0, self.shift[1] + y - a * (self.shift[0] + x), 0.0)
        if not bool((torch.isfinite(a) & torch.isfinite(b)).all()):
            raise NonFiniteError(
                "The features that a correction is fitted to are not finite. Check the weights, or use a wider network dtype."
            )
        return a, b

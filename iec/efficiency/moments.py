"""Means, variances and the covariance of pairs (x, y), from a stream, step by step and channel by channel."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

PIXELS = (0, 2, 3)
CHUNK = 1 << 22
"""Elements taken at a time: their float64 copies are what an update needs beside the sums."""


@dataclass(frozen=True)
class Moments:
    """Over all images and pixels, float64 [T, C] each; divided by the count [T, 1], 0 at steps without pairs."""

    count: Tensor
    mean_x: Tensor
    mean_y: Tensor
    var_x: Tensor
    var_y: Tensor
    cov: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def pooled(self) -> Self:
        """Of all channels together, [T, 1]."""
        x, y = (mean.mean(1, keepdim=True) for mean in (self.mean_x, self.mean_y))

        def pool(inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
            """Between values of a channel, and between the means of the channels."""
            return (inside + a * b).mean(1, keepdim=True)

        dx, dy = self.mean_x - x, self.mean_y - y
        var_x, var_y, cov = pool(self.var_x, dx, dx), pool(self.var_y, dy, dy), pool(self.cov, dx, dy)
        return type(self)(self.count * self.mean_x.shape[1], x, y, var_x, var_y, cov)


class PairSums:
    """The sums behind `Moments`, float64 [T, C] on ``device``, whatever the number of images.

    x and y are shifted by the first value of their channel that comes in, so that sums of squares do not cancel where the mean is
    much larger than the deviation.
    """

    def __init__(self, steps: int, channels: int, device: torch.device | str = "cpu") -> None:
        self.count = [0] * steps
        self.shift = torch.zeros(2, steps, channels, dtype=torch.float64, device=device)  # of x and y
        self.sums = torch.zeros(5, steps, channels, dtype=torch.float64, device=device)  # of x, y, x x, x y and y y, shifted

    def add(self, step: int, x: Tensor, y: Tensor) -> None:
        """Pairs x, y [B, C, H, W] of one step."""
        if not self.count[step]:
            self.shift[:, step] = torch.stack([x[0, :, 0, 0], y[0, :, 0, 0]]).double()
        x_shift, y_shift = self.shift[:, step, :, None, None]
        images = max(1, CHUNK // x[0].numel())
        for x_part, y_part in zip(x.split(images), y.split(images), strict=True):
            u, v = x_part.double() - x_shift, y_part.double() - y_shift
            self.sums[:, step] += torch.stack([term.sum(PIXELS) for term in (u, v, u * u, u * v, v * v)])
        self.count[step] += x.numel() // x.shape[1]

    def moments(self) -> Moments:
        count = torch.tensor(self.count, dtype=torch.float64, device=self.sums.device)[:, None]
        x, y, xx, xy, yy = self.sums / count.clamp_min(1)
        return Moments(count, self.shift[0] + x, self.shift[1] + y, xx - x * x, yy - y * y, xy - x * y)

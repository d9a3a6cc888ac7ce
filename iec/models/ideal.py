"""A network without error: the optimal denoiser of a finite data set, in closed form."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from iec.errors import ConfigError
from iec.sampling.network import FeatureCache, Prediction, Step
from iec.sampling.timetable import NoiseSchedule

VALUES_AT_ONCE = 2**21
"""Bounds what a call holds beside the data: B x m logits and m x d values of a block of m images, 8 MiB each at most. A block of
this size stays in a processor's cache for the second of its products."""
NEGLIGIBLE = 1e-12
"""Weights below this share of the largest are left out: 10^4 of them together are below the resolution of float32, 6e-8."""


class IdealNetwork(nn.Module):
    """The noise predictor that no training on the images X_1 .. X_M can improve on (Karras et al., arXiv 2206.00364, appendix B.3).

        eps(x, t) = (x - sqrt(abar) m) / sqrt(1 - abar),   m = sum_n softmax_n( -|x/sqrt(abar) - X_n|^2 / (2 k v) ) X_n

    m is the posterior mean of the clean image, v = (1 - abar) / abar the variance of the noise in x / sqrt(abar), abar that of
    ``schedule`` at the timestep of the step. -eps / sqrt(1 - abar) is the gradient of the log density of the noisy images.

    images: [M, C, H, W], about [-1, 1]. variance: k > 0; 1 is exact, above it the posterior is spread over more images than it
    should be, as that of a network that is too smooth.

    A call on B images is two matrix products with the data, at most 2 M d multiply-accumulates an image, in blocks over M with a
    running maximum: its memory does not grow with M. d counts the values that differ between images of the data; the others, such
    as padding, add the same to every distance and are known exactly. The data are stored relative to their mean, which takes
    nothing from the softmax and leaves smaller numbers to round. The second product takes the images of a block with a weight
    that counts (`NEGLIGIBLE`): at low noise one or two for each x.

    The products are in float32 and the last line in float64, where eps is a small difference divided by a small number. Against
    float64 throughout, eps differs by less than 4e-5 in relative norm at every timestep, less than 1e-5 from t = 100 on (256 test
    images of Fashion-MNIST with noise, 10,000 training images as data). The worst of the 256 differs by 7e-4, at t = 30, where two
    images of the data are about equally likely. Raises `ConfigError`.
    """

    mean: Tensor
    """[C * H * W], float64."""
    varying: Tensor
    """[d], where images of the data differ: indices into C * H * W."""
    data: Tensor
    """[M, d], float32, less the mean."""
    halved_squares: Tensor
    """[M], -|data_n|^2 / 2."""

    def __init__(self, images: Tensor, schedule: NoiseSchedule, variance: float = 1.0) -> None:
        super().__init__()
        if images.ndim != 4 or not len(images):
            raise ConfigError(f"The ideal network needs images [M, C, H, W], one at least, not {list(images.shape)}.")
        values = images.flatten(1).float()
        varies = (values != values[0]).any(0)
        mean = torch.where(varies, values.mean(0, dtype=torch.float64).float(), values[0])
        data = (values - mean)[:, varies]
        self.register_buffer("mean", mean.double())
        self.register_buffer("varying", varies.nonzero().squeeze(1))
        self.register_buffer("data", data)
        self.register_buffer("halved_squares", data.square().sum(1) / -2)
        self.shape, self.schedule, self.variance = images.shape[1:], schedule, _positive(variance)

    def with_variance(self, variance: float) -> "IdealNetwork":
        """The same with another k, on the same data. Raises `ConfigError`."""
        other = copy.copy(self)
        other.variance = _positive(variance)
        return other

    @property
    def images(self) -> Tensor:
        """The data set, [M, C, H, W] in float32."""
        return self.mean.expand(len(self.data), -1).index_add(1, self.varying, self.data.double()).float().unflatten(1, self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def forward(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        """eps in float64, on the device of the data. cond and cache are of no use to it."""
        abar = self.schedule.at(step.timestep)
        mean = self.posterior_mean(x.double() / np.sqrt(abar), self.variance * (1 - abar) / abar)
        return Prediction((x.double() - np.sqrt(abar) * mean) / np.sqrt(1 - abar))

    def posterior_mean(self, y: Tensor, variance: float) -> Tensor:
        """m for y [B, C, H, W], a clean image with Gaussian noise of this variance; float64."""
        points = (y.flatten(1).double() - self.mean)[:, self.varying].float()
        top = points.new_full((len(points), 1), -torch.inf)  # the largest logit so far, and sums relative to it
        total, weighted = torch.zeros_like(top), torch.zeros_like(points)
        for block, halved_squares in self._blocks(len(points)):
            # |y|^2 is the same for all images of the data
            logits = torch.addmm(halved_squares, points, block.T, beta=1 / variance, alpha=1 / variance)
            highest = torch.maximum(top, logits.amax(1, keepdim=True))
            weights, kept = (logits - highest).exp_(), (top - highest).exp_()
            total = total * kept + weights.sum(1, keepdim=True)
            near = (weights > NEGLIGIBLE).any(0).nonzero().squeeze(1)
            if len(near) < len(block) // 2:
                weights, block = weights[:, near], block[near]
            weighted = torch.addmm(weighted * kept, weights, block)
            top = highest
        mean = self.mean.expand(len(points), -1)
        return mean.index_add(1, self.varying, (weighted / total).double()).view_as(y)

    def _blocks(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """[m, d] and [m] at a time."""
        size = max(1, VALUES_AT_ONCE // max(batch, self.data.shape[1]))
        return zip(self.data.split(size), self.halved_squares.split(size), strict=True)


def _positive(variance: float) -> float:
    """Raises `ConfigError` for a factor on the variance that cannot be."""
    if not 0 < variance < float("inf"):
        raise ConfigError(f"The variance factor k={variance} must be a positive number; 1 is the exact network.")
    return variance

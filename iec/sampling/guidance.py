"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) around any network, caching ones included.

An image of a guided model is one row to the sampler and two rows to the UNet: unconditional and conditional. Techniques deal
with the UNet's rows; the guided network goes around what they make.
"""

import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.network import FeatureCache, Network, Prediction, Step


class GuidedNetwork:
    """eps = eps_u + w (eps_c - eps_u), both halves in one batch, the unconditional one first.

    network: evaluates rows. scale: w; with w = 1 only the conditional half is evaluated, as in the original code. cond: [B, 2, ..],
    the unconditional and the conditional row of each image. A cached feature of the network, one [C, h, w] a row, is folded into
    one [rows, C, h, w] an image, so that the sampler can select images. Raises `ConfigError` for another cond.
    """

    def __init__(self, network: Network, scale: float) -> None:
        self.network, self.scale = network, scale
        self.rows = rows_per_image(scale)

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        if cond is None or cond.shape[:2] != (len(x), 2):
            given = "none" if cond is None else str(list(cond.shape))
            raise ConfigError(
                f"Guidance needs cond [{len(x)}, 2, ...], an unconditional and a conditional row an image, not {given}."
            )
        if cache is not None:
            cache = FeatureCache(_unfold(cache.feature), cache.step)
        made = self.network(torch.cat([x] * self.rows), step, _unfold(cond[:, -self.rows :]), cache)
        feature = None if made.feature is None else made.feature.unflatten(0, (self.rows, len(x))).transpose(0, 1)
        if self.rows == 1:
            return Prediction(made.eps, feature)
        low, high = made.eps.chunk(2)
        return Prediction(low + self.scale * (high - low), feature)


def rows_per_image(scale: float | None) -> int:
    """What a network call on one image asks of the UNet. scale: None without guidance."""
    return 1 if scale is None or scale == 1 else 2


def guided(network: Network, scale: float | None) -> Network:
    """``network`` under guidance; as it is for None."""
    return network if scale is None else GuidedNetwork(network, scale)


def unet_rows(scale: float | None, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows that the UNet gets for images x [B, ...]: those of an image stay together, [u_0, c_0, u_1, c_1, ..].

    This order, and not that of a guided call, is for calibration, so that every mini-batch has as many of both kinds.
    """
    if scale is None or cond is None:
        return x, cond
    rows = rows_per_image(scale)
    return x.repeat_interleave(rows, 0), cond[:, -rows:].flatten(0, 1)


def _unfold(value: Tensor) -> Tensor:
    """[B, rows, ...] -> [rows B, ...], all first rows first."""
    return value.transpose(0, 1).flatten(0, 1)

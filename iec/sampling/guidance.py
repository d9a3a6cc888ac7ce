"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) around any network, caching ones included.

An image of a guided model is one image to the sampler, and two branches to the UNet: unconditional and conditional. Techniques deal
with branches; guidance goes around the network of a technique.
"""

import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.network import FeatureCache, Network, Prediction, Step


class GuidedNetwork:
    """eps = eps_u + w (eps_c - eps_u), both branches in one batch, the unconditional one first.

    network: evaluates branches. scale: w; with w = 1 only the conditional branch is evaluated, as in the original code. cond:
    [B, 2, ..], of the unconditional and the conditional branch of each image. What a caching network stores, [C, h, w] for each
    branch, is folded to [branches, C, h, w] for each image, so that the sampler can tell the images apart. Raises `ConfigError`
    for another cond.
    """

    def __init__(self, network: Network, scale: float) -> None:
        self.network, self.scale = network, scale
        self.branches = num_branches(scale)

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        if cond is None or cond.shape[:2] != (len(x), 2):
            given = "none" if cond is None else str(list(cond.shape))
            raise ConfigError(
                f"Guidance needs cond [{len(x)}, 2, ...], of an unconditional and a conditional branch for each image, not {given}."
            )
        if cache is not None:
            cache = cache.changed(_unfold, images=[*range(len(x))] * self.branches)
        prediction = self.network(torch.cat([x] * self.branches), step, _unfold(cond[:, -self.branches :]), cache)
        eps = prediction.eps
        if self.branches == 2:
            unconditional, conditional = eps.chunk(2)
            eps = unconditional + self.scale * (conditional - unconditional)
        return Prediction(eps, self._folded(prediction.feature), self._folded(prediction.probe), prediction.history)

    def _folded(self, value: Tensor | None) -> Tensor | None:
        """[branches B, ...] -> [B, branches, ...], the inverse of `_unfold`."""
        return None if value is None else value.unflatten(0, (self.branches, -1)).transpose(0, 1)


def num_branches(scale: float | None) -> int:
    """How many evaluations of the UNet a network call on one image is. scale: None without guidance."""
    return 1 if scale is None or scale == 1 else 2


def guided(network: Network, scale: float | None) -> Network:
    """``network`` under guidance; as it is for None."""
    return network if scale is None else GuidedNetwork(network, scale)


def unet_batch(scale: float | None, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The batch of branches for images x [B, ...], and its cond: those of an image stay together, [u_0, c_0, u_1, c_1, ..].

    This order, and not that of a guided call, is for calibration, so that every mini-batch has as many of both kinds.
    """
    if scale is None or cond is None:
        return x, cond
    branches = num_branches(scale)
    return x.repeat_interleave(branches, 0), cond[:, -branches:].flatten(0, 1)


def _unfold(value: Tensor) -> Tensor:
    """[B, branches, ...] -> [branches B, ...], the first branch of all images first."""
    return value.transpose(0, 1).flatten(0, 1)

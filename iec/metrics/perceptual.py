"""LPIPS (arXiv 1801.03924): how far apart two images are for a network that was fitted to what people call alike.

    LPIPS(x, y) = sum_l mean over positions of sum_c w_lc (f_lc(x) - f_lc(y))^2

f_l are the outputs of the five convolutions of AlexNet after ReLU, of unit length at each position; the weights w are those of
the package ``lpips`` (v0.1, ``net="alex"``, its default), which holds them. AlexNet's own, torchvision's for ImageNet, are a
file of the user's: see `iec.metrics.extractors.local_weights`. Images are mapped to [-1, 1], grey ones to three equal channels.
"""

import warnings
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from iec.errors import MetricError, WeightsError
from iec.io.images import to_rgb
from iec.metrics.extractors.features import padded
from iec.metrics.extractors.local_weights import WeightsFile
from iec.metrics.images.pairs import require_pairs

ALEXNET = WeightsFile(("alexnet-owt-7be5be79.pth",), "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79")
CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Their places among AlexNet's ``features``."""
BATCH, LEAST = 50, 31
"""Pairs in one call; the height and width below which nothing is left after AlexNet's strides."""


class Perceptual:
    """LPIPS of each pair on a CPU, in float32 and in batches of 50. The network is loaded when the first pair is measured."""

    def __init__(self, weights: WeightsFile = ALEXNET) -> None:
        self.weights = weights

    def require(self, resolution: int) -> None:
        """To be called before images are made. Raises `WeightsError` for missing or other weights, `MetricError` for images
        that are too small.
        """
        _require_size(resolution)
        self.weights.find()

    @cached_property
    def network(self) -> nn.Module:
        path, _ = self.weights.find()
        import lpips

        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            given = {name for name in tensors if name.startswith("features.")}
            if unfit := given ^ {f"features.{place}.{kind}" for place in CONVOLUTIONS for kind in ("weight", "bias")}:
                raise KeyError(sorted(unfit)[0])
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # it asks torchvision in a way of the past
                warnings.simplefilter("ignore", UserWarning)
                network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
            own = {name: tensors[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}  # slice2.3.bias
            network.net.load_state_dict(own, strict=True)
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
            raise WeightsError(f"{path} does not hold torchvision's AlexNet: {error}. Delete it and get it again.") from error
        return network.eval().requires_grad_(False)

    def __call__(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """LPIPS of each pair of uint8 [N, H, W, 1 or 3]; float64 [N], 0 where the two images are identical. Raises
        `MetricError` for another dtype, unequal shapes or images that are too small, and `WeightsError`.
        """
        require_pairs(images, reference)
        _require_size(min(images.shape[1:3]))
        both = np.concatenate([to_rgb(images), to_rgb(reference)], axis=3)
        parts = [padded(both[k : k + BATCH], BATCH, torch.device("cpu"), self._forward)[0] for k in range(0, len(both), BATCH)]
        return np.concatenate([np.empty(0), *parts])

    def _forward(self, both: Tensor) -> tuple[Tensor]:
        x = both.permute(0, 3, 1, 2).float() / 127.5 - 1
        return (self.network(x[:, :3], x[:, 3:]).flatten(),)


def _require_size(size: int) -> None:
    if size < LEAST:
        raise MetricError(f"LPIPS needs images of {LEAST} x {LEAST} pixels, these have {size}. Leave lpips out of paired.")

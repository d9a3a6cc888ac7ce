"""From latents to images: the first stage of latent diffusion."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIXELS_AT_ONCE = 2**20
"""Bounds a batch of the decoder: 16 images of 256 x 256, 4 of 512 x 512."""


@dataclass(frozen=True)
class Decoder:
    """images = D(z / scaling_factor), about [-1, 1], in float32.

    module: an AutoencoderKL, or a VQModel, whose D moves each latent vector to its nearest code first (VQModelInterface.decode of
    CompVis/latent-diffusion, ldm/models/autoencoder.py). scaling_factor: ``scale_factor`` of the original. resolution: of the
    images.
    """

    module: Any
    scaling_factor: float
    resolution: int

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] -> [B, 3, resolution, resolution], in batches of a bounded size."""
        z = z.to(next(self.module.parameters()).dtype) / self.scaling_factor
        size = max(1, PIXELS_AT_ONCE // self.resolution**2)
        return torch.cat([self.module.decode(part).sample for part in z.split(size)])

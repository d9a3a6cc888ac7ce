"""From the network's range to bytes, and from images to files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iec.io.files import write_atomic

ROUNDINGS = ("round", "truncate")


def to_uint8(x: Tensor, rounding: str = "round") -> np.ndarray:
    """The project's one conversion: x [B, C, H, W] in [-1, 1], clamped -> uint8 [B, H, W, C].

    rounding: ``round`` to nearest, -1 -> 0, 0 -> 128, 1 -> 255; ``truncate``, 0 -> 127, as the official latent scripts do, which
    makes every image half a grey level darker.
    """
    offset = 0.5 if rounding == "round" else 0.0
    pixels = ((x.clamp(-1, 1) + 1) * 127.5 + offset).floor().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_rgb(images: np.ndarray) -> np.ndarray:
    """[..., C] -> [..., 3]: RGB as it is, grey (C = 1) in three equal channels."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def grid(images: np.ndarray, columns: int, scale: int = 1, gap: int = 2) -> np.ndarray:
    """uint8 [N, H, W, 1 or 3] row by row on a white canvas [.., .., 3]; the last row may be short. ``scale`` repeats pixels."""
    images = to_rgb(images).repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k, image in enumerate(images):
        y, x = (k // columns) * (height + gap), (k % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def save_png(path: Path, image: np.ndarray) -> None:
    """uint8 [H, W, 3], or [H, W, 1] as a grey PNG (mode L), written atomically."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    write_atomic(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))

"""Distance to the full-precision run from the same seeds, image by image and step by step.

Both runs start from the same noise, so these need no reference set and have far less noise than a distance of distributions.
"""

from collections.abc import Iterable
from itertools import zip_longest

import numpy as np

from iec.errors import MetricError
from iec.metrics.interval import Interval


def psnr_per_image(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / MSE) in dB for each of uint8 [N, H, W, C]; float64 [N], infinite where the two images are identical.

    Raises `MetricError` for another dtype or unequal shapes.
    """
    if images.dtype != np.uint8 or reference.dtype != np.uint8 or images.shape != reference.shape or images.ndim != 4:
        raise MetricError(
            f"PSNR compares two uint8 [N, H, W, C] of one shape, got {images.dtype} {images.shape} and {reference.dtype} "
            f"{reference.shape}; score runs with the same num_images."
        )
    error = np.square(images.astype(np.float64) - reference).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


Blocks = np.ndarray | Iterable[np.ndarray]
"""Images uint8 [N, H, W, C], whole or in blocks of any iterable."""


def psnr(images: Blocks, reference: Blocks, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean PSNR over images, in dB, with a 95 % bootstrap interval over images.

    Blocks must be cut alike on both sides; no more than one of each is held. An identical pair counts as the least difference
    that two images can have, one value off by one: 10 log10(255^2 H W C), 83.0 dB for 32 x 32 x 3. So the mean stays finite and
    ordered. All pairs identical -> infinity. Raises `MetricError` for no images, another dtype, or shapes or blocks that differ.
    """
    parts, shape = [], (1,)
    for block, other in zip_longest(_blocks(images), _blocks(reference)):
        if block is None or other is None:
            raise MetricError("One run has more images than the other; compare runs with the same num_images.")
        parts.append(psnr_per_image(block, other))
        shape = block.shape[1:]
    values = np.concatenate(parts) if parts else np.empty(0)
    if not len(values):
        raise MetricError("No images to compare; use num_images >= 1.")
    if np.isinf(values).all():
        return Interval(np.inf, np.inf, np.inf)
    values = np.minimum(values, 10 * np.log10(255.0**2 * np.prod(shape)))
    return Interval.of_mean(values, resamples, seed)


def _blocks(images: Blocks) -> Iterable[np.ndarray]:
    return [images] if isinstance(images, np.ndarray) else images


def relative_distance(states: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|x_i - x_i^ref| / |x_i^ref| for each image and step; Euclidean norm over C, H, W.

    states, reference: [T + 1, n, C, H, W], state 0 the noise both start from. Returns float64 [n, T + 1]; mean over images and
    interval: ``mean_interval(distances)``. Raises `MetricError` for unequal shapes, NaN, or a reference state that is all zero.
    """
    if states.shape != reference.shape or states.ndim != 5:
        raise MetricError(f"Trajectories must be [T + 1, n, C, H, W] of one shape, got {states.shape} and {reference.shape}.")
    x, r = (np.asarray(value, np.float64).reshape(*value.shape[:2], -1) for value in (states, reference))
    if not (np.isfinite(x).all() and np.isfinite(r).all()):
        raise MetricError("A trajectory holds NaN or infinity; sample it again.")
    norm = np.linalg.norm(r, axis=2)
    if (norm == 0).any():
        raise MetricError("A reference state is all zero, so no distance is relative to it; sample the reference again.")
    return (np.linalg.norm(x - r, axis=2) / norm).T

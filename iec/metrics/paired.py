"""Distance to the full-precision run from the same seeds, image by image and step by step.

Both runs start from the same noise, so these need no reference set and have far less noise than a distance of distributions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from iec.errors import ConfigError, MetricError
from iec.metrics.images.pairs import require_pairs
from iec.metrics.interval import Interval
from iec.metrics.perceptual import Perceptual
from iec.metrics.ssim import ssim_per_image

FAINT = 16
"""The highest grey level that counts as grain; more is another shape."""
LEAST_BLACK = 0.05
"""The share of an image that has to be black for its grain to be counted."""

Blocks = np.ndarray | Iterable[np.ndarray]
"""Images uint8 [N, H, W, C], whole or in blocks of any iterable."""


def psnr_per_image(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / MSE) in dB for each of uint8 [N, H, W, C]; float64 [N], infinite where the two images are identical.

    Raises `MetricError` for another dtype or unequal shapes.
    """
    require_pairs(images, reference)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / _mean_squared_error(images, reference))


def rmse_per_image(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean squared difference in grey levels, 0 .. 255, for each of uint8 [N, H, W, C]; float64 [N].

    Where images of two runs are either the same or unlike, as those of an ideal network, its mean says more than that of the PSNR.
    Raises `MetricError` for another dtype or unequal shapes.
    """
    require_pairs(images, reference)
    return np.sqrt(_mean_squared_error(images, reference))


def grain_per_image(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Residual noise on flat ground: of the pixels that are black (0 in every channel) in the reference image, the share in % whose
    brightest channel here is 1 .. 16 (`FAINT`). Clipping keeps half of the noise from showing, so white noise gives at most 50 %.

    uint8 [N, H, W, C] -> float64 [N], in 0 .. 100; nan where less than 5 % of the reference image is black. Raises `MetricError`
    for another dtype or unequal shapes.
    """
    require_pairs(images, reference)
    black, level = (reference == 0).all(axis=3), images.max(axis=3)
    grain = (black & (level >= 1) & (level <= FAINT)).sum(axis=(1, 2))
    share = black.mean(axis=(1, 2))
    return np.where(share < LEAST_BLACK, np.nan, 100 * grain / np.maximum(black.sum(axis=(1, 2)), 1))


def _mean_squared_error(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(images.astype(np.float64) - reference).mean(axis=(1, 2, 3)))


def least_difference(shape: Sequence[int]) -> float:
    """PSNR of two images [H, W, C] that differ in one value, by one: 83.0 dB for 32 x 32 x 3."""
    return float(10 * np.log10(255.0**2 * np.prod(shape)))


def anything(resolution: int) -> None:
    """Images of any size, without weights."""


@dataclass(frozen=True)
class PairedMetric:
    """A number for each image beside the reference's image from the same noise.

    measure: (images, reference), uint8 [N, H, W, C] -> float64 [N]; infinite for identical images, nan where it is not defined.
    identical: (H, W, C) -> what an infinite value counts as beside finite ones, so that a mean stays finite and ordered.
    require: of the images' height, raises what ``measure`` would for it, or for weights that are not there; to be called before
    images are made.
    """

    name: str
    label: str
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
    higher_is_better: bool = False
    identical: Callable[[Sequence[int]], float] = least_difference
    require: Callable[[int], None] = anything


PSNR = PairedMetric("psnr", "PSNR to ref. (dB)", psnr_per_image, higher_is_better=True)
SSIM = PairedMetric("ssim", "SSIM to ref.", ssim_per_image, higher_is_better=True)
RMSE = PairedMetric("rmse", "RMSE to ref. (levels)", rmse_per_image)
GRAIN = PairedMetric("grain", "grain on black (%)", grain_per_image)
PERCEPTUAL = Perceptual()
LPIPS = PairedMetric("lpips", "LPIPS to ref. (AlexNet)", PERCEPTUAL, require=PERCEPTUAL.require)
PAIRED: dict[str, PairedMetric] = {metric.name: metric for metric in (PSNR, SSIM, LPIPS, RMSE, GRAIN)}
"""All paired scores, by name; `register` adds one."""
DEFAULT = (PSNR.name, SSIM.name)
"""Those that every table shows unless told otherwise."""


def register(metric: PairedMetric) -> PairedMetric:
    """Make a paired score known by its name. Raises `ConfigError` if another has that name."""
    if PAIRED.setdefault(metric.name, metric) is not metric:
        raise ConfigError(f"There is a paired score {metric.name!r} already; give this one another name.")
    return metric


def paired(images: Blocks, reference: Blocks, metrics: Sequence[PairedMetric]) -> dict[str, np.ndarray]:
    """Name -> float64 [N]: finite or nan, or infinite for all images where all pairs are identical.

    Blocks must be cut alike on both sides; no more than one of each is held. Raises `MetricError` for no images, another dtype, or
    shapes or blocks that differ.
    """
    parts: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    shape: Sequence[int] = ()
    for block, other in zip_longest(_blocks(images), _blocks(reference)):
        if block is None or other is None:
            raise MetricError("One run has more images than the other; compare runs with the same num_images.")
        for metric in metrics:
            parts[metric.name].append(metric.measure(block, other))
        shape = block.shape[1:]
    values = {name: np.concatenate(part) if part else np.empty(0) for name, part in parts.items()}
    if not all(map(len, values.values())):
        raise MetricError("No images to compare; use num_images >= 1.")
    for metric in metrics:
        if not (infinite := np.isinf(values[metric.name])).all():
            values[metric.name][infinite] = metric.identical(shape)
    return values


def mean_of_pairs(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of values [N] over the images that have one (one at least), with a 95 % bootstrap interval over images; infinite where
    all are.
    """
    if np.isinf(values).all():
        return Interval(np.inf, np.inf, np.inf)
    return Interval.of_mean(values[~np.isnan(values)], resamples, seed)


def psnr(images: Blocks, reference: Blocks, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean PSNR over images, in dB, with its interval: `paired` and `mean_of_pairs`. An identical pair counts as the least
    difference that two images can have (`least_difference`); all pairs identical -> infinity.
    """
    return mean_of_pairs(paired(images, reference, (PSNR,))[PSNR.name], resamples, seed)


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

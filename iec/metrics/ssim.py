"""Structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 13, 2004, with their constants).

    SSIM(x, y) = (2 mu_x mu_y + C_1) (2 s_xy + C_2) / ((mu_x^2 + mu_y^2 + C_1) (s_x^2 + s_y^2 + C_2))
    C_1 = (0.01 L)^2,  C_2 = (0.03 L)^2,  L = 255

Means, variances and the covariance are those under a Gaussian window of 11 x 11 pixels, sigma = 1.5, whose weights sum to 1. The
score of a pair is the mean over the positions where the whole window lies inside the image, and over channels. These are the
numbers of scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
"""

import numpy as np

from iec.metrics.images.pairs import require_pairs

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim_per_image(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM of each pair of uint8 [N, H, W, C]; float64 [N] in -1 .. 1, 1 where the two images are identical, nan for images that
    are smaller than the window.

    Raises `MetricError` for another dtype or unequal shapes.
    """
    require_pairs(images, reference)
    if min(images.shape[1:3]) < WINDOW:
        return np.full(len(images), np.nan)
    x, y = (np.moveaxis(value, 3, 1).astype(np.float64) for value in (images, reference))  # N x C x H x W
    mean_x, mean_y = smoothed(x), smoothed(y)
    squares = mean_x**2 + mean_y**2
    variances = smoothed(x * x + y * y) - squares
    covariance = smoothed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (squares + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return np.asarray((luminance * structure).mean(axis=(1, 2, 3)))


def smoothed(x: np.ndarray) -> np.ndarray:
    """Means under the window, at the positions where it lies inside: [..., H, W] -> [..., H - 10, W - 10]."""
    rows, columns = (_windows(size) for size in x.shape[-2:])
    return np.asarray(rows @ (x @ columns.T))


def _windows(size: int) -> np.ndarray:
    """The window along one axis at each of its positions, [size - 10, size]: the Gaussian is a product of two of these."""
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(at**2) / (2 * SIGMA**2))
    matrix = np.zeros((size - WINDOW + 1, size))
    for k, row in enumerate(matrix):
        row[k : k + WINDOW] = weights / weights.sum()
    return matrix

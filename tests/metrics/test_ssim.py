import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics.paired import DEFAULT, PAIRED, SSIM, mean_of_pairs, paired
from iec.metrics.ssim import C1, C2, SIGMA, WINDOW, smoothed, ssim_per_image


def noisy(shape, seed=7):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, shape, dtype=np.uint8)
    return images, np.clip(images + draw.normal(0, 40, shape), 0, 255).astype(np.uint8)


def test_it_agrees_with_scikit_image():
    """structural_similarity of scikit-image 0.26 with gaussian_weights, sigma 1.5 and use_sample_covariance=False."""
    expected = [0.8792040564957703, 0.8833382745489452, 0.8791986332332457, 0.8811431717743495]
    np.testing.assert_allclose(ssim_per_image(*noisy((4, 32, 32, 3))), expected, rtol=0, atol=1e-14)


def test_it_is_the_formula_in_every_window():
    (x,), (y,) = noisy((1, 13, 12, 1))
    at = np.arange(WINDOW) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * SIGMA**2))
    window /= window.sum()
    values = []
    for row in range(3):
        for column in range(2):
            a, b = (image[row : row + WINDOW, column : column + WINDOW, 0].astype(float) for image in (x, y))
            m, n = (window * a).sum(), (window * b).sum()
            s, t, c = (window * (a - m) ** 2).sum(), (window * (b - n) ** 2).sum(), (window * (a - m) * (b - n)).sum()
            values.append((2 * m * n + C1) * (2 * c + C2) / ((m * m + n * n + C1) * (s + t + C2)))
    np.testing.assert_allclose(ssim_per_image(x[None], y[None]), [np.mean(values)], rtol=1e-12)


def test_identical_images_score_one_and_constant_ones_what_their_luminance_says():
    images, other = noisy((3, 16, 16, 3))
    np.testing.assert_array_equal(ssim_per_image(images, images), 1.0)
    assert (ssim_per_image(images, other) < 1).all()
    np.testing.assert_array_equal(ssim_per_image(images, other), ssim_per_image(other, images))
    levels = np.array([0, 0, 100], np.uint8), np.array([0, 255, 50], np.uint8)
    x, y = (np.broadcast_to(value[:, None, None, None], (3, 20, 11, 1)).copy() for value in levels)
    a, b = (value.astype(float) for value in levels)
    np.testing.assert_allclose(ssim_per_image(x, y), (2 * a * b + C1) / (a * a + b * b + C1), rtol=1e-9)


def test_an_inverted_image_scores_below_zero_and_an_image_depends_on_no_other():
    images, other = noisy((5, 32, 32, 1))
    assert (ssim_per_image(images, 255 - images) < 0).all()
    whole = ssim_per_image(images, other)
    np.testing.assert_allclose(whole, [ssim_per_image(x[None], y[None])[0] for x, y in zip(images, other, strict=True)], rtol=1e-12)


def test_the_window_keeps_a_constant_and_images_smaller_than_it_have_no_score():
    np.testing.assert_allclose(smoothed(np.full((2, 12, 11), 7.0)), np.full((2, 2, 1), 7.0))
    assert np.isnan(ssim_per_image(*noisy((2, 10, 32, 1)))).all()
    with pytest.raises(MetricError, match="Paired scores compare two uint8"):
        ssim_per_image(np.zeros((1, 16, 16, 1), np.uint8), np.zeros((1, 16, 16, 3), np.uint8))


def test_every_table_shows_it_beside_the_psnr_with_an_interval_over_images():
    assert DEFAULT == ("psnr", "ssim") and PAIRED["ssim"] is SSIM and SSIM.higher_is_better
    images, other = noisy((6, 16, 16, 3))
    values = paired([images[:4], images[4:]], [other[:4], other[4:]], [PAIRED[name] for name in DEFAULT])
    interval = mean_of_pairs(values["ssim"])
    np.testing.assert_allclose(values["ssim"], ssim_per_image(images, other), rtol=1e-12)
    assert interval.low < interval.value < interval.high < 1

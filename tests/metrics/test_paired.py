import numpy as np
import pytest

from iec.errors import ConfigError, MetricError
from iec.metrics.interval import Interval, mean_interval
from iec.metrics.paired import (
    GRAIN,
    PAIRED,
    PSNR,
    RMSE,
    PairedMetric,
    grain_per_image,
    mean_of_pairs,
    paired,
    psnr,
    psnr_per_image,
    register,
    relative_distance,
    rmse_per_image,
)

draw = np.random.default_rng(0)
REAL = draw.integers(20, 200, (6, 32, 32, 3), dtype=np.uint8)


def test_known_values():
    assert psnr_per_image(REAL, REAL + np.uint8(1)) == pytest.approx(np.full(6, 20 * np.log10(255)))
    black, white = np.zeros_like(REAL), np.full_like(REAL, 255)
    assert psnr_per_image(black, white) == pytest.approx(np.zeros(6))  # no wrap-around of bytes
    assert psnr_per_image(white, black) == pytest.approx(np.zeros(6))


def test_identical_pairs():
    assert psnr(REAL, REAL) == Interval(np.inf, np.inf, np.inf)
    nearly = REAL.copy()
    nearly[0, 0, 0, 0] += 1  # the least difference two images can have
    value, low, high = psnr(nearly, REAL)
    assert value == pytest.approx(10 * np.log10(255**2 * 3072))
    assert value == pytest.approx(83.0, abs=0.05)
    assert low == pytest.approx(value) and high == pytest.approx(value)


def test_interval_over_images():
    noisy = np.stack([np.clip(image + draw.normal(0, s, image.shape), 0, 255) for s, image in enumerate(REAL, 1)]).astype(np.uint8)
    value, low, high = psnr(noisy, REAL)
    assert value == pytest.approx(psnr_per_image(noisy, REAL).mean())
    assert low < value < high
    assert psnr(noisy, REAL) == Interval(value, low, high)
    assert psnr(iter([noisy[:4], noisy[4:]]), [REAL[:4], REAL[4:]]) == Interval(value, low, high)


def test_the_rmse_is_in_grey_levels_and_the_psnr_follows_from_it():
    assert rmse_per_image(REAL, REAL + np.uint8(3)) == pytest.approx(np.full(6, 3.0))
    other = draw.integers(0, 256, REAL.shape, dtype=np.uint8)
    np.testing.assert_allclose(psnr_per_image(other, REAL), 20 * np.log10(255 / rmse_per_image(other, REAL)))


def test_grain_is_the_share_of_faint_pixels_where_the_reference_is_black():
    reference = np.zeros((4, 10, 10, 1), np.uint8)
    reference[:3, :, 5:] = 200  # half of it is ground
    reference[3] = 1  # without ground
    images = reference.copy()
    images[1, 0, :5] = 1  # 5 of 50
    images[1, 1, 0], images[1, 2, 0] = 16, 17  # grain, and another shape
    images[1, :, 5:] = 7  # not ground
    images[2, :, :5] = 200
    np.testing.assert_allclose(grain_per_image(images, reference), [0, 12, 0, np.nan])
    colours = np.zeros((1, 2, 2, 3), np.uint8)
    colours[0, 0, 0, 2], colours[0, 1, 1] = 5, (3, 90, 3)
    assert grain_per_image(colours, np.zeros_like(colours)) == [25]


def test_clipping_hides_half_of_white_noise():
    black = np.zeros((1, 200, 200, 1), np.uint8)
    noisy = np.clip(draw.normal(0, 4, black.shape), 0, 255).round().astype(np.uint8)
    assert grain_per_image(noisy, black)[0] == pytest.approx(45, abs=1)  # P(x > 0.5) for a deviation of 4


def test_blocks_give_the_values_of_the_whole():
    images, reference = REAL.copy(), REAL // 100 * 50
    images[2] = reference[2]
    whole = paired(images, reference, (PSNR, RMSE, GRAIN))
    blocks = paired([images[:2], images[2:]], iter([reference[:2], reference[2:]]), (PSNR, RMSE, GRAIN))
    for name, values in whole.items():
        assert np.array_equal(values, blocks[name], equal_nan=True) and values.shape == (6,)
    assert whole["psnr"][2] == pytest.approx(83.0, abs=0.05) and whole["rmse"][2] == 0
    assert mean_of_pairs(np.array([1.0, np.nan, 3.0])).value == 2
    assert np.isinf(paired(REAL, REAL, (PSNR,))["psnr"]).all()


def test_a_paired_score_is_registered_once(monkeypatch):
    monkeypatch.setattr("iec.metrics.paired.PAIRED", dict(PAIRED))
    own = PairedMetric("mine", "mine", rmse_per_image)
    assert register(own) is own and register(own) is own
    with pytest.raises(ConfigError, match="give this one another name"):
        register(PairedMetric("psnr", "mine", rmse_per_image))


def test_a_difference_of_independent_intervals():
    """Two equal symmetric intervals: wider by the square root of two; the sign is known where 0 is outside."""
    a, b = Interval(10.0, 9.0, 11.0), Interval(7.0, 6.0, 8.0)
    assert tuple(a - b) == pytest.approx((3, 3 - 2**0.5, 3 + 2**0.5))
    assert ((a - b).sign, (b - a).sign, (a - a).sign, (Interval(1.0) - a).sign) == (1, -1, 0, 0)
    skewed = Interval(5.0, 5.0, 9.0) - Interval(1.0, -2.0, 1.0)
    assert tuple(skewed) == pytest.approx((4, 4, 9))  # the near ends: 0 and 0; the far ones: 4 and 3


def test_relative_distance():
    reference = draw.standard_normal((4, 3, 3, 8, 8))
    scale = np.array([0.0, 0.1, 0.2, 0.5])[:, None, None, None, None]
    distance = relative_distance(reference * (1 + scale), reference)
    assert distance.shape == (3, 4)
    np.testing.assert_allclose(distance, np.tile([0, 0.1, 0.2, 0.5], (3, 1)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(mean_interval(distance), np.tile([0, 0.1, 0.2, 0.5], (2, 1)), rtol=1e-9, atol=1e-15)


def test_relative_distance_is_per_image():
    reference = np.ones((2, 2, 1, 2, 2), np.float32)
    states = reference.copy()
    states[1, 1] += 3
    np.testing.assert_allclose(relative_distance(states, reference), [[0, 0], [0, 3]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: psnr(REAL, REAL[:5]),
        lambda: psnr(REAL.astype(np.float32), REAL),
        lambda: psnr(REAL[:0], REAL[:0]),
        lambda: psnr([], []),
        lambda: grain_per_image(REAL, REAL[:5]),
        lambda: rmse_per_image(REAL, REAL.astype(np.float32)),
        lambda: psnr([REAL[:3], REAL[3:]], [REAL[:3]]),
        lambda: psnr([REAL[:3], REAL[3:]], [REAL[:2], REAL[2:]]),
        lambda: relative_distance(np.ones((2, 1, 1, 2, 2)), np.zeros((2, 1, 1, 2, 2))),
        lambda: relative_distance(np.full((2, 1, 1, 2, 2), np.nan), np.ones((2, 1, 1, 2, 2))),
        lambda: relative_distance(np.ones((2, 1, 1, 2, 2)), np.ones((3, 1, 1, 2, 2))),
    ],
)
def test_refusals(call):
    with pytest.raises(MetricError):
        call()

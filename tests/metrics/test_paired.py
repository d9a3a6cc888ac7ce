import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics.interval import Interval, mean_interval
from iec.metrics.paired import psnr, psnr_per_image, relative_distance

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

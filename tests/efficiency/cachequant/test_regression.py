"""Streaming least squares is least squares: exact relations, large means, constant channels, official divisors."""

import numpy as np
import pytest
import torch

from iec.efficiency.cachequant import AffineRegression
from iec.errors import NonFiniteError


def fit(x, y, batch=3, row=0, rows=1, **options):
    regression = AffineRegression(rows, x.shape[1])
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        regression.add(row, a, b)
    return regression.solve(**options)


def two_pass(x, y):
    x, y = (v.double().transpose(0, 1).flatten(1).numpy() for v in (x, y))
    lines = [np.linalg.lstsq(np.stack([u, np.ones_like(u)], 1), v, rcond=None)[0] for u, v in zip(x, y, strict=True)]
    return torch.from_numpy(np.array(lines)).unbind(1)


def test_an_exact_affine_relation_is_recovered():
    x = torch.randn(7, 4, 3, 5, dtype=torch.float64)
    a, b = torch.tensor([2.0, -0.5, 0.0, 1.0]).double(), torch.tensor([0.1, 3.0, -4.0, 0.0]).double()
    found_a, found_b = fit(x, a.view(-1, 1, 1) * x + b.view(-1, 1, 1))
    torch.testing.assert_close(found_a[0], a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_b[0], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_streaming_is_the_two_pass_result_whatever_the_batches(batch):
    x = torch.randn(7, 4, 6, 5)
    y = 0.7 * x + torch.randn(7, 4, 6, 5)
    a, b = fit(x, y, batch)
    expected_a, expected_b = two_pass(x, y)
    torch.testing.assert_close(a[0], expected_a, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b[0], expected_b, rtol=1e-10, atol=1e-10)


def test_a_mean_far_above_the_deviation_costs_no_accuracy():
    """Plain sums of squares lose everything here: mean^2 / variance is 1e18."""
    x = 1e6 + 1e-3 * torch.randn(40, 2, 8, 8, dtype=torch.float64)
    slope = torch.tensor([1.5, -2.0], dtype=torch.float64)
    a, b = fit(x, slope.view(-1, 1, 1) * x - 7)
    torch.testing.assert_close(a[0], slope, rtol=1e-5, atol=0)  # the data itself holds 1e-3 to about 1e-7
    torch.testing.assert_close(a[0] * 1e6 + b[0], slope * 1e6 - 7, rtol=1e-12, atol=0)


def test_large_inputs_are_taken_in_chunks(monkeypatch):
    x, y = torch.randn(2, 5, 3, 4, 4)
    whole = fit(x, y, 5)
    monkeypatch.setattr("iec.efficiency.moments.CHUNK", 2 * 3 * 4 * 4)
    for part, expected in zip(fit(x, y, 5), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_a_channel_that_does_not_vary_is_shifted_only():
    x, y = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    x[:, 1] = 0.1  # no float sum of this is exact
    x[:, 2] = 0.0
    a, b = fit(x, y, 2)
    assert a[0, 1:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(b[0, 1], y[:, 1].double().mean() - x[0, 1, 0, 0].double())
    torch.testing.assert_close(b[0, 2], y[:, 2].double().mean())


def test_official_divisors_scale_the_slope_and_keep_the_means():
    x = torch.randn(2, 3, 2, 2)
    y = x + torch.randn(2, 3, 2, 2)
    (a, b), (official, shift) = fit(x, y), fit(x, y, official_divisors=True)
    n = 8
    torch.testing.assert_close(official, a * (n - 1) / n)
    mean_x, mean_y = (v.double().mean((0, 2, 3)) for v in (x, y))
    for slope, offset in ((a, b), (official, shift)):
        torch.testing.assert_close(slope[0] * mean_x + offset[0], mean_y)
    u, v = (w[:, 0].flatten() for w in (x, y))
    released = ((u - u.mean()) * (v - v.mean())).mean() / u.var()
    assert float(official[0, 0]) == pytest.approx(float(released), rel=1e-5)


def test_rows_are_fitted_alone_and_rows_without_pairs_are_the_identity():
    x, y = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    a, b = fit(x, y, row=1, rows=3)
    expected = fit(x, y)
    assert a[[0, 2]].eq(1).all() and b[[0, 2]].eq(0).all()
    assert torch.equal(a[1], expected[0][0]) and torch.equal(b[1], expected[1][0])


def test_values_that_are_not_finite_are_refused():
    x, y = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    y[1, 1, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError):
        fit(x, y)

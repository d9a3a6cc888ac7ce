"""`refine` against closed forms and against a transcription of the three published stopping rules."""

import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.correction import Correction, refine


def linear_target(a, m):
    """target(y) = a + m y, and a log of how many images each call evaluated."""
    calls = []

    def target(y, k, rows):
        calls.append(len(y))
        return a[rows] + m * y

    return target, calls


def test_iterates_converge_to_the_fixed_point_geometrically():
    a, m, lam = torch.randn(4, 3, 2, 2, dtype=torch.float64), -0.6, 0.5
    fixed = a / (1 - m)
    start = torch.randn_like(a)
    for k in (1, 2, 7, 40):
        target, calls = linear_target(a, m)
        y = refine(start, target, Correction(k, (lam,), tolerance=0.0))
        torch.testing.assert_close(y - fixed, (1 - lam + lam * m) ** k * (start - fixed), rtol=1e-9, atol=1e-12)
        assert calls == [4] * k


def test_undamped_iteration_solves_the_linear_equation():
    a, m = torch.randn(2, 5, dtype=torch.float64), 0.3
    target, _ = linear_target(a, m)
    y = refine(a, target, Correction(60, (1.0,), tolerance=0.0))
    torch.testing.assert_close(y, a + m * y, rtol=1e-13, atol=1e-13)


def test_a_constant_network_makes_a_correction_a_no_op():
    y = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(refine(y, lambda y, k, rows: y, Correction()), y)


def test_lambda_of_each_correction():
    target, _ = linear_target(torch.ones(1, 1, dtype=torch.float64), 0.0)
    assert refine(torch.zeros(1, 1, dtype=torch.float64), target, Correction(2, (1.0, 0.25), 0.0)).item() == 1.0
    assert refine(torch.zeros(1, 1, dtype=torch.float64), target, Correction(2, (0.5, 0.25), 0.0)).item() == 0.625


def paper_rule(y, target, k, lam, tolerance):
    for _ in range(k):
        new = y + lam * (target(y) - y)
        if torch.linalg.vector_norm(new - y) < tolerance:
            return new
        y = new
    return y


def official_rule(y, target, k, gamma, start, tolerance):
    for iteration in range(start, start + k):
        residual = target(y) - y
        if torch.norm(residual) / (torch.norm(y) + 1e-6) < tolerance:
            break
        y = y + gamma**iteration * residual
    return y


def test_paper_preset_with_a_tolerance_image_by_image():
    """Images start at different distances from the fixed point, stop at different k, and stop costing calls."""
    fixed = torch.randn(5, 6, dtype=torch.float64)
    y = fixed + torch.tensor([0.0, 1e-6, 1e-3, 0.1, 3.0], dtype=torch.float64)[:, None]
    target, calls = linear_target(fixed * 1.3, -0.3)
    correction = Correction.preset("paper", iterations=30, tolerance=1e-4)
    together = refine(y, target, correction)
    expected = [paper_rule(y[n], lambda v, n=n: fixed[n] * 1.3 - 0.3 * v, 30, 0.5, 1e-4) for n in range(5)]
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-14, atol=1e-14)
    assert calls[:2] == [5, 3] and calls == sorted(calls, reverse=True) and len(calls) < 30


@pytest.mark.parametrize(("name", "start", "k", "tolerance"), [("official_ddpm", 1, 1, 1e-3), ("official_latent", 0, 2, 1e-6)])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-5, 1e-9])
def test_official_presets_follow_the_official_loop(name, start, k, tolerance, distance):
    fixed = torch.randn(4, 6, dtype=torch.float64)
    y = fixed + distance
    target, _ = linear_target(fixed * 1.7, -0.7)
    correction = Correction.preset(name)
    assert (correction.iterations, correction.tolerance) == (k, tolerance)
    expected = official_rule(y, lambda v: fixed * 1.7 - 0.7 * v, k, 0.5, start, tolerance)
    torch.testing.assert_close(refine(y, target, correction), expected, rtol=1e-14, atol=1e-14)


def test_official_rule_keeps_the_old_iterate_and_the_papers_returns_the_new_one():
    y, near = torch.ones(1, 1, dtype=torch.float64), 1 + 1e-9
    assert refine(y, lambda y, k, rows: near * y, Correction.preset("official_ddpm")).item() == 1.0
    assert refine(y, lambda y, k, rows: near * y, Correction(3)).item() == pytest.approx(1 + 0.5e-9, abs=1e-15)


def test_batch_norm_couples_images_and_image_norm_does_not():
    fixed = torch.zeros(2, 3, dtype=torch.float64)
    y = torch.tensor([[1e-7] * 3, [1.0] * 3], dtype=torch.float64)
    for norm, moved in [("batch", True), ("image", False)]:
        target, _ = linear_target(fixed, 0.0)
        done = refine(y, target, Correction(5, (0.5,), 1e-5, norm=norm))
        assert (done[0, 0].item() < 0.5**2 * 1e-7) == moved


def test_no_iterations_return_the_ordinary_step():
    y = torch.randn(2, 2)
    assert refine(y, None, Correction(0)) is y


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Correction(-1), "iterations=-1"),
        (lambda: Correction(lambdas=(-0.5,)), "lambda"),
        (lambda: Correction(lambdas=(float("nan"),)), "lambda"),
        (lambda: Correction(3, (0.5, 0.5)), "2 values for 3"),
        (lambda: Correction(tolerance=-1.0), "tolerance"),
        (lambda: Correction(norm="all"), "norm"),
        (lambda: Correction(cache_from="middle"), "cache_from"),
        (lambda: Correction.preset("mine"), "paper"),
    ],
)
def test_bad_corrections_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()

"""The one rule, `update`, against closed forms and against a transcription of the published stopping rules."""

import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.correction import PRESETS, Correction, keep, none_frozen, update


def iterates(y, target, correction):
    """[(y, frozen)] after 0 .. K corrections of the whole batch."""
    states = [(y, none_frozen(y))]
    for k in range(1, correction.iterations + 1):
        y, frozen = states[-1]
        states.append(update(y, target(y), k, correction, frozen))
    return states


def refine(y, target, correction):
    return iterates(y, target, correction)[-1][0]


def linear(a, m):
    return lambda y: a + m * y


def test_iterates_converge_to_the_fixed_point_geometrically():
    a, m, lam = torch.randn(4, 3, 2, 2, dtype=torch.float64), -0.6, 0.5
    fixed = a / (1 - m)
    start = torch.randn_like(a)
    for k in (1, 2, 7, 40):
        y = refine(start, linear(a, m), Correction(k, (lam,), tolerance=0.0))
        torch.testing.assert_close(y - fixed, (1 - lam + lam * m) ** k * (start - fixed), rtol=1e-9, atol=1e-12)


def test_undamped_iteration_solves_the_linear_equation():
    a, m = torch.randn(2, 5, dtype=torch.float64), 0.3
    y = refine(a, linear(a, m), Correction(60, (1.0,), tolerance=0.0))
    torch.testing.assert_close(y, a + m * y, rtol=1e-13, atol=1e-13)


def test_a_constant_network_makes_a_correction_a_no_op():
    y = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(refine(y, lambda y: y, Correction()), y)


def test_lambda_of_each_correction():
    zero, target = torch.zeros(1, 1, dtype=torch.float64), linear(1.0, 0.0)
    assert refine(zero, target, Correction(2, (1.0, 0.25), 0.0)).item() == 1.0
    assert refine(zero, target, Correction(2, (0.5, 0.25), 0.0)).item() == 0.625


def stopped(y, target, correction):
    """What is published, for what is normed as one: an image (paper, Algorithm 1), or the batch (the official loop, which breaks
    before it updates)."""
    for k in range(1, correction.iterations + 1):
        residual, weight = target(y) - y, correction.lambda_of(k)
        if correction.criterion == "residual" and torch.norm(residual) / (torch.norm(y) + 1e-6) < correction.tolerance:
            return y
        y = y + weight * residual
        if correction.criterion == "change" and torch.norm(weight * residual) < correction.tolerance:
            return y
    return y


@pytest.mark.parametrize("norm", ["image", "batch"])
@pytest.mark.parametrize("criterion", ["change", "residual"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_frozen_batch_is_its_images_one_by_one(k, criterion, norm, scale):
    """Bit for bit. Images start at different distances from the fixed point and stop at different k; with a small scale all do."""
    fixed = torch.randn(5, 6, dtype=torch.float64)
    distances = scale * torch.tensor([0.0, 1e-5, 7e-4, 2e-3, 3.0], dtype=torch.float64)
    start, correction = fixed + distances[:, None], Correction(k, (0.5,), 1e-3, criterion, norm)
    states = iterates(start, lambda y: fixed + 0.3 * (fixed - y), correction)
    units = [slice(None)] if norm == "batch" else [slice(n, n + 1) for n in range(5)]
    expected = [stopped(start[u], lambda y, u=u: fixed[u] + 0.3 * (fixed[u] - y), correction) for u in units]
    assert torch.equal(states[-1][0], torch.cat(expected))
    counts = [int(frozen.sum()) for _, frozen in states]
    assert counts == sorted(counts) and counts[0] == 0  # once frozen, always
    if scale < 1:
        assert counts[-1] == 5
    else:
        assert counts[-1] == 0 if norm == "batch" else 0 < counts[1] <= counts[-1] < 5


def test_frozen_images_keep_their_bits_whatever_the_network_says_of_them():
    y, frozen = torch.randn(3, 4), torch.tensor([False, True, False])
    for criterion in ("change", "residual"):
        new, after = update(y, y + 1, 2, Correction(3, tolerance=1e-5, criterion=criterion), frozen)
        assert torch.equal(new[1], y[1]) and torch.equal(after, frozen)
        assert torch.equal(new[::2], y[::2] + 0.5 * (y[::2] + 1 - y[::2]))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_single_correction_that_converges_nowhere_is_the_plain_formula(preset):
    """Bit for bit: with any preset, with a tolerance and without."""
    y, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    correction = Correction.preset(preset, iterations=1)
    for tolerance in (correction.tolerance, 0.0):
        new, frozen = update(y, target, 1, Correction.preset(preset, iterations=1, tolerance=tolerance), none_frozen(y))
        assert torch.equal(new, y + correction.lambda_of(1) * (target - y)) and not frozen.any()


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4, 5, 5)])
def test_keep_selects_images_of_any_shape(shape):
    old, new = torch.zeros(shape), torch.ones(shape)
    kept = keep(torch.tensor([True, False, True]), old, new)
    assert torch.equal(kept[::2], old[::2]) and torch.equal(kept[1], new[1])


def official_rule(y, target, k, gamma, start, tolerance):
    for iteration in range(start, start + k):
        residual = target(y) - y
        if torch.norm(residual) / (torch.norm(y) + 1e-6) < tolerance:
            break
        y = y + gamma**iteration * residual
    return y


@pytest.mark.parametrize(("name", "start", "k", "tolerance"), [("official_ddpm", 1, 1, 1e-3), ("official_latent", 0, 2, 1e-6)])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-5, 1e-9])
def test_official_presets_follow_the_official_loop(name, start, k, tolerance, distance):
    fixed = torch.randn(4, 6, dtype=torch.float64)
    y = fixed + distance
    correction = Correction.preset(name)
    assert (correction.iterations, correction.tolerance) == (k, tolerance)
    expected = official_rule(y, linear(fixed * 1.7, -0.7), k, 0.5, start, tolerance)
    torch.testing.assert_close(refine(y, linear(fixed * 1.7, -0.7), correction), expected, rtol=1e-14, atol=1e-14)


def test_official_rule_keeps_the_old_iterate_and_the_papers_returns_the_new_one():
    y, near = torch.ones(1, 1, dtype=torch.float64), 1 + 1e-9
    assert refine(y, lambda y: near * y, Correction.preset("official_ddpm")).item() == 1.0
    assert refine(y, lambda y: near * y, Correction(3)).item() == pytest.approx(1 + 0.5e-9, abs=1e-15)


def test_batch_norm_couples_images_and_image_norm_does_not():
    fixed = torch.zeros(2, 3, dtype=torch.float64)
    y = torch.tensor([[1e-7] * 3, [1.0] * 3], dtype=torch.float64)
    for norm, moved in [("batch", True), ("image", False)]:
        done = refine(y, linear(fixed, 0.0), Correction(5, (0.5,), 1e-5, norm=norm))
        assert (done[0, 0].item() < 0.5**2 * 1e-7) == moved


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

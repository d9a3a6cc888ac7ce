"""Norms and radii against dense linear algebra."""

import itertools

import pytest
import torch

from iec.analysis.krylov import bidiagonal, converge, hessenberg, largest_singular_value, settled, shifted, spectral_radius

SHAPE = (2, 2, 3)
D = 12


def products(matrices):
    return (
        lambda v: torch.einsum("bij,bj->bi", matrices, v.flatten(1)).view_as(v),
        lambda v: torch.einsum("bji,bj->bi", matrices, v.flatten(1)).view_as(v),
    )


def start(batch=3, shape=SHAPE):
    return torch.randn(batch, *shape, dtype=torch.float64)


def test_the_largest_singular_value_equals_that_of_dense_algebra():
    m = torch.randn(3, D, D, dtype=torch.float64)
    found = largest_singular_value(*products(m), start(), tolerance=1e-9)
    torch.testing.assert_close(found.value, torch.linalg.matrix_norm(m, 2), rtol=1e-8, atol=0)
    assert found.converged.all()


def test_the_whole_small_matrix_has_the_singular_values_after_d_steps():
    m = torch.randn(3, D, D, dtype=torch.float64)
    *_, small = itertools.islice(bidiagonal(*products(m), start()), D)
    torch.testing.assert_close(torch.linalg.svdvals(small), torch.linalg.svdvals(m), rtol=1e-8, atol=1e-10)


def test_an_outlier_five_percent_above_thousands_of_others_is_found():
    """In fewer products than plain power iteration needs."""
    spectrum = torch.cat([torch.linspace(0.5, 1, 3071, dtype=torch.float64), torch.tensor([1.05], dtype=torch.float64)])

    def times(v):
        return spectrum.view(3, 32, 32) * v

    found = largest_singular_value(times, times, start(1, (3, 32, 32)))
    assert found.converged.all()
    assert found.value.item() == pytest.approx(1.05, rel=1e-3)

    def power(v):
        while True:
            v = times(times(v / v.norm()))
            yield v.flatten(1).norm(dim=1).sqrt()

    naive = converge(power(start(1, (3, 32, 32))), max_iterations=found.iterations)
    assert naive.value.item() < 0.98 * found.value.item()


def test_arnoldi_gives_the_radius_and_a_lower_bound_of_the_norm():
    m = torch.randn(3, D, D, dtype=torch.float64)
    steps = list(itertools.islice(hessenberg(products(m)[0], start()), D))
    norms = torch.linalg.matrix_norm(m, 2)
    bounds = torch.stack([torch.linalg.matrix_norm(h, 2) for h in steps])
    assert (bounds <= norms + 1e-9).all()
    assert (bounds.diff(dim=0) >= -1e-9).all()
    torch.testing.assert_close(bounds[-1], norms, rtol=1e-8, atol=0)
    torch.testing.assert_close(spectral_radius(steps[-1]), torch.linalg.eigvals(m).abs().amax(1), rtol=1e-8, atol=0)


def test_one_arnoldi_run_serves_all_shifts():
    m, c, b = torch.randn(3, D, D, dtype=torch.float64), 0.3, -0.7
    whole = c * torch.eye(D, dtype=torch.float64) + b * m
    first = start()
    for h, other in itertools.islice(zip(hessenberg(products(m)[0], first), hessenberg(products(whole)[0], first), strict=True), 8):
        torch.testing.assert_close(torch.linalg.svdvals(shifted(h, c, b)), torch.linalg.svdvals(other))


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_multiple_of_the_identity_exhausts_the_space_at_once(value):
    def times(v):
        return value * v

    assert largest_singular_value(times, times, start()).value.tolist() == pytest.approx([value] * 3)
    *_, h = itertools.islice(hessenberg(times, start()), 3)
    assert torch.linalg.matrix_norm(h, 2).tolist() == pytest.approx([value] * 3)


def test_one_or_two_equal_estimates_are_not_enough_to_have_settled():
    def history(*values):
        return [torch.tensor([v]) for v in values]

    assert not settled(history(1.0, 1.0, 1.0), 1e-3).item()
    assert settled(history(1.0, 1.0, 1.0, 1.0005), 1e-3).item()
    assert not settled(history(1.0, 1.0, 1.0, 1.0, 1.01), 1e-3).item()


def test_what_has_not_settled_is_said_to_be_unconverged():
    m = torch.randn(3, 200, 200, dtype=torch.float64)
    found = largest_singular_value(*products(m), start(3, (200,)), tolerance=1e-12, max_iterations=6)
    assert not found.converged.any()
    assert found.iterations == 6

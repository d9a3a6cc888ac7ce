"""Norms of steps of linear networks against dense matrices; networks that have no derivative are refused."""

import pytest
import torch

from iec.analysis.norms import STEP_MATRIX, Matrix, Options, family, spectra
from iec.correctors.es import EpsilonScaling
from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.network import Prediction
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.analysis.conftest import D, apply, exact, jacobian

TIGHT = {"tolerance": 1e-10, "max_iterations": 30}
EYE = torch.eye(D, dtype=torch.float64)


def skew():
    return torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def lopsided(x, step, cond=None, cache=None):
    """J is not symmetric."""
    return Prediction(apply(skew(), x))


def test_gaussian_data_has_the_norms_of_its_covariance(make_setup, table):
    found = dict(spectra(make_setup(exact), 0, range(3), [0, 4, 9], Options((0.5,), **TIGHT)))
    for i, matrices in found.items():
        step = table.A[i] * EYE + table.B[i] * jacobian(table.pairs[i][0])
        contraction = 0.5 * EYE + 0.5 * table.B[i] * jacobian(table.pairs[i][0])
        for label, dense in ((STEP_MATRIX, step), ("grad G, lambda = 0.5", contraction)):
            norm, bound, radius = matrices[label]
            expected = [torch.linalg.matrix_norm(dense, 2).item()] * 3
            for estimate in (norm, bound, radius):  # equal, because J is symmetric
                assert estimate.value.tolist() == pytest.approx(expected, rel=1e-8)
                assert estimate.converged.all()


def test_without_symmetry_the_norm_is_above_the_radius_and_the_bound_below_the_norm(make_setup, table):
    ((_, matrices),) = spectra(make_setup(lopsided), 0, range(2), [3], Options((0.7,), **TIGHT))
    for label, c, b in ((STEP_MATRIX, table.A[3], table.B[3]), ("grad G, lambda = 0.7", 0.3, 0.7 * table.B[3])):
        dense = c * EYE + b * skew()
        norm, bound, radius = matrices[label]
        assert norm.value.tolist() == pytest.approx([torch.linalg.matrix_norm(dense, 2).item()] * 2, rel=1e-7)
        assert radius.value.tolist() == pytest.approx([torch.linalg.eigvals(dense).abs().max().item()] * 2, rel=1e-7)
        assert (bound.value <= norm.value * (1 + 1e-9)).all()
        assert (radius.value < norm.value).all()


def test_the_transposed_product_is_that_of_the_transpose():
    """J = 10 u v^T with orthogonal u and v in 192 dimensions: only J^T leads from u back to v."""
    u, v = torch.linalg.qr(torch.randn(192, 2, dtype=torch.float64))[0].T

    def eps(x):
        return 10 * (x.flatten(1) @ v)[:, None, None, None] * u.view(3, 8, 8)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = family(eps, x, [Matrix("J", 0.1, 1.0)], torch.randn_like(x), Options(tolerance=1e-6, max_iterations=12))["J"]
    dense = 0.1 * torch.eye(192, dtype=torch.float64) + 10 * torch.outer(u, v)
    assert found.norm.converged.all()
    assert found.norm.value.tolist() == pytest.approx([torch.linalg.matrix_norm(dense, 2).item()] * 2, rel=1e-6)


def test_differences_give_no_norm_but_the_bound(make_setup):
    ((_, matrices),) = spectra(make_setup(lopsided), 0, range(2), [3], Options((), "difference", **TIGHT))
    ((_, exactly),) = spectra(make_setup(lopsided), 0, range(2), [3], Options((), **TIGHT))
    assert matrices[STEP_MATRIX].norm is None
    torch.testing.assert_close(matrices[STEP_MATRIX].bound.value, exactly[STEP_MATRIX].bound.value, rtol=1e-6, atol=0)


def test_a_nonlinear_network_is_differentiated_at_the_state_and_at_the_iterate(make_setup, table):
    def cubic(x, step, cond=None, cache=None):
        return Prediction(0.1 * x**3)

    setup = make_setup(cubic)
    ((_, matrices),) = spectra(setup, 0, (0, 1), [0], Options((0.5,), **TIGHT))
    x = setup.noise(0, (0, 1)).initial()
    after = table.A[0] * x + table.B[0] * 0.1 * x**3
    step = (table.A[0] + table.B[0] * 0.3 * x**2).abs().flatten(1).amax(1)
    contraction = (0.5 + 0.5 * table.B[0] * 0.3 * after**2).abs().flatten(1).amax(1)
    assert matrices[STEP_MATRIX].norm.value.tolist() == pytest.approx(step.tolist(), rel=1e-8)
    assert matrices["grad G, lambda = 0.5"].norm.value.tolist() == pytest.approx(contraction.tolist(), rel=1e-8)


def test_a_cached_step_keeps_its_feature_fixed(make_setup, table):
    """Full calls depend on x by 5, of which a cached call sees 1."""

    def caching(x, step, cond=None, cache=None):
        feature = 4 * x if step.mode == "full" else cache.feature
        return Prediction(x + feature, feature if step.mode == "full" else None)

    setup = make_setup(caching, refresh=frozenset({0, 5}))
    found = dict(spectra(setup, 0, (0,), [5, 6], Options((), **TIGHT)))
    for i, slope in ((5, 5), (6, 1)):
        assert found[i][STEP_MATRIX].norm.value.item() == pytest.approx(abs(table.A[i] + slope * table.B[i]), rel=1e-9)


def test_the_scale_of_eps_is_part_of_b(make_setup, table):
    ((_, matrices),) = spectra(make_setup(exact, epsilon_scale=1.25), 0, (0,), [2], Options((), **TIGHT))
    dense = table.A[2] * EYE + table.B[2] / 1.25 * jacobian(table.pairs[2][0])
    assert matrices[STEP_MATRIX].norm.value.item() == pytest.approx(torch.linalg.matrix_norm(dense, 2).item(), rel=1e-8)


def test_a_corrector_is_refused(make_setup):
    with pytest.raises(ConfigError, match="Use corrector=none"):
        next(spectra(make_setup(exact, corrector=EpsilonScaling(1.0, 0.001)), 0, (0,), [2]))


def test_images_do_not_depend_on_their_batch_mates_nor_the_path_on_the_steps(make_setup):
    def cubic(x, step, cond=None, cache=None):
        return Prediction(0.1 * x**3)

    setup = make_setup(cubic, correction=Correction(), placement=Placement("all_steps"))
    both = dict(spectra(setup, 0, (0, 1), [2, 4], Options((), **TIGHT)))
    alone = dict(spectra(setup, 0, (1,), [4], Options((), **TIGHT)))
    assert both[4][STEP_MATRIX].norm.value[1].item() == pytest.approx(alone[4][STEP_MATRIX].norm.value.item(), rel=1e-9)


def test_rounding_is_refused_and_differences_see_its_mean_slope(make_setup):
    def rounding(x, step, cond=None, cache=None):
        return Prediction((2 * x / 1e-4).round() * 1e-4)

    with pytest.raises(ConfigError, match=r"it rounds.*derivative=difference"):
        list(spectra(make_setup(rounding), 0, (0,), [0]))
    setup = make_setup(rounding)
    ((_, matrices),) = spectra(setup, 0, (0,), [0], Options((), "difference", relative=0.1))
    A, B = setup.sampler.timetable.A[0], setup.sampler.timetable.B[0]
    assert matrices[STEP_MATRIX].bound.value.item() == pytest.approx(abs(A + 2 * B), rel=1e-2)


def test_a_network_that_stops_gradients_is_refused(make_setup):
    def opaque(x, step, cond=None, cache=None):
        return Prediction(torch.from_numpy(2 * x.detach().numpy()))

    with pytest.raises(ConfigError, match="derivative=difference"):
        list(spectra(make_setup(opaque), 0, (0,), [0]))


@pytest.mark.parametrize(
    "options",
    [{"lambdas": (0.0,)}, {"derivative": "autograd"}, {"tolerance": 0}, {"max_iterations": 3}],
)
def test_options_that_cannot_be_run_are_refused(options):
    with pytest.raises(ConfigError):
        Options(**options)


def test_steps_that_do_nothing_are_refused_before_anything_is_computed(make_setup):
    table = Timetable(((800, 400), (400, 400), (400, -1)), NoiseSchedule())
    calls = []

    def network(x, step, cond=None, cache=None):
        calls.append(step)
        return exact(x, step)

    for steps in ([1], [3], [-1]):
        with pytest.raises(ConfigError, match="change nothing"):
            list(spectra(make_setup(network, timetable=table), 0, (0,), steps))
    assert not calls

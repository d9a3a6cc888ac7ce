"""Errors of Gaussian data with an artificial error in every step, against the recursion in closed form."""

import numpy as np
import pytest
import torch

from iec.analysis.errors import errors
from iec.analysis.growth import growth
from iec.sampling.correction import Correction
from iec.sampling.network import Prediction
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.analysis.conftest import D, disturbed, exact, injected, jacobian

EYE = torch.eye(D, dtype=torch.float64)


@pytest.mark.parametrize("lam", [None, 0.5])
def test_the_parts_and_their_growth_follow_the_recursion(make_setup, table, lam):
    """d' = M d + B e with M = A I + B J; a correction turns M into (1 - lambda) M + lambda (A I + B J M), and B e likewise."""
    placement = Placement("none") if lam is None else Placement("all_steps")
    setup = make_setup(correction=Correction(1, (lam or 0.5,)), placement=placement)
    found = errors(setup, setup.sampler, 0, range(3))
    clean = make_setup(exact).reference_states(0, range(3))
    deviation = torch.zeros(3, D, dtype=torch.float64)
    for i, (t, _) in enumerate(table.pairs):
        A, B, J, x = table.A[i], table.B[i], jacobian(t), clean[i].flatten(1)
        step, error = A * EYE + B * J, B * injected(i).expand(3, D)
        if lam is not None:
            ordinary = x @ step.T + error  # x^(0) from the reference's state
            again = A * x + B * ordinary @ J.T + error
            error = (1 - lam) * ordinary + lam * again - x @ (A * EYE + B * J).T  # also what the rule does without any error
            step = (1 - lam) * step + lam * (A * EYE + B * J @ step)
        carried = deviation @ step.T
        size = clean[i + 1].flatten(1).norm(dim=1)
        np.testing.assert_allclose(found.made[:, i], error.norm(dim=1) / size, rtol=1e-9)
        np.testing.assert_allclose(found.carried[:, i], carried.norm(dim=1) / size, rtol=1e-9, atol=1e-15)
        if i:
            np.testing.assert_allclose(found.growth[:, i], carried.norm(dim=1) / deviation.norm(dim=1), rtol=1e-9)
        deviation = carried + error
        np.testing.assert_allclose(found.total[:, i + 1], deviation.norm(dim=1) / size, rtol=1e-9)
    assert np.isnan(found.growth[:, 0]).all()
    assert found.effective == tuple(range(10))


def test_data_of_one_variance_grow_by_the_known_factors(make_setup, table):
    """With Sigma = v I an error made once, at step 0, is multiplied by A + B J; the fit and the amplification must say so."""
    v = 0.25

    def slope(t):
        a = NoiseSchedule().at(t)
        return (1 - a) ** 0.5 / (a * v + 1 - a)

    def network(x, step, cond=None, cache=None):
        return Prediction(slope(step.timestep) * x + (0.1 if step.index == 0 and cond is not None else 0.0))

    def wrong(x, step, cond=None, cache=None):
        return network(x, step, x, cache)

    setup = make_setup(wrong)
    setup = type(setup)(network, wrong, setup.sampler, setup.shape)
    found = errors(setup, setup.sampler, 0, range(4))
    factors = np.array([table.A[i] + table.B[i] * slope(t) for i, (t, _) in enumerate(table.pairs)])
    np.testing.assert_allclose(found.growth[:, 1:], np.broadcast_to(factors[1:], (4, 9)), rtol=1e-9)
    amplification = growth(found).amplification
    assert amplification.value == pytest.approx(np.exp(np.log(factors[1:]).mean()))
    assert amplification.low == pytest.approx(amplification.high)  # all images alike


def test_a_cached_error_counts_as_made_at_the_step_that_reuses_the_feature(make_setup, table):
    """Exact but for the reuse: step 1 of a pair gets the feature of step 0; from reference states this is what it makes, whatever
    the run's own feature is."""

    def caching(x, step, cond=None, cache=None):
        feature = exact(x, step).eps if step.mode == "full" else cache.feature
        return Prediction(feature, feature if step.mode == "full" else None)

    refresh = frozenset(range(0, 10, 2))
    setup = make_setup(caching, refresh=refresh)
    found = errors(setup, setup.sampler, 0, range(2))
    clean = make_setup(exact).reference_states(0, range(2))
    for i, (t, _) in enumerate(table.pairs):
        if i in refresh:
            assert found.made[:, i] == pytest.approx(0, abs=1e-12)
            continue
        stale = clean[i - 1].flatten(1) @ jacobian(table.pairs[i - 1][0]).T
        fresh = clean[i].flatten(1) @ jacobian(t).T
        made = (table.B[i] * (stale - fresh)).norm(dim=1) / clean[i + 1].flatten(1).norm(dim=1)
        np.testing.assert_allclose(found.made[:, i], made, rtol=1e-9)
    assert (found.carried[:, :2] == 0).all()


def test_a_step_that_changes_nothing_has_no_growth(make_setup):
    table = Timetable(((800, 400), (400, 400), (400, -1)), NoiseSchedule())
    setup = make_setup(disturbed, timetable=table)
    found = errors(setup, setup.sampler, 0, range(2))
    assert found.effective == (0, 2)
    assert np.isnan(found.growth[:, 1]).all()
    np.testing.assert_array_equal(found.total[:, 2], found.total[:, 1])


def test_the_reference_states_may_be_given(make_setup):
    setup = make_setup()
    one = errors(setup, setup.corrected, 0, range(2))
    other = errors(setup, setup.corrected, 0, range(2), setup.reference_states(0, range(2)))
    np.testing.assert_array_equal(one.total, other.total)
    assert not np.array_equal(one.total, errors(setup, setup.plain, 0, range(2)).total)


def test_the_plain_and_the_corrected_sampler_of_either_kind_of_setup(make_setup):
    own = make_setup(correction=Correction(1, (0.3,)), placement=Placement("first_step"))
    assert own.plain.corrected == frozenset()
    assert own.corrected is own.sampler
    none = make_setup(refresh=frozenset({0, 4}))
    assert none.corrected.corrected == {0, 4}
    assert none.corrected.correction == Correction()
    assert none.full_precision.refresh is None

"""The numbers that say whether a correction will pay: their formulas, and what they agree in."""

from dataclasses import asdict

import numpy as np
import pytest

from iec.analysis.pays import PREDICTORS, Payoff, measure
from iec.analysis.suggest import final_errors
from iec.analysis.walk import Once, walk
from iec.errors import ConfigError
from iec.sampling.timetable import Timetable
from tests.analysis.conftest import SCHEDULE, exact

IMAGES = range(3)


def norm(x):
    return np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)


def test_they_are_their_formulas(make_setup):
    setup = make_setup()
    steps = list(walk(setup, 5, IMAGES, Once(setup.network), Once(setup.reference)))
    b, u, e, v = (
        np.stack([getattr(step, name).numpy() for step in steps])
        for name in ("error", "displacement", "clean_error", "clean_displacement")
    )
    payoff = measure(setup, 5, IMAGES)
    squares = [np.square(x).sum(axis=(0, 2, 3, 4)) for x in (b, b + u)]
    np.testing.assert_allclose(payoff.one_step, 10 * np.log10(squares[0] / squares[1]))
    np.testing.assert_allclose(payoff.propagated, 20 * np.log10(norm(e.sum(0)) / norm((e + v).sum(0))))
    sums = [sum(norm(x) for x in b), sum(norm(step.bias) for step in steps)]
    np.testing.assert_allclose(payoff.error_over_bias, 20 * np.log10(sums[0] / sums[1]))
    plain, corrected = final_errors(setup, [setup.plain, setup.corrected], 5, IMAGES)
    np.testing.assert_allclose(payoff.pilot, 20 * np.log10(plain / corrected))
    np.testing.assert_allclose(payoff.removed, -((b * u).sum((2, 3, 4)) / np.square(b).sum((2, 3, 4))).T)
    total = e.sum(0)
    for found, parts in ((payoff.made, e), (-payoff.taken, v)):
        np.testing.assert_allclose(found, ((parts * total).sum((2, 3, 4)) / np.square(total).sum((1, 2, 3))).T)
    np.testing.assert_allclose(payoff.made.sum(axis=1), 1)
    np.testing.assert_allclose(payoff.error[:, 4], norm(b[4]))
    assert payoff.walk_calls.tolist() == [3 * 10, 0, 3 * 10, 3 * (10 + 9 + 9 + 10)]
    assert payoff.pilot_calls.tolist() == [2 * 3 * 10, 0, 3 * 10, 3 * 10]


def test_in_a_run_of_one_step_the_predictions_are_the_outcome(make_setup):
    payoff = measure(make_setup(timetable=Timetable.from_timesteps((700,), SCHEDULE)), 5, IMAGES)
    np.testing.assert_allclose(payoff.propagated, payoff.pilot)
    np.testing.assert_allclose(payoff.one_step, payoff.pilot)


def test_images_of_several_batches_are_those_of_one(make_setup):
    setup = make_setup()
    whole, parts = measure(setup, 5, IMAGES), [asdict(measure(setup, 5, own)) for own in (range(2), range(2, 3))]
    for name, value in asdict(Payoff.joined(parts)).items():
        np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-9, equal_nan=True)


def test_a_network_without_error_is_refused_and_one_with_an_error_is_not(make_setup):
    with pytest.raises(ConfigError, match="nothing to correct. Use a coarser technique"):
        measure(make_setup(exact), 5, IMAGES)
    payoff = measure(make_setup(), 5, IMAGES)
    assert all(np.isfinite(getattr(payoff, name)).all() for name in PREDICTORS)

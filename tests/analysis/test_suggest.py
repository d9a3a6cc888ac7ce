"""The first-order model against runs, and suggestions whose right answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from iec.analysis.heldout import ends, held_out
from iec.analysis.setup import Setup, final_errors
from iec.analysis.state import State
from iec.analysis.suggest import (
    SEED,
    Responses,
    Suggestion,
    eligible,
    greedy,
    probe,
    suggest,
    suggest_for,
    with_steps,
)
from iec.efficiency.prepare import CALIBRATION_SEED
from iec.errors import ConfigError
from iec.metrics.interval import Interval
from iec.models import load_model
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.analysis.conftest import SHAPE, exact

IMAGES = range(4)


def wrong_first_calls(*steps):
    """Exact, but for a large error in the ordinary call of some steps, which their corrections do not make."""

    def network(x, step, cond=None, cache=None):
        eps = exact(x, step).eps
        return Prediction(eps + 0.5 * (1 + x) if step.index in steps and not step.correction else eps)

    return network


def caching(x, step, cond=None, cache=None):
    """A feature that corrections leave something else of."""
    feature = exact(x, step).eps * (1.2 if step.correction else 0.8) if step.mode == "full" else cache.feature
    return Prediction(0.5 * exact(x, step).eps + 0.5 * feature, feature if step.mode == "full" else None)


def run_squared(setup, steps, lam):
    (errors,) = final_errors(setup, [with_steps(setup.sampler, steps, lam)], SEED, IMAGES)
    return np.square(errors).mean()


def test_a_last_step_that_is_not_to_be_corrected_is_not_suggested(make_setup):
    sampler = make_setup(exact).sampler
    assert eligible(replace(sampler, placement=Placement("first_last", count=1, last_step="skip"))) == eligible(sampler)[:-1]


@pytest.mark.parametrize(("network", "refresh"), [(wrong_first_calls(2, 5), None), (caching, frozenset({0, 3, 7}))])
def test_one_correction_alone_is_predicted_exactly_on_linear_networks(make_setup, network, refresh):
    setup = make_setup(network, refresh=refresh)
    steps = eligible(setup.sampler)
    assert steps == tuple(sorted(refresh)) if refresh else tuple(range(10))
    responses = probe(setup, steps, SEED, IMAGES)
    before = run_squared(setup, (), 0.5)
    for lam in (0.2, 1.0):
        for step, gain in zip(steps, responses.gains(lam), strict=True):
            assert 1 - run_squared(setup, (step,), lam) / before == pytest.approx(gain, abs=1e-9)


def test_the_wanted_lambda_is_the_minimum_of_the_parabola(make_setup):
    responses = probe(make_setup(caching, refresh=frozenset({0, 3, 7})), (0, 3), SEED, IMAGES)
    for k, best in enumerate(responses.best):

        def squared(lam, k=k):
            return np.square(responses.base + responses.offset[k] + lam * responses.slope[k]).sum(-1).mean()

        assert squared(best) < min(squared(best - 1e-3), squared(best + 1e-3))


def test_the_step_that_is_wrong_is_the_one_suggested(make_setup):
    setup = make_setup(wrong_first_calls(4))
    found = suggest_for(setup, images=4, lambdas=(0.3, 0.9), budget=1)
    assert found.steps == (4,)
    assert found.lam == 0.9
    assert found.overrides == "iec=all_steps iec.placement=explicit iec.steps=[4] iec.lambda=0.9"
    assert found.measured.high < 0
    assert found.suggested.corrected == {4}
    assert "| 4 |" in found.table((0.3, 0.9)).splitlines()[2]


def test_nothing_is_suggested_where_corrections_only_harm(make_setup):
    def network(x, step, cond=None, cache=None):
        eps = exact(x, step).eps
        return Prediction(eps + 3 if step.correction else eps + 0.01)

    found = suggest_for(make_setup(network), images=4)
    assert found.steps == ()
    assert found.overrides == "iec=none"
    assert found.suggested.corrected == frozenset()
    assert (found.responses.gains(0.5) < 0).all()


def test_what_the_prediction_gets_wrong_is_given_up_after_the_run(make_setup):
    """Every correction helps by itself, and more than one in a run goes astray."""
    made = {"corrections": 0}

    def fragile(x, step, cond=None, cache=None):
        if step.index == 0 and not step.correction:
            made["corrections"] = 0
        made["corrections"] += bool(step.correction)
        return Prediction(exact(x, step).eps + 0.2 * (not step.correction) + 50.0 * (made["corrections"] > 1))

    found = suggest_for(make_setup(fragile), images=4, lambdas=(0.5,))
    assert len(found.considered) > 1
    assert found.predicted < 0 < found.measured.low
    assert found.steps == ()


def test_greedy_adds_the_best_step_first_and_stops_where_none_helps_the_images_as_a_whole():
    rng = np.random.default_rng(0)
    base = np.ones((50, 2))
    slope = np.stack([np.tile([-0.5, 0.0], (50, 1)), np.tile([0.0, -0.9], (50, 1)), 0.3 * rng.standard_normal((50, 2))])
    responses = Responses((3, 5, 8), base, np.zeros_like(slope), slope)
    steps, change = greedy(responses, 1.0, 3)
    assert steps == (5, 3)
    assert change == pytest.approx((0.5**2 + 0.1**2) / 2 - 1)
    assert greedy(responses, 1.0, 1)[0] == (5,)


def test_a_suggestion_is_tested_on_other_seeds_at_equal_calls(make_setup):
    setup = make_setup(wrong_first_calls(4, 5))
    found = suggest_for(setup, images=4, lambdas=(0.9,), budget=2)
    lines = {line.label: line for line in held_out(setup, found, 7, range(6))}
    assert set(found.steps) == {4, 5}
    assert lines["first and last, as many calls"].steps == (0, 9)
    counts = {label: line.corrections for label, line in lines.items()}
    assert counts == {"suggestion": 2, "none": 0, "first and last, as many calls": 2, "all steps": 10}
    for label in ("none", "first and last, as many calls"):
        assert lines[label].change.high < 0
    base, own = final_errors(setup, [setup.plain, found.suggested], 7, range(6))
    assert lines["none"].error.value == pytest.approx(base.mean())
    assert lines["none"].change.value == pytest.approx(own.mean() / base.mean() - 1)
    with pytest.raises(ConfigError, match="test it on another"):
        held_out(setup, found, SEED, range(6))


@pytest.mark.parametrize(("count", "expected"), [(1, (2,)), (2, (2, 9)), (3, (2, 4, 9)), (5, (2, 4, 6, 8, 9))])
def test_the_default_at_equal_calls_takes_the_ends(count, expected):
    assert ends((2, 4, 6, 8, 9), count) == expected


def test_the_rest_of_the_rule_is_kept_and_named(make_setup):
    placement = Placement("all_steps", cached_steps="cached")
    correction = Correction(1, (0.5,), cache_from="first")
    setup = make_setup(caching, refresh=frozenset({0, 5}), correction=correction, placement=placement)
    assert eligible(setup.sampler) == tuple(range(10))
    corrected = with_steps(setup.sampler, (1, 5), 0.7)
    assert corrected.corrected == {1, 5}
    assert corrected.correction.cache_from == "first"
    assert corrected.correction.lambdas == (0.7,)


def test_the_overrides_make_the_sampler_that_is_suggested(make_cell):
    """The line, as run.py reads it, for a cell with a cache and a rule of its own."""
    own = ["efficiency=deepcache", "efficiency.interval=2", "sampler.steps=6"]
    cell = make_cell(*own, "iec.cache_from=first", "iec.cached_steps=cached")
    none = np.zeros((0, 1, 1))
    responses = Responses((), np.zeros((1, 1)), none, none)
    for steps in ((4, 1), ()):
        found = Suggestion(cell.sampler, steps, 0.3, 0.0, Interval(0, 0, 0), responses, steps)
        composed = make_cell(*own, *found.overrides.split()).sampler
        assert composed.corrected == found.suggested.corrected == set(steps)
        if steps:
            kept = ("lambdas", "iterations", "cache_from", "evaluate_at")
            assert all(getattr(composed.correction, k) == getattr(found.suggested.correction, k) for k in kept)
            assert composed.placement.cached_steps == "cached"


def test_a_model_and_what_a_technique_prepared_are_enough(make_cell, tmp_path):
    cell = make_cell("efficiency=deepcache", "efficiency.interval=2", "sampler.steps=3")
    model = load_model(device="cpu")
    prepared = cell.technique.prepare(model, cell.sampler.timetable, tmp_path)
    late = replace(prepared, refresh=frozenset({0, 1}))
    found = suggest(model, late, replace(cell.sampler, refresh=None), images=2, lambdas=(0.5,))
    assert found.responses.steps == (0, 1)  # of which the network says so, and not the sampler


def test_steps_that_change_nothing_are_never_suggested():
    table = Timetable(((800, 400), (400, 400), (400, -1)), NoiseSchedule())
    assert eligible(Sampler(table)) == (0, 2)


def test_a_killed_calibration_goes_on_with_the_same_numbers(make_setup, tmp_path):
    setup = make_setup(caching, refresh=frozenset({0, 3, 7}))
    whole = probe(setup, (0, 3, 7), SEED, IMAGES)

    def dying(x, step, cond=None, cache=None):
        if step.index == 3 and step.correction:
            raise KeyboardInterrupt
        return caching(x, step, cond, cache)

    broken = Setup(setup.reference, dying, setup.sampler, SHAPE)
    with pytest.raises(KeyboardInterrupt):
        probe(broken, (0, 3, 7), SEED, IMAGES, State(tmp_path))
    assert (tmp_path / "step-0000.npz").exists()
    resumed = probe(setup, (0, 3, 7), SEED, IMAGES, State(tmp_path))
    np.testing.assert_array_equal(resumed.slope, whole.slope)
    np.testing.assert_array_equal(resumed.offset, whole.offset)


@pytest.mark.parametrize("bad", [{"lambdas": (-0.5,)}, {"lambdas": ()}, {"images": 1}, {"budget": 0}])
def test_what_cannot_be_run_is_refused_before_any_call(make_setup, bad):
    def network(x, step, cond=None, cache=None):
        raise AssertionError("called")

    with pytest.raises(ConfigError):
        suggest_for(make_setup(network), **bad)


def test_images_do_not_share_seeds_with_calibrations():
    assert SEED != CALIBRATION_SEED
    assert torch.equal(*(Setup(exact, exact, None, SHAPE).noise(SEED, (0,)).initial() for _ in range(2)))


@pytest.mark.filterwarnings("error")
def test_a_network_without_error_needs_no_correction_and_no_number_is_made_up():
    nothing = np.zeros((2, 3, 4))  # steps, images, values
    chosen, change = greedy(Responses((0, 1), nothing[0], nothing, nothing), 0.5, 2)
    assert chosen == () and np.isnan(change)

"""Calls are spent where they pay: on networks whose right answer is known, and as a command."""

from itertools import combinations

import numpy as np
import pytest

from iec.analysis.plan import CallPlan, held_out_plan, plan_for, sampler_of, space_of, starts_of
from iec.analysis.setup import Setup, final_errors
from iec.efficiency.planning.plan import SEED
from iec.efficiency.planning.space import Choice
from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.network import Calls, Prediction
from iec.sampling.placement import Placement
from tests.analysis.conftest import SHAPE, exact


def jumping(*jumps, wrong=()):
    """Exact in full calls, but for the first calls of the steps ``wrong``. Cached ones are right until the feature jumps."""

    def network(x, step, cond=None, cache=None):
        era = sum(step.index >= jump for jump in jumps)
        eps, feature = exact(x, step).eps, x.new_full((len(x), 1), float(era))
        if step.mode == "full":
            return Prediction(eps + (0.5 if step.index in wrong and not step.correction else 0.0), feature)
        return Prediction(eps + 0.3 * (era - cache.feature)[..., None, None])

    return network


def test_calls_go_to_the_steps_where_the_feature_jumps(make_setup):
    plan = plan_for(make_setup(jumping(3, 4, 8), refresh=frozenset({0})), 4, 0, images=3, evaluations=150)
    assert plan.choice.refresh == {0, 3, 4, 8} and not plan.choice.corrected
    assert plan.error < 1e-9
    assert plan.overrides == "efficiency.schedule=explicit efficiency.steps=[0,3,4,8] iec=none"
    assert plan.spent.correction == 0 < plan.spent.cached


def test_a_call_becomes_a_correction_where_that_pays_more(make_setup):
    """One jump and one wrong call: what all ways to spend three calls say is found."""
    setup, grid = make_setup(jumping(5, wrong=(0,)), refresh=frozenset({0})), (0.5, 1.0)
    plan = plan_for(setup, 3, images=3, lambdas=grid, evaluations=200)
    ways = [Choice(frozenset({0, *rest})) for rest in combinations(range(1, 10), 2)]
    ways += [Choice(frozenset({0, r}), frozenset({c}), lam) for r in range(1, 10) for c in (0, r) for lam in grid]
    errors = final_errors(setup, [sampler_of(setup.sampler, way) for way in ways], SEED, range(3))
    best = min(zip(ways, errors, strict=True), key=lambda one: one[1].mean())
    assert plan.choice == best[0] and plan.choice.corrected == {0}
    assert plan.error == pytest.approx(best[1].mean())
    assert plan.spent.correction > 0


def test_the_number_of_corrections_can_be_given(make_setup):
    plan = plan_for(make_setup(jumping(5), refresh=frozenset({0})), 4, 2, images=3, evaluations=100)
    assert (len(plan.choice.refresh), len(plan.choice.corrected)) == (2, 2)
    assert plan.choice.corrected <= plan.choice.refresh


def test_a_plan_is_tested_on_other_seeds_at_equal_calls(make_setup):
    setup = make_setup(jumping(3, 4, 8), refresh=frozenset({0}))
    plan = plan_for(setup, 4, images=3, evaluations=150)
    assert plan.error < 1e-9
    lines = held_out_plan(setup, plan, 7, range(6))
    labels = [line.label for line in lines]
    assert labels[:2] == ["plan", "refreshes 0,3,6,9"] and "refreshes 0,5, all corrected" in labels
    assert all(line.change.high < 0 for line in lines[1:]) and np.isnan(lines[0].change.value)  # 0 against 0
    (own,) = final_errors(setup, [sampler_of(setup.sampler, plan.choice)], 7, range(6))
    assert lines[0].error.value == pytest.approx(own.mean())
    with pytest.raises(ConfigError, match="test it on another"):
        held_out_plan(setup, plan, SEED, range(6))


@pytest.mark.parametrize(
    ("calls", "corrections", "message"),
    [
        (0, None, "one call or more has to refresh"),
        (3, 3, "one call or more"),
        (11, 0, "at most 10 steps"),
        (3, 2, "leave to correct"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused_before_any_call(make_setup, calls, corrections, message):
    setup = Setup(None, None, make_setup(refresh=frozenset({0})).sampler, SHAPE)
    with pytest.raises(ConfigError, match=message):
        plan_for(setup, calls, corrections)


def test_what_else_cannot_be_planned_is_refused(make_setup):
    setup = make_setup(refresh=frozenset({0}))
    for options in ({"evaluations": 1}, {"images": 0}, {"lambdas": ()}, {"lambdas": (-0.5,)}):
        with pytest.raises(ConfigError):
            plan_for(setup, 4, **options)
    with pytest.raises(ConfigError, match=r"cached_steps=skip, or full"):
        plan_for(make_setup(refresh=frozenset({0}), placement=Placement(cached_steps="cached")), 4)
    assert plan_for(make_setup(jumping(5), refresh=frozenset({0}), placement=Placement(cached_steps="full")), 3, 1, images=2)


def test_starts_are_the_usual_schedules_at_equal_cost(make_setup):
    heun = make_setup(refresh=frozenset({0}), correction=Correction(evaluate_at="s")).sampler
    space = space_of(heun, True, (0.5,))
    assert 9 not in space.correctable  # the step to the clean image has no second call
    for start in starts_of(space, 8, None):
        assert space.holds(start) and len(start.refresh) + len(start.corrected) == 8
    more = starts_of(space, 12, None)  # more calls than steps: half of them correct
    assert more and all(len(start.refresh) == len(start.corrected) == 6 for start in more)


def test_the_overrides_make_the_sampler_that_is_planned(make_cell):
    own = ["efficiency=deepcache", "sampler.steps=6", "iec.cache_from=first"]
    cell = make_cell(*own)
    for choice in (Choice(frozenset({0, 2, 3}), frozenset({2}), 0.3), Choice(frozenset({0, 5}))):
        plan = CallPlan(cell.sampler, choice, 0.0, Calls())
        composed, expected = make_cell(*own, *plan.overrides.split()).sampler, sampler_of(cell.sampler, choice)
        assert composed.refresh == expected.refresh == choice.refresh
        assert composed.corrected == expected.corrected == choice.corrected
        if choice.corrected:
            assert composed.correction == expected.correction

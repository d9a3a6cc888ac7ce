"""What a step does wrong and what a correction changes in it, on networks where both have closed forms."""

import numpy as np
import pytest
import torch

from iec.analysis.setup import Setup
from iec.analysis.walk import Once, walk
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction, Step
from iec.sampling.timetable import Timetable
from tests.analysis.conftest import SCHEDULE, SHAPE, D, apply, exact, injected, jacobian

SLOPE = 0.3


def walked(setup, images=2):
    network, reference = Once(setup.network), Once(setup.reference)
    return list(walk(setup, 5, range(images), network, reference)), network.calls, reference.calls


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_every_part_has_its_closed_form_on_a_linear_network_with_a_known_error(make_setup, table):
    setup = make_setup()
    x = setup.noise(5, range(2)).initial()
    for i, step in enumerate(walked(setup)[0]):
        (t, s), a, b = table.pairs[i], float(table.A[i]), float(table.B[i])
        right = a * x + b * apply(jacobian(t), x)
        ordinary = right + b * injected(i).view(SHAPE)
        last = i + 1 == len(table)
        abar = SCHEDULE.at(s)
        clean = torch.eye(D, dtype=torch.float64) if last else (torch.eye(D) - (1 - abar) ** 0.5 * jacobian(s)) / abar**0.5
        displacement = 0.5 * b * apply(jacobian(t), ordinary - x)
        bias = 0.5 * b * apply(jacobian(t), right - x)
        before, after = (apply(jacobian(t), y) + injected(i).view(SHAPE) for y in (x, ordinary))
        close(step.error, (ordinary - right).expand_as(step.error))
        close(step.displacement, displacement)
        close(step.clean_error, apply(clean, step.error))
        close(step.clean_displacement, apply(clean, displacement))
        close(step.bias, bias)
        close(step.norm_ratio, after.flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1))
        close(step.size, right.flatten(1).norm(dim=1))
        x = ordinary


def reusing(x, step, cond=None, cache=None):
    """Its feature is its input, and it knows no t."""
    return Prediction(SLOPE * x, x) if step.mode == "full" else Prediction(SLOPE * cache.feature)


def uncached(x, step, cond=None, cache=None):
    return Prediction(SLOPE * x)


def test_the_feature_of_a_corrected_state_is_the_one_that_the_next_step_needs(table):
    """So all of the error of the first step that reuses it is removed, and of the one after what grew up to there."""
    setup = Setup(uncached, reusing, Sampler(table, refresh=frozenset({0})), SHAPE)
    steps, calls, _ = walked(setup)
    close(steps[0].error, torch.zeros_like(steps[0].error))
    assert steps[1].error.abs().max() > 1e-3
    close(steps[1].displacement, -steps[1].error)
    close(steps[2].displacement, -float(table.B[2] / table.B[1]) * steps[1].error)
    assert [step.bias is not None for step in steps] == [True] + [False] * 9
    assert (calls.full, calls.correction, calls.cached) == (2, 2, 2 * 9 + 2 * 9)  # a cached call of either feature


def test_without_a_cache_no_call_is_made_twice(make_setup):
    _, network, reference = walked(make_setup())
    assert (network.full, network.correction, network.total) == (2 * 10, 2 * 10, 2 * 20)
    # m of the ordinary state is the call of the next step; of the full-precision and the corrected one it has calls of its own
    assert (reference.full, reference.correction) == (2 * (10 + 9 + 9), 2 * 10)


def test_steps_that_change_nothing_are_left_out():
    table = Timetable.from_timesteps((900, 500, 500, 100), SCHEDULE)
    assert [step.index for step in walked(Setup(exact, exact, Sampler(table), SHAPE))[0]] == [0, 2, 3]


def test_an_answer_is_remembered_for_its_own_input_step_and_feature():
    asked = []

    def network(x, step, cond=None, cache=None):
        asked.append(step)
        return Prediction(x + step.timestep)

    once, x, other = Once(network), torch.zeros(2, 1), torch.zeros(2, 1)
    assert once(x, Step(0, 9)) is once(x, Step(0, 9))
    for again in (lambda: once(other, Step(0, 9)), lambda: once(x, Step(0, 8)), lambda: once(x, Step(0, 9, "cached"))):
        before = len(asked)
        again()
        assert len(asked) == before + 1
    once(x, Step(2, 9))
    assert len(once.answers) == 1 and once.calls.total == 2 * len(asked)


@pytest.mark.parametrize("change", [{}, {"epsilon_scale": 1.01}])
def test_the_states_are_those_of_the_run_without_corrections(make_setup, change):
    setup = make_setup(**change)
    states = list(setup.plain.trajectory(setup.network, setup.noise(5, range(2))))
    for step, x, after in zip(walked(setup)[0], states, states[1:], strict=False):
        right, _ = setup.full_precision.step(exact, step.index, x, setup.noise(5, range(2)), None, None)
        close(step.error, after - right)

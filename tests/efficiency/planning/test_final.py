"""Errors of final images: what a whole run gives, for fewer calls where choices begin alike."""

import random

import pytest
import torch

from iec.efficiency.planning.final import Batch, FinalError
from iec.efficiency.planning.space import Choice, Space
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import Calls, CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

SHAPE, STEPS = (1, 2, 3), 12


def caching(x, step, cond=None, cache=None):
    """Not linear; a feature of the state and the timestep."""
    feature = torch.tanh(x + step.timestep / 1000) if step.mode == "full" else cache.feature
    return Prediction(0.5 * torch.sin(x) + 0.5 * feature, feature if step.mode == "full" else None)


def objective_of(table, count=2):
    noises = [Noise(7, (2 * k, 2 * k + 1), SHAPE) for k in range(count)]
    batches = [Batch.of(caching, Sampler(table), noise, None, "cpu") for noise in noises]

    def sampler_of(choice):
        placement = Placement("explicit", steps=tuple(sorted(choice.corrected))) if choice.corrected else Placement()
        return Sampler(table, Correction(1, (choice.lam,)), placement, choice.refresh)

    return FinalError(CountingNetwork(caching), sampler_of, batches)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_error_is_that_of_a_whole_run_bit_for_bit_and_takes_fewer_calls(eta):
    table = Timetable.spaced("uniform", STEPS, NoiseSchedule(), eta=eta)
    space = Space(STEPS, split=True, correctable=frozenset(range(STEPS)), lambdas=(0.3, 0.5, 1.0))
    shared, rng, choice, whole = objective_of(table), random.Random(0), Choice(frozenset({0, 4, 8}), frozenset({4})), 0
    for _ in range(40):
        fresh = objective_of(table)
        assert shared(choice) == fresh(choice) > 0
        whole += fresh.network.calls.total
        expected = Calls(4 * len(choice.refresh), 4 * (STEPS - len(choice.refresh)), 4 * len(choice.corrected))
        assert fresh.network.calls == expected
        choice = space.neighbour(choice, rng)
    assert shared.network.calls.total < 0.9 * whole


def test_every_step_full_is_the_uncached_run():
    table = Timetable.spaced("uniform", STEPS, NoiseSchedule())
    assert objective_of(table)(Choice(frozenset(range(STEPS)))) == 0


def test_steps_that_make_no_call_are_left_out():
    table = Timetable(((800, 400), (400, 400), (400, 200), (200, -1)), NoiseSchedule())
    objective = objective_of(table)
    objective(Choice(frozenset({0, 2})))
    assert objective.network.calls == Calls(8, 4)

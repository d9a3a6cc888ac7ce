"""The noise that a step takes is found in the states alone."""

import numpy as np
import pytest
import torch

from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable
from iec.tables.noise import noise_ratio

TABLE = Timetable.from_timesteps([900, 600, 300, 300], NoiseSchedule())
SHAPE = (2, 4, 4)


def states(gain=1.0, table=TABLE, scale=1.0):
    """And what the network predicted in the steps that call it, [S, n]."""
    sizes = []

    def network(x, step, cond=None, cache=None):
        eps = gain * torch.sin(x + step.timestep)
        sizes.append(torch.linalg.vector_norm(eps.flatten(1), dim=1).numpy())
        return Prediction(eps)

    found = torch.stack(list(Sampler(table, epsilon_scale=scale).trajectory(network, Noise(0, (0, 1, 2), SHAPE))))
    return found.float().numpy(), np.stack(sizes)


def test_it_is_the_ratio_of_the_predictions_without_the_step_that_does_nothing():
    (plain, sizes), (other, larger) = states(), states(1.1)
    found = noise_ratio(other, plain, TABLE, TABLE)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found, (larger / sizes).T, rtol=1e-5)
    np.testing.assert_array_equal(noise_ratio(plain, plain, TABLE, TABLE), 1)


def test_it_is_what_the_step_takes_and_not_what_the_network_says():
    (plain, sizes), (scaled, larger) = states(), states(1.1, scale=1.1)
    np.testing.assert_allclose(noise_ratio(scaled, plain, TABLE, TABLE), (larger / 1.1 / sizes).T, rtol=1e-5)
    np.testing.assert_allclose(noise_ratio(scaled, plain, TABLE, TABLE), 1, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [[900, 600, 300, 200], [900, 600, 300, 300]])
def test_other_steps_and_steps_that_add_noise_have_none(timesteps):
    other = Timetable.from_timesteps(timesteps, NoiseSchedule(), eta=0.0 if timesteps[-1] == 200 else 0.3)
    x, _ = states()
    assert noise_ratio(x, x, TABLE, other) is None and noise_ratio(x, x, other, TABLE) is None

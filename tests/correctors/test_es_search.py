"""The divisor that is found: known where the error is a gain, ends of the range are said, what cannot be is refused."""

import logging

import pytest
import torch

from iec.correctors.es import EpsilonScaling
from iec.correctors.es_search import EpsilonSearch
from iec.correctors.pairs import SEED, PairedRuns
from iec.errors import ConfigError
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.from_timesteps([900, 600, 300, 300], NoiseSchedule(), eta=0.3)
SHAPE = (2, 4, 4)


def reference(x, step, cond=None, cache=None):
    return Prediction(torch.sin(x + step.timestep))


def runs(gain, batch_size=2, count=lambda network: network):
    def efficient(x, step, cond=None, cache=None):
        return Prediction(gain * torch.sin(x + step.timestep))

    networks = count(reference), count(efficient)
    return PairedRuns(*networks, Sampler(TABLE), SHAPE, lambda indices: None, batch_size=batch_size)


@pytest.mark.parametrize("gain", [0.985, 1.0, 1.01])
def test_a_gain_is_divided_away(gain):
    assert EpsilonSearch(calibration_images=3).fitted(runs(gain)) == EpsilonScaling(gain)


def test_errors_are_those_of_the_runs_that_would_be_sampled_and_cost_what_is_stated():
    search, counted = EpsilonSearch(calibration_images=3, values=2), []

    def count(network):
        counted.append(CountingNetwork(network))
        return counted[-1]

    found = runs(1.0, count=count).final_errors([EpsilonScaling(b) for b in search.divisors], 3)
    assert sum(network.calls.total for network in counted) == search.calibration_calls(Sampler(TABLE)) == 3 * 3 * 3
    noise = Noise(SEED, (0, 1, 2), SHAPE)
    finals = [list(Sampler(TABLE, epsilon_scale=b).trajectory(reference, noise))[-1] for b in (1, 0.98, 1.02)]
    expected = torch.stack([(x - finals[0]).square().mean() for x in finals[1:]])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_an_end_of_the_range_is_said(caplog):
    caplog.set_level(logging.INFO)
    assert EpsilonSearch(calibration_images=1).fitted(runs(1.1)).b == 1.02 and "a wider range" in caplog.text
    assert EpsilonSearch(calibration_images=1, high=1.2, values=12).fitted(runs(1.1)).b == 1.1  # the way out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corrector.low=1.02"], "must rise"),
        (["corrector.high=3"], r"within \[0.5, 2\]"),
        (["corrector.values=1"], "at least 2"),
        (["corrector.calibration_images=0"], "at least 1"),
        (["iec.epsilon_scale=1.01"], "corrector.b=1.01"),
    ],
)
def test_what_cannot_be_searched_is_refused(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("corrector=es_search", *overrides)
    assert make_cell("corrector=es", "corrector.b=1.01").slug and make_cell("corrector=es_search").slug  # ways out

"""Lagged Heun against diffusers' UniPC of order 1, by hand beside IEC and a cache, and in its calls."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from iec.correctors.unic import UniC
from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler, takes_single_steps
from iec.sampling.multistep import betas
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

NOISE = Noise(0, (0, 1), (3, 4, 4))
DDPM = NoiseSchedule()


def network(x, step, cond=None, cache=None):
    return Prediction(torch.sin(x + step.timestep / 300))


def states(sampler, network=network):
    return list(sampler.trajectory(network, NOISE))


@pytest.mark.parametrize("table", [Timetable.spaced("uniform", 8, DDPM, final=0), Timetable.spaced("quad", 40, DDPM, final=0)])
def test_it_is_unipc_of_order_one(table):
    """Noise prediction, B_2(h) = e^h - 1; with steps that change nothing in the second timetable."""
    steps = [i for i in range(len(table)) if not table.is_noop(i)]
    theirs = UniPCMultistepScheduler(
        trained_betas=betas(table), solver_order=1, predict_x0=False, solver_type="bh2", final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(len(steps))
    theirs.set_begin_index(0)
    abar = np.array([*table.abar_t[steps], table.abar_s[-1]])
    theirs.timesteps = torch.tensor([table.pairs[i][0] for i in steps])
    theirs.sigmas = torch.from_numpy(np.sqrt((1 - abar) / abar))
    ours = states(Sampler(table, corrector=UniC()))
    x = ours[0]
    for i in steps:
        t = table.pairs[i][0]
        x = theirs.step(torch.sin(x + t / 300), t, x, return_dict=False)[0]
        torch.testing.assert_close(ours[i + 1], x, rtol=1e-9, atol=1e-9)
    assert (states(Sampler(table))[-1] - x).abs().max() > 1e-3


def test_it_costs_no_call():
    table, made = Timetable.spaced("quad", 40, DDPM), []
    for corrector in ({}, {"corrector": UniC()}):
        counting = CountingNetwork(network)
        states(Sampler(table, **corrector), counting)
        made.append(counting.calls)
    assert made[0] == made[1] and made[0].correction == 0


def test_a_corrected_step_keeps_its_correction(linear_network):
    """Beside IEC the noise that the step took enters the rule: what IEC made of it, by hand."""
    table, m = Timetable.spaced("uniform", 3, DDPM, eta=0.4), 0.3
    found = states(Sampler(table, Correction(1, (0.5,), 0.0), Placement("all_steps"), corrector=UniC()), linear_network(m))
    x, last = found[0], None
    for i in range(3):
        eps = m * x
        if last is not None:
            x = x + table.B[i - 1] / 2 * (eps - last)
        fixed = table.A[i] * x + table.sigma[i] * NOISE.of_step(i)
        y = fixed + table.B[i] * eps
        y = y + 0.5 * (fixed + table.B[i] * m * y - y)
        last, x = (y - fixed) / table.B[i], y
        torch.testing.assert_close(found[i + 1], x, rtol=1e-12, atol=1e-12)


def test_with_a_cache_it_can_leave_cached_steps_alone():
    table, refresh = Timetable.spaced("uniform", 6, DDPM), frozenset({0, 3})
    plain, full, everywhere = (
        states(Sampler(table, refresh=refresh, **given)) for given in ({}, {"corrector": UniC("full")}, {"corrector": UniC("all")})
    )
    assert torch.equal(full[3], plain[3]) and not torch.equal(everywhere[3], plain[3])
    start = full[3] + table.B[2] / 2 * (network_eps(full[3], 3, table) - network_eps(full[2], 2, table))
    torch.testing.assert_close(full[4], table.A[3] * start + table.B[3] * network_eps(full[3], 3, table), rtol=1e-12, atol=1e-12)


def network_eps(x, i, table):
    return torch.sin(x + table.pairs[i][0] / 300)


def test_a_step_of_it_cannot_be_taken_alone():
    table = Timetable.spaced("uniform", 6, DDPM)
    assert takes_single_steps(Sampler(table)) and not takes_single_steps(Sampler(table, corrector=UniC()))
    with pytest.raises(ConfigError, match="all or full"):
        UniC("cached")


def test_a_scaled_prediction_is_that_of_a_network_that_scales():
    """Both terms of the difference are of the noise that the step takes."""
    table = Timetable.spaced("uniform", 8, DDPM)
    ours = states(Sampler(table, corrector=UniC(), epsilon_scale=1.02))
    theirs = states(Sampler(table, corrector=UniC()), lambda *of: Prediction(network(*of).eps / 1.02))
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-12, atol=1e-12)

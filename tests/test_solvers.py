"""Multistep solvers against diffusers' own loop, against the exact solution, and in what they ask of a network."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from iec.correction import Correction
from iec.efficiency.caching.network import CachedUNetNetwork
from iec.errors import ConfigError
from iec.network import CountingNetwork, Prediction, UNetNetwork
from iec.noise import Noise
from iec.placement import Placement
from iec.sampler import Sampler
from iec.solvers import SCHEDULERS, MultistepSampler
from iec.timetable import NoiseSchedule, Timetable
from tests.test_sampler import DDPM, LDM, tiny_unet

NOISE = Noise(0, (0, 1), (3, 8, 8))
KINDS = {"dpmsolver": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


@pytest.mark.parametrize("solver", list(KINDS))
@pytest.mark.parametrize(("schedule", "final"), [(DDPM, -1), (LDM, 0)])
def test_equals_the_loop_over_diffusers_scheduler(solver, schedule, final):
    unet = tiny_unet()
    theirs = KINDS[solver](
        beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=schedule.kind,
        final_sigmas_type="zero" if final == -1 else "sigma_min",
    )  # fmt: skip
    theirs.set_timesteps(18)
    x = NOISE.initial(torch.float32)
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t).sample, t, x).prev_sample
    table = Timetable.from_timesteps(theirs.timesteps.tolist(), schedule, final=final)
    ours = list(MultistepSampler(table, solver=solver).trajectory(UNetNetwork(unet), NOISE))
    assert len(ours) == 19
    torch.testing.assert_close(ours[-1].float(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("solver", "low", "high"), [("dpmsolver", 3.2, 5), ("unipc", 7, 30)])
def test_the_order_of_convergence(solver, low, high):
    """Gaussian data N(0, v): the probability flow is x_t / sqrt(abar v + 1 - abar) = constant. A schedule fine enough for any T."""
    v, schedule = 0.25, NoiseSchedule("linear", 1e-6, 2e-4, 100_000)

    def network(x, step, cond=None, cache=None):
        a = schedule.at(step.timestep)
        return Prediction(x * np.sqrt(1 - a) / (a * v + 1 - a))

    def error(make, steps):
        snr = np.linspace(*(0.5 * np.log(schedule.at(t) / (1 - schedule.at(t))) for t in (99_999, 2_000)), steps + 1)
        ladder = 0.5 * np.log(schedule.abar / (1 - schedule.abar))
        times = [int(np.abs(ladder - point).argmin()) for point in snr]
        table = Timetable.from_timesteps(times[:-1], schedule, final=times[-1])
        first, *_, last = make(table).trajectory(network, NOISE)
        before, after = (schedule.at(t) * v + 1 - schedule.at(t) for t in (times[0], times[-1]))
        return (last / first / (after / before) ** 0.5 - 1).abs().max().item()

    higher = [error(lambda table: MultistepSampler(table, solver=solver), steps) for steps in (20, 40)]
    first = [error(Sampler, steps) for steps in (20, 40)]
    assert low < higher[0] / higher[1] < high and 1.7 < first[0] / first[1] < 2.3
    assert higher[1] < first[1] / 10


@pytest.mark.parametrize("solver", list(KINDS))
def test_one_call_a_step_and_none_where_nothing_changes(solver, linear_network):
    table = Timetable.spaced("quad", 50, DDPM)
    skipped = sum(table.is_noop(i) for i in range(50))
    assert skipped
    network = linear_network(0.1)
    states = list(MultistepSampler(table, solver=solver).trajectory(network, NOISE))
    assert len(states) == 51 and len(network.steps) == 50 - skipped
    assert [s.timestep for s, _ in network.steps] == [t for t, s in table.pairs if t != s]
    assert all(torch.isfinite(x).all() for x in states)


@pytest.mark.parametrize("solver", list(KINDS))
def test_the_cache_is_refreshed_where_it_is_asked_for(solver):
    table, refresh = Timetable.spaced("uniform", 8, DDPM), frozenset({0, 4})
    calls = CountingNetwork(CachedUNetNetwork(tiny_unet(), 1))
    *_, cached = MultistepSampler(table, solver=solver, refresh=refresh).trajectory(calls, NOISE)
    assert (calls.calls.full, calls.calls.cached) == (2 * 2, 6 * 2)
    *_, full = MultistepSampler(table, solver=solver, refresh=frozenset(range(8))).trajectory(calls, NOISE)
    *_, plain = MultistepSampler(table, solver=solver).trajectory(UNetNetwork(tiny_unet()), NOISE)
    assert not torch.equal(cached, full) and full.shape == plain.shape


def test_what_is_defined_for_ddim_alone_is_refused():
    table = Timetable.spaced("uniform", 5, DDPM)
    for refused in (
        {"placement": Placement("all_steps"), "correction": Correction()},
        {"epsilon_scale": 1.005},
        {"timetable": Timetable.spaced("uniform", 5, DDPM, eta=0.5)},
        {"solver": "plms"},
    ):
        with pytest.raises(ConfigError, match=r"iec=none|sampler=ddim|choose one of ddim, dpmsolver, unipc"):
            MultistepSampler(**{"timetable": table, **refused})
    with pytest.raises(ConfigError, match="cannot be taken alone"):
        MultistepSampler(table).step(None, 0)


def test_a_solver_is_another_cell_and_ddim_the_same_as_ever(make_cell):
    plain = make_cell("efficiency=w8a8", "iec=all_steps", "sampler.steps=50")
    assert "solver" not in plain.identity["sampler"]
    for solver in SCHEDULERS:
        cell = make_cell("efficiency=w8a8", f"sampler={solver}", "sampler.steps=50")
        assert cell.identity["sampler"]["solver"] == solver and f"-none-{solver}-T50-" in cell.slug
        assert cell.identity["efficiency"] == plain.identity["efficiency"]  # calibrated alike
    with pytest.raises(ConfigError, match="use iec=none|Use iec=none"):
        make_cell("sampler=unipc", "iec=all_steps")
    with pytest.raises(ConfigError, match=r"solver 'plms'"):
        make_cell("sampler.solver=plms")

"""Multistep solvers against diffusers' own loop, the papers' formulas, the exact solution, and in what they ask of a network."""

import re

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from iec.efficiency.caching.network import CachedUNetNetwork
from iec.errors import ConfigError
from iec.models.unet import UNetNetwork
from iec.runs.runner import run_cell
from iec.sampling.ddim import DDIM, Sampler
from iec.sampling.multistep import SCHEDULERS, MultistepSampler, with_solver
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.sampling.test_ddim import DDPM, LDM, tiny_unet

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


def by_the_papers(solver, table, eps, x):
    """The states after each step that changes something. With a = sqrt(abar), s = sqrt(1 - abar), l = log(a / s), h = l' - l and
    m = (x - s eps) / a, both predict s' / s x - a' (e^-h - 1) (m + c (m - m_before)), c = h / (2 h_before), and c = 0 in the first
    step and (diffusers) in some last ones. UniPC then corrects the prediction with the next call: UniC-2 with B_2(h), 2302.04867.
    """
    steps = [i for i in range(len(table)) if not table.is_noop(i)]
    abar = np.append(table.abar_t[steps], table.abar_s[-1])
    a, s = np.sqrt(abar), np.sqrt(1 - abar)
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(a / s))
    first_order_last = solver == "unipc" or abar[-1] == 1 or len(steps) < 15
    m, states, corrected = [], [], None
    for k, i in enumerate(steps):
        m.append((x - s[k] * eps(x, table.pairs[i][0])) / a[k])
        if solver == "unipc" and k:
            z, weights = -h[k - 1], [0.5]
            phi1 = np.expm1(z)
            phi2 = phi1 / z - 1
            slopes = [m[k] - m[k - 1]]
            if k > 1:
                r = -h[k - 2] / h[k - 1]
                weights = np.linalg.solve([[1, 1], [r, 1]], [phi2 / phi1, 2 * (phi2 / z - 0.5) / phi1])
                slopes.insert(0, (m[k - 2] - m[k - 1]) / r)
            change = m[k - 1] + sum(float(w) * slope for w, slope in zip(weights, slopes, strict=True))
            x = s[k] / s[k - 1] * corrected - a[k] * phi1 * change
        corrected = x
        second = k and not (first_order_last and k == len(steps) - 1)
        change = m[k] + (h[k] / (2 * h[k - 1]) * (m[k] - m[k - 1]) if second else 0)
        x = s[k + 1] / s[k] * x - a[k + 1] * np.expm1(-h[k]) * change
        states.append(x)
    return states


@pytest.mark.parametrize(("solver", "tolerance"), [("dpmsolver", 1e-5), ("unipc", 1e-10)])  # the former's state is float32
@pytest.mark.parametrize(
    "table",
    [
        Timetable.spaced("quad", 50, DDPM),  # with no-ops
        Timetable.spaced("uniform", 10, DDPM, final=0),
        Timetable.spaced("leading_plus_one", 10, LDM, final=0),
        Timetable.spaced("leading_plus_one", 20, LDM, final=0),
        Timetable.from_timesteps([800], DDPM),
    ],
    ids=["quad", "no-op at the end", "latent", "latent, 15 steps and more", "one step"],
)
def test_every_state_is_the_papers(solver, tolerance, table):
    def network(x, step, cond=None, cache=None):
        return Prediction(eps(x, step.timestep))

    def eps(x, t):
        return torch.sin(x + t / 300)

    ours = list(MultistepSampler(table, solver=solver).trajectory(network, NOISE))
    kept = [ours[i + 1] for i in range(len(table)) if not table.is_noop(i)]
    expected = by_the_papers(solver, table, eps, ours[0])
    torch.testing.assert_close(torch.stack(kept), torch.stack(expected), rtol=tolerance, atol=tolerance)


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
    """As with DDIM: the same calls in the same modes, also at no-ops; a refresh at every step is the plain UNet bit for bit."""
    table, unet = Timetable.from_timesteps([900, 700, 500, 500, 300, 100, 0, 0], DDPM), tiny_unet()
    network = CachedUNetNetwork(unet, 1)

    def run(solver):
        calls = []

        def noting(x, step, cond=None, cache=None):
            calls.append((step, cache and cache.step.index))
            return network(x, step, cond, cache)

        *_, x = solver.trajectory(noting, NOISE)
        return x, calls

    refresh = frozenset({0, 2, 4})  # steps 2 and 6 change nothing, but 2 has to refresh
    cached, calls = run(MultistepSampler(table, solver=solver, refresh=refresh))
    assert calls == run(Sampler(table, refresh=refresh))[1]
    assert [(step.index, step.mode, source) for step, source in calls] == [
        (0, "full", None), (1, "cached", 0), (2, "full", 0), (3, "cached", 2), (4, "full", 2), (5, "cached", 4), (7, "cached", 4),
    ]  # fmt: skip
    full, _ = run(MultistepSampler(table, solver=solver, refresh=frozenset(range(8))))
    *_, plain = MultistepSampler(table, solver=solver).trajectory(UNetNetwork(unet), NOISE)
    assert torch.equal(full, plain) and not torch.equal(cached, full)


@pytest.mark.parametrize("solver", list(KINDS))
def test_a_trajectory_keeps_its_history_to_itself(solver):
    """Two at once, and one after another, from one sampler are the same; an image does not depend on its batch."""
    sampler, network = MultistepSampler(Timetable.spaced("quad", 10, DDPM), solver=solver), UNetNetwork(tiny_unet().double())
    *_, (one, other) = zip(sampler.trajectory(network, NOISE), sampler.trajectory(network, NOISE), strict=True)
    *_, again = sampler.trajectory(network, NOISE)
    assert torch.equal(one, other) and torch.equal(one, again)
    *_, alone = sampler.trajectory(network, Noise(0, (1,), NOISE.shape))
    torch.testing.assert_close(alone, one[1:], rtol=1e-6, atol=1e-6)


def test_a_cell_goes_on_where_it_was_stopped(make_cell, tmp_path):
    """Two images at once are the bytes of one, and the other later."""
    options = ["model.random_weights=true", "metrics=none", "sampler=unipc", "sampler.steps=3", "batch_size=1"]
    images = []
    for name, asked in (("whole", ["num_images=2"]), ("stopped", ["num_images=1", "num_images=2"])):
        for count in asked:
            paths = [f"paths.output={tmp_path / name}", f"paths.artifacts={tmp_path / name}"]
            result = run_cell(make_cell(*options, count, *paths))
        images.append(result.first_images(2))
    assert np.array_equal(*images) and result.manifest.calls_per_image["total"] == 3


def test_what_is_defined_for_ddim_alone_is_refused():
    table = Timetable.spaced("uniform", 5, DDPM)
    corrected = Sampler(table, placement=Placement("all_steps"))
    for sampler in (corrected, Sampler(table, epsilon_scale=1.005)):
        with pytest.raises(ConfigError, match="Use iec=none"):
            with_solver("unipc", sampler)
    with pytest.raises(ConfigError, match="needs sampler=ddim"):
        with_solver("unipc", Sampler(Timetable.spaced("uniform", 5, DDPM, eta=0.5)))
    with pytest.raises(ConfigError, match="choose one of ddim, dpmsolver, unipc"):
        with_solver("plms", corrected)
    with pytest.raises(ConfigError, match="choose one of dpmsolver, unipc"):
        MultistepSampler(table, DDIM)
    with pytest.raises(ConfigError, match="first step"):
        MultistepSampler(table, refresh=frozenset({1}))


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


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["efficiency=w8a8"], "ddim_cifar_small-w8a8-iec-all_steps-T50-seed0-"),
        (["efficiency=deepcache", "efficiency.interval=5"], "ddim_cifar_small-deepcache-iec-all_steps-T50-seed0-"),
    ],
)
def test_the_names_of_cells_computed_with_ddim_stay(make_cell, overrides, name):
    """As they were before there was another solver: computed cells are found by their names. `test_identities` pins the hashes."""
    cell = make_cell("model=ddim_cifar_small", *overrides, "iec=all_steps", "sampler.steps=50")
    assert re.fullmatch(re.escape(name) + "[0-9a-f]{10}", cell.slug) and "solver" not in cell.identity["sampler"]

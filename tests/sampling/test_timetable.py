import json

import numpy as np
import pytest
from diffusers import DDIMScheduler

from iec.errors import ConfigError
from iec.sampling.timetable import CLEAN, NoiseSchedule, Timetable, spaced_timesteps

DDPM = NoiseSchedule()
LDM = NoiseSchedule("scaled_linear", 0.0015, 0.0195)


def test_abar_is_the_cumulative_product_of_one_minus_beta():
    assert DDPM.abar[0] == 1 - 1e-4
    assert DDPM.abar[1] == pytest.approx((1 - 1e-4) * (1 - 1e-4 - (0.02 - 1e-4) / 999), rel=1e-14)
    assert LDM.abar[0] == pytest.approx(1 - 0.0015, rel=1e-14)
    assert LDM.abar[-1] == pytest.approx(np.prod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2), rel=1e-12)
    assert DDPM.abar.dtype == np.float64


@pytest.mark.parametrize("schedule", [DDPM, LDM])
def test_abar_agrees_with_diffusers_to_its_float32(schedule):
    theirs = DDIMScheduler(beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=schedule.kind).alphas_cumprod
    np.testing.assert_allclose(schedule.abar, theirs.numpy(), rtol=2e-5)


def test_uniform_is_0_c_2c():
    assert spaced_timesteps("uniform", 100, DDPM) == tuple(range(990, -1, -10))
    assert spaced_timesteps("uniform", 1, DDPM) == (0,)
    assert spaced_timesteps("uniform", 30, DDPM)[0] == 957


@pytest.mark.parametrize(("steps", "first"), [(250, 997), (100, 991), (50, 981), (20, 951), (200, 996)])
def test_leading_plus_one_ends(steps, first):
    times = spaced_timesteps("leading_plus_one", steps, LDM)
    assert (len(times), times[0], times[-1]) == (steps, first, 1)
    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    assert list(times) == scheduler.timesteps.tolist()


def test_quad_is_the_truncated_square_and_repeats_its_smallest_timesteps():
    times = spaced_timesteps("quad", 100, DDPM)
    assert times[::-1] == tuple(int(v) for v in np.linspace(0, np.sqrt(800), 100) ** 2)
    assert (times[0], len(set(times)), times.count(0), times.count(2)) == (800, 96, 4, 2)
    assert len(set(spaced_timesteps("quad", 20, DDPM))) == 20
    table = Timetable.spaced("quad", 100, DDPM)
    noops = [i for i in range(100) if table.is_noop(i)]
    assert noops == [93, 96, 97, 98]
    assert all(table.A[i] == 1 and table.B[i] == 0 for i in noops)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("final", "last_abar"), [(CLEAN, 1.0), (0, LDM.abar[0])])
def test_coefficients_are_those_of_the_written_out_step(eta, final, last_abar):
    table = Timetable.from_timesteps([901, 401, 1], LDM, final=final, eta=eta)
    x, e, z = 0.7, -1.3, 0.4
    for i, (t, p) in enumerate([(901, LDM.abar[401]), (401, LDM.abar[1]), (1, last_abar)]):
        a = LDM.abar[t]
        sigma = eta * np.sqrt((1 - p) / (1 - a) * (1 - a / p))
        x0 = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
        expected = np.sqrt(p) * x0 + np.sqrt(1 - p - sigma**2) * e + sigma * z
        assert table.A[i] * x + table.B[i] * e + table.sigma[i] * z == pytest.approx(expected, rel=1e-12)
    assert table.abar_s[-1] == last_abar
    assert (table.A >= 1).all() and (table.B <= 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Timetable.spaced("quad", 0, DDPM), "sampler.steps=0"),
        (lambda: Timetable.spaced("quad", 1001, DDPM), "1 .. 1000"),
        (lambda: Timetable.spaced("uniform", 600, DDPM), "divides 1000"),
        (lambda: Timetable.spaced("leading_plus_one", 1000, DDPM), "divides 1000"),
        (lambda: Timetable.spaced("cosine", 10, DDPM), "choose uniform"),
        (lambda: Timetable(((900, 500), (400, -1)), DDPM), "ended at s=500"),
        (lambda: Timetable.from_timesteps([1000, 3], DDPM), "t <= 999"),
        (lambda: Timetable.from_timesteps([3, 900], DDPM), "from t=3 to s=900"),
        (lambda: Timetable((), DDPM), "at least one"),
        (lambda: Timetable.from_timesteps([9, 3], DDPM, eta=-0.1), "outside"),
        (lambda: Timetable.spaced("quad", 2.5, DDPM), "sampler.steps=2.5 must be a whole number of 1 .. 1000"),
        (lambda: Timetable.spaced("uniform", "20", DDPM), "sampler.steps='20' must be a whole number"),
        (lambda: Timetable.spaced("uniform", 20, 1000), "schedule has to be a NoiseSchedule"),
        (lambda: Timetable.from_timesteps([9.5, 3], DDPM), "must be whole numbers"),
        (lambda: Timetable(((9, 3),), 1000), "schedule has to be a NoiseSchedule"),
        (lambda: NoiseSchedule("cosine"), "linear"),
        (lambda: NoiseSchedule(beta_start=0.5, beta_end=0.1), "beta_start"),
    ],
)
def test_bad_timetables_are_refused(build, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build()


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert Timetable.spaced("quad", np.int64(5), DDPM) == Timetable.spaced("quad", 5, DDPM)
    table = Timetable.from_timesteps(np.array([9, 3]), DDPM)
    assert table == Timetable.from_timesteps([9, 3], DDPM) and json.dumps(table.fingerprint())

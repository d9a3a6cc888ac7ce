"""Differential correction: its bands add up, its pixel form is epsilon scaling, and where it does nothing."""

import pytest
import torch

from iec.correctors.dcw import DCW, low_band, sigma
from iec.correctors.es import EpsilonScaling
from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.corrector import Taken
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

SCHEDULE = NoiseSchedule()
TABLE = Timetable.spaced("uniform", 5, SCHEDULE)
NOISE = Noise(0, (0, 1), (3, 4, 4))


def network(x, step, cond=None, cache=None):
    return Prediction(torch.sin(x + step.timestep))


def states(sampler):
    return list(sampler.trajectory(network, NOISE))


@pytest.mark.parametrize("b", [1.02, 0.98])
def test_the_pixel_form_is_epsilon_scaling(b):
    """At one step, lambda = (1 - 1/b) (sig_t / sig_s - 1)."""
    table = Timetable.from_timesteps([500], SCHEDULE, final=300)
    sig_t, sig_s = sigma(table.abar_t[0]), sigma(table.abar_s[0])
    dcw = states(Sampler(table, corrector=DCW(0, 0, (1 - 1 / b) * (sig_t / sig_s - 1))))
    es = states(EpsilonScaling(b).attach(Sampler(table), ()))
    torch.testing.assert_close(dcw[-1], es[-1], rtol=1e-12, atol=1e-12)
    assert not torch.equal(es[-1], states(Sampler(table))[-1])


def test_the_formula_is_that_of_sigma_s_variable():
    """In z = x / sqrt(abar): z_s + lambda (z_s - x_0), as released, with noise of the step's own too."""
    table = Timetable.spaced("uniform", 5, SCHEDULE, eta=0.5)
    taken = Taken(2, NOISE.of_step(0), NOISE.of_step(1), NOISE.of_step(2), float(table.B[2]))
    abar_t, abar_s = table.abar_t[2], table.abar_s[2]
    z_s, x0 = taken.new / abar_s**0.5, (taken.x - (1 - abar_t) ** 0.5 * taken.eps) / abar_t**0.5
    found = DCW(0, 0, 0.3).after(taken, table)
    torch.testing.assert_close(found, abar_s**0.5 * (z_s + 0.3 * (z_s - x0)), rtol=1e-12, atol=1e-12)


def test_bands_are_orthogonal_and_add_up_to_pixels():
    x = NOISE.initial()
    low = low_band(x)
    assert torch.equal(low_band(low), low) and abs((low * (x - low)).sum()) < 1e-12
    assert torch.allclose(low[0, 0, :2, :2], x[0, 0, :2, :2].mean())
    taken = Taken(1, x, x, NOISE.of_step(1), float(TABLE.B[1]))
    share = sigma(TABLE.abar_t[1]) / sigma(TABLE.abar_t[0])
    both = DCW(0.1 / share, 0.1 / (1 - share)).after(taken, TABLE)
    torch.testing.assert_close(both, DCW(0, 0, 0.1).after(taken, TABLE), rtol=1e-12, atol=1e-12)
    alone = [DCW(*coefficients).after(taken, TABLE) - taken.new for coefficients in ((0.1, 0.0), (0.0, 0.1))]
    assert low_band(alone[1]).abs().max() < 1e-12 and torch.allclose(low_band(alone[0]), alone[0])
    assert DCW(0, 0.1).after(Taken(0, x, x, x + 1, 1.0), TABLE).equal(x + 1)  # 1 - sig / sig_max is 0 at the first step


def test_the_step_to_a_clean_image_stays_and_iec_s_noise_is_used():
    corrected = Sampler(TABLE, Correction(1, (0.5,), 0.0), Placement("all_steps"))
    plain, moved = states(corrected), states(Sampler(TABLE, corrected.correction, corrected.placement, corrector=DCW(0, 0, 0.1)))
    eps = (plain[1] - TABLE.A[0] * plain[0]) / TABLE.B[0]
    torch.testing.assert_close(moved[1] - plain[1], 0.1 * (1 - TABLE.abar_s[0]) ** 0.5 * eps, rtol=1e-9, atol=1e-12)
    last = Taken(4, plain[4], plain[4], plain[5], float(TABLE.B[4]))
    assert DCW().after(last, TABLE) is last.new


@pytest.mark.parametrize(
    ("overrides", "message"),
    [("corrector.low=2", r"\[-1, 1\]"), ("corrector.high=nan", "corrector.high=nan"), ("corrector.low=0", "corrector=none")],
)
def test_what_cannot_be_applied_is_refused(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("corrector=dcw", overrides)
    with pytest.raises(ConfigError, match="even sides, and these are 5 x 4"):
        DCW().attach(Sampler(TABLE), (3, 5, 4))
    assert DCW(0, 0, 0.005).attach(Sampler(TABLE), (3, 5, 4)).corrector  # the way out

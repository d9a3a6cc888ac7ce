"""Error as noise: the algebra of levels by hand, and no change where there is no error."""

import numpy as np
import pytest
import torch

from iec.correctors.stepback import Stepback, stepped_back
from iec.efficiency.moments import Moments
from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

SCHEDULE = NoiseSchedule()
TABLE = Timetable.from_timesteps([800, 600, 400, 400, 200], SCHEDULE)
NOISE = Noise(0, (0, 1), (2, 4, 4))
STEPS = (0, 1, 3, 4)
"""Step 2 changes nothing."""


def of_errors(variance, mean=(0.0, 0.0)):
    """Moments of f of variance 1 and e = f + an error of this variance and mean [C]."""
    steps, channels = len(TABLE), len(mean)
    count = torch.tensor([0.0 if i == 2 else 9.0 for i in range(steps)], dtype=torch.float64)[:, None]
    zeros, mean = torch.zeros(steps, channels, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64).expand(steps, -1)
    return Moments(count, mean, zeros, zeros + 1 + variance, zeros + 1, zeros + 1)


def told(seen):
    def network(x, step, cond=None, cache=None):
        seen.append((step.index, step.timestep, x))
        return Prediction(torch.sin(x + step.timestep))

    return network


def test_without_error_every_bit_stays():
    plain, shifted = (
        list(sampler.trajectory(told([]), NOISE))
        for sampler in (Sampler(TABLE), Sampler(TABLE, corrector=stepped_back(of_errors(0.0), TABLE)))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, shifted, strict=True))


def test_levels_states_and_timesteps_by_hand():
    """Each step starts from the noisier level, is told its timestep, and ends rescaled; the last state is not."""
    variance, mean, seen = 0.3, (0.02, -0.01), []
    found = list(Sampler(TABLE, corrector=stepped_back(of_errors(variance, mean), TABLE)).trajectory(told(seen), NOISE))
    x, abar = found[0], TABLE.abar_t[0]
    for k, i in enumerate(STEPS):
        t = int(np.abs(SCHEDULE.abar - abar).argmin())
        assert seen[k][:2] == (i, t) and (t > TABLE.pairs[i][0] if k else t == 800)
        eps = torch.sin(x + t) - torch.tensor(mean).view(-1, 1, 1)
        a = np.sqrt(TABLE.abar_s[i] / abar)
        b = np.sqrt(1 - TABLE.abar_s[i]) - a * np.sqrt(1 - abar)
        x = a * x + b * eps
        if i != STEPS[-1]:
            abar = 1 / (1 + (1 - TABLE.abar_s[i] + b**2 * variance) / TABLE.abar_s[i])
            x = x * np.sqrt(abar / TABLE.abar_s[i])
        torch.testing.assert_close(found[i + 1], x, rtol=1e-6, atol=1e-6)  # the means are float32 here


def test_the_noise_in_a_state_is_that_of_its_level():
    """A network that knows x_0 and errs by noise of variance 0.5: x - sqrt(abar') x_0 has variance 1 - abar' in every state, and
    without the corrector more than its level.
    """
    v, noise = 0.5, Noise(0, tuple(range(64)), (2, 16, 16))
    table = Timetable.from_timesteps([800, 600, 400, 400, 200], SCHEDULE, final=100)
    x0, errors = Noise(2, noise.indices, noise.shape).initial(), Noise(1, noise.indices, noise.shape)
    corrector, ratios = stepped_back(of_errors(v), table), {}
    for name, levels, sampler in (
        ("plain", table.abar_t, Sampler(table)),
        ("mended", corrector.start, Sampler(table, corrector=corrector)),
    ):

        def network(x, step, cond=None, cache=None, levels=levels, name=name):
            abar = float(levels[step.index])
            eps = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
            ratios.setdefault(name, []).append(eps.var().item())
            return Prediction(eps + v**0.5 * errors.of_step(step.index))

        first = table.abar_t[0] ** 0.5 * x0 + (1 - table.abar_t[0]) ** 0.5 * noise.initial()
        x, cache = first, None
        for i in range(len(table)):
            x, cache = sampler.step(network, i, x, noise, None, cache)
    assert max(abs(np.array(ratios["mended"]) - 1)) < 0.02 and ratios["plain"][-1] > 1.1


def test_errors_beyond_the_schedule_are_refused():
    """Of variance 20 with four steps. Of variance 2 with many steps they are not."""
    with pytest.raises(ConfigError, match=r"step 1 has variance 20.*more sampler.steps"):
        stepped_back(of_errors(20.0), TABLE)
    table = Timetable.spaced("quad", 1000, SCHEDULE)
    every = Moments(*(tensor[:1].expand(1000, -1) for tensor in of_errors(2.0).tensors().values()))
    assert stepped_back(every, table).start  # the way out


def test_it_shares_the_pairs_with_affine_and_changes_images(make_cell, tmp_path):
    common = ["efficiency=error_noise", "efficiency.std=0.3", "sampler.steps=2", "num_images=1", "batch_size=1", "metrics=none"]
    common += [f"paths.output={tmp_path}"]
    correctors = (["corrector=none"], *([f"corrector={name}", "corrector.calibration_images=2"] for name in ("affine", "stepback")))
    hashes = {run_cell(make_cell(*common, *own)).manifest.hash for own in correctors}
    assert len(hashes) == 3 and len(list((tmp_path / "artifacts").glob("corrector-*.safetensors"))) == 1
    with pytest.raises(ConfigError, match="at least 1"):
        Stepback(0)

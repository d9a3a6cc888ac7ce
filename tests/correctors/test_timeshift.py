"""Shifted timesteps: exact variances find their timestep, image by image, within the window and above the cutoff."""

import pytest
import torch

from iec.correctors.timeshift import TimeShift
from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

SCHEDULE = NoiseSchedule()
TABLE = Timetable.spaced("uniform", 5, SCHEDULE)


def of_variance(*values):
    x = Noise(0, tuple(range(len(values))), (3, 8, 8)).initial()
    x = x / x.flatten(1).std(dim=1).view(-1, 1, 1, 1)
    return x * torch.tensor(values, dtype=x.dtype).sqrt().view(-1, 1, 1, 1)


@pytest.mark.parametrize("data_variance", [0.0, 0.25])
def test_each_image_is_told_the_timestep_of_its_variance(data_variance):
    x = of_variance(*(SCHEDULE.at(t) * data_variance + 1 - SCHEDULE.at(t) for t in (590, 600, 607, 640, 400)))
    found = TimeShift(20, 300, data_variance).timestep(x, Step(2, 600), TABLE)
    assert found.tolist() == [590, 600, 607, 610, 590]  # the last two beyond the window


def test_no_window_and_below_the_cutoff_nothing_is_shifted():
    x = of_variance(0.5, 0.9)
    assert TimeShift(0).timestep(x, Step(2, 600), TABLE) == 600 == TimeShift(30, 600).timestep(x, Step(2, 600), TABLE)
    low = TimeShift(30, -1).timestep(x, Step(4, 3), TABLE)
    high = TimeShift(30).timestep(of_variance(2.0), Step(0, 995), TABLE)
    assert low.tolist() == [18, 18] and high.tolist() == [999]  # within the schedule


def test_a_run_tells_its_images_and_counts_as_many_calls():
    seen = []

    def network(x, step, cond=None, cache=None):
        seen.append((step.index, step.timestep, len(x)))
        return Prediction(slope(step.index) * x)

    def slope(i):  # of the exact eps of data of variance 0.25
        abar = TABLE.abar_t[i]
        return (1 - abar) ** 0.5 / (0.25 * abar + 1 - abar)

    noise, counting = Noise(0, tuple(range(6)), (3, 4, 4)), CountingNetwork(network)
    states = list(Sampler(TABLE, corrector=TimeShift(100, 300)).trajectory(counting, noise))
    for i, (t, _) in enumerate(TABLE.pairs):
        own = [(timestep, images) for index, timestep, images in seen if index == i]
        expected = TimeShift(100, 300).timestep(states[i], Step(i, t), TABLE)
        values, counts = torch.as_tensor(expected).expand(6).unique(return_counts=True)
        assert sorted(own) == list(zip(values.tolist(), counts.tolist(), strict=True))
        torch.testing.assert_close(states[i + 1], (TABLE.A[i] + slope(i) * TABLE.B[i]) * states[i], rtol=1e-12, atol=1e-12)
    assert counting.calls.full == 30 and len(seen) > 6


def test_it_runs_with_a_cache_and_iec(make_cell, tmp_path):
    common = ["efficiency=deepcache", "efficiency.interval=2", "iec=all_steps", "sampler.steps=4", "num_images=3", "batch_size=3"]
    common += ["metrics=none", f"paths.output={tmp_path}"]
    plain, shifted = (run_cell(make_cell(*common, *own)) for own in ([], ["corrector=timeshift", "corrector.window=60"]))
    assert plain.manifest.hash != shifted.manifest.hash
    assert plain.manifest.calls_per_image == shifted.manifest.calls_per_image


@pytest.mark.parametrize("override", ["window=-1", "data_variance=11"])
def test_what_is_no_window_is_refused(make_cell, override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        make_cell("corrector=timeshift", f"corrector.{override}")

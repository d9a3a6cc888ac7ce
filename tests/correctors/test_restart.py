"""Restart: levels, noise and calls by hand, beside a cache and IEC."""

import numpy as np
import pytest
import torch

from iec.correctors.restart import Restart
from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler, takes_single_steps
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.spaced("quad", 20, NoiseSchedule())
NOISE = Noise(0, (0, 1), (3, 4, 4))


def network(x, step, cond=None, cache=None):
    return Prediction(torch.sin(x + step.timestep), x.mean((1, 2, 3)) if step.mode == "full" else None)


def sigma(abar):
    return np.sqrt((1 - abar) / abar)


def test_the_levels_of_the_paper_are_three_steps_of_this_timetable():
    first, last = Restart().steps(TABLE)
    assert (first, last) == (13, 15)
    assert sigma(TABLE.abar_t[first]) == pytest.approx(0.3, abs=0.05)
    assert sigma(TABLE.abar_s[last]) == pytest.approx(0.06, abs=0.03)


def test_states_and_noise_by_hand():
    plain, found = (list(Sampler(TABLE, **own).trajectory(network, NOISE)) for own in ({}, {"corrector": Restart()}))
    assert len(found) == 21 and all(torch.equal(a, b) for a, b in zip(plain[:16], found[:16], strict=True))
    x = plain[16]
    for k in range(2):
        z = x / TABLE.abar_s[15] ** 0.5
        added = sigma(TABLE.abar_t[13]) ** 2 - sigma(TABLE.abar_s[15]) ** 2
        z = z + added**0.5 * NOISE.of_step(20 * (k + 1) + 15)  # streams of noise that no step has
        x = z * TABLE.abar_t[13] ** 0.5
        for i in (13, 14, 15):
            x = TABLE.A[i] * x + TABLE.B[i] * torch.sin(x + TABLE.pairs[i][0])
    torch.testing.assert_close(found[16], x, rtol=1e-12, atol=1e-12)


def test_calls_are_counted_by_kind_and_the_cache_is_refreshed_first():
    """With a cache it goes back to the last refresh; corrections are made again with their steps."""
    refresh, seen = frozenset({0, 5, 12, 15}), []

    def told(x, step, cond=None, cache=None):
        seen.append((step.index, step.mode, step.correction))
        assert step.mode == "full" or cache.step.index == max(r for r in refresh if r <= step.index)
        return network(x, step)

    sampler = Sampler(TABLE, Correction(1), Placement("all_steps"), refresh)
    counts = []
    for corrector in ({}, {"corrector": Restart(repeats=3)}):
        counting = CountingNetwork(told)
        list(Sampler(TABLE, sampler.correction, sampler.placement, refresh, **corrector).trajectory(counting, NOISE))
        counts.append(counting.calls)
    plain, again = counts
    assert (again.full - plain.full, again.cached - plain.cached) == (2 * 3 * 2, 2 * 3 * 2)  # 12, 15 full; 13, 14 cached
    assert again.correction - plain.correction == 2 * 3 * 2
    steps = [index for index, _, correction in seen if not correction]
    assert "15 12 13 14 15 12 13 14 15 12 13 14 15 16" in " ".join(map(str, steps))


def test_it_cannot_be_taken_apart_into_single_steps():
    assert not takes_single_steps(Sampler(TABLE, corrector=Restart()))


def test_a_cell_counts_its_calls(make_cell, tmp_path):
    common = ["num_images=2", "batch_size=2", "metrics=none", "sampler.steps=6", f"paths.output={tmp_path}"]
    result = run_cell(make_cell(*common, "corrector=restart", "corrector.sigma_max=0.6", "corrector.sigma_min=0.01"))
    first, last = result.cell.sampler.corrector.steps(result.cell.sampler.timetable)
    assert result.manifest.calls_per_image["full"] == 6 + 2 * (last - first + 1) > 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corrector.sigma_min=0.5"], "sigma_min < sigma_max"),
        (["corrector.repeats=0"], "corrector=none"),
        (["sampler.eta=0.5"], "sampler.eta=0"),
        (["corrector.sigma_max=0.31", "corrector.sigma_min=0.3"], "further apart"),
    ],
)
def test_what_cannot_be_restarted_is_refused(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("corrector=restart", *overrides)

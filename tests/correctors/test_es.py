"""Epsilon scaling: the formula, its two directions, and that the uniform case has one name."""

import pytest
import torch

from iec.correctors.es import EpsilonScaling
from iec.errors import ConfigError
from iec.sampling.corrector import NO_CORRECTOR
from iec.sampling.ddim import Sampler
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.spaced("uniform", 5, NoiseSchedule())
NOISE = Noise(0, (0, 1), (3, 4, 4))


def states(sampler, network):
    return list(sampler.trajectory(network, NOISE))


@pytest.mark.parametrize("b", [1.02, 0.98])
def test_a_step_moves_by_b_times_the_change_of_eps(linear_network, b):
    """x_s(b) - x_s(1) = B (1/b - 1) eps, also for b < 1."""
    plain, scaled = (states(EpsilonScaling(value).attach(Sampler(TABLE), ()), linear_network(0.5)) for value in (1.0, b))
    expected = TABLE.B[0] * (1 / b - 1) * 0.5 * plain[0]
    torch.testing.assert_close(scaled[1] - plain[1], expected, rtol=1e-12, atol=1e-14)
    assert (1 - plain[1].std() / scaled[1].std()).sign() == (1 if b > 1 else -1)  # b > 1 leaves more noise in


def test_without_a_slope_it_is_the_scale_of_the_sampler():
    sampler = EpsilonScaling(1.01).attach(Sampler(TABLE), ())
    assert sampler == Sampler(TABLE, epsilon_scale=1.01) and sampler.corrector is NO_CORRECTOR
    assert EpsilonScaling(1.0).attach(Sampler(TABLE), ()) == Sampler(TABLE)


@pytest.mark.parametrize(("end", "counts"), [("noisy", [4, 3, 2, 1, 0]), ("clean", [0, 1, 2, 3, 4])])
def test_the_linear_divisor_is_largest_at_the_named_end(linear_network, end, counts):
    scaled = states(EpsilonScaling(1.0, 0.01, end).attach(Sampler(TABLE), ()), linear_network(0.5))
    for i, n in enumerate(counts):
        expected = (TABLE.A[i] + TABLE.B[i] * 0.5 / (1 + 0.01 * n)) * scaled[i]
        torch.testing.assert_close(scaled[i + 1], expected, rtol=1e-12, atol=1e-14)


def test_the_uniform_case_is_the_cell_of_epsilon_scaling(make_cell):
    """One method, one cell; only the linear case is another."""
    cells = [make_cell(*o.split()) for o in ("corrector=es", "iec=epsilon_scaling", "corrector=es corrector.k=1e-4")]
    assert cells[0].identity == cells[1].identity != cells[2].identity
    assert cells[0].slug == cells[1].slug and "-es-" in cells[2].slug
    assert make_cell("corrector=es", "corrector.b=1").identity == make_cell().identity
    assert cells[2].identity["corrector"] == {"corrector": "EpsilonScaling", "b": 1.005, "k": 1e-4, "end": "noisy"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("corrector.b=0.4", r"\[0.5, 2\]"),
        ("corrector.k=nan", "finite"),
        ("corrector.k=0.1", "divide by 2.905 .. 1.005 over 20 steps"),
        ("corrector.end=middle", "noisy or clean"),
        ("iec=epsilon_scaling", "one method"),
    ],
)
def test_what_is_no_scale_is_refused(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("corrector=es", overrides)
    assert make_cell("corrector=es", "corrector.b=1.005", "iec.epsilon_scale=1").slug  # the way out

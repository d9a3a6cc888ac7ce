"""The protocol: what each hook is given and what the loop makes of it."""

from dataclasses import dataclass, replace

import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from iec.sampling.ddim import Sampler, takes_single_steps
from iec.sampling.multistep import with_solver
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.spaced("uniform", 4, NoiseSchedule())
NOISE = Noise(0, (0, 1, 2), (3, 4, 4))
ONCE = Correction(1, (0.5,), 0.0)
ALL = Placement("all_steps")


def states(sampler, network):
    return list(sampler.trajectory(network, NOISE))


def test_the_base_changes_nothing_and_ends_in_the_sampler_that_was_given(linear_network):
    sampler = Sampler(TABLE, ONCE, ALL)
    assert NO_CORRECTOR.attach(sampler, ()) == sampler and takes_single_steps(sampler)
    assert with_solver("unipc", Sampler(TABLE)).corrector == NO_CORRECTOR
    with pytest.raises(ConfigError, match="corrector=none"):
        with_solver("unipc", Sampler(TABLE, corrector=Affine()))


@dataclass(frozen=True)
class Affine(Corrector):
    """eps' = 0.9 eps - 0.01 i, and a state that is halved at its end."""

    end_factor: float = 0.5

    def eps(self, eps, step, table):
        return 0.9 * eps - 0.01 * step.index

    def after(self, taken, table):
        return self.end_factor * taken.new


def test_eps_and_state_by_hand_beside_iec(linear_network):
    """Every evaluation is mapped, the state once the step is corrected."""
    m, table = 0.3, replace(TABLE, eta=0.5)
    found = states(Sampler(table, ONCE, ALL, corrector=Affine()), linear_network(m))
    x = found[0]
    for i in range(4):
        fixed = table.A[i] * x + table.sigma[i] * NOISE.of_step(i)
        y = fixed + table.B[i] * (0.9 * m * x - 0.01 * i)
        y = y + 0.5 * (fixed + table.B[i] * (0.9 * m * y - 0.01 * i) - y)
        x = 0.5 * y
        torch.testing.assert_close(found[i + 1], x, rtol=1e-12, atol=1e-12)


def test_a_step_that_changes_nothing_has_no_hooks(linear_network):
    """Not even where it calls the network to refresh the cache."""
    table = Timetable.from_timesteps([500, 500, 200], NoiseSchedule())
    found = states(Sampler(table, refresh=frozenset({0, 1}), corrector=Affine()), linear_network(0.1))
    assert torch.equal(found[1], found[0]) and not torch.equal(found[2], found[1])


@dataclass(frozen=True)
class Told(Corrector):
    """Images 0 and 2 are told other timesteps than image 1."""

    def timestep(self, x, step, table):
        return torch.tensor([step.timestep + 7, step.timestep, step.timestep + 7])


def test_images_can_be_told_timesteps_of_their_own():
    """Each image gets its own timestep, cond and feature, in any order; calls are counted in images."""
    told, table = [], Timetable.spaced("uniform", 4, NoiseSchedule())
    cond = torch.tensor([10.0, 20.0, 30.0])

    def network(x, step, cond=None, cache=None):
        told.append((step.timestep, step.correction, len(x)))
        feature = x.mean((1, 2, 3)) + cond
        if step.mode == "cached":
            assert torch.equal(cache.feature, features[[int(c) // 10 - 1 for c in cond]])
        return Prediction(x * step.timestep / 1000 + cond.view(-1, 1, 1, 1) / 100, feature if step.mode == "full" else None)

    sampler = Sampler(table, ONCE, Placement("first_step"), frozenset({0}), corrector=Told())
    counting = CountingNetwork(network)
    trajectory = sampler.trajectory(counting, NOISE, cond)
    x, t = next(trajectory), 750
    eps = x * torch.tensor([757, 750, 757]).view(-1, 1, 1, 1) / 1000 + cond.view(-1, 1, 1, 1) / 100
    y = table.A[0] * x + table.B[0] * eps
    eps = y * torch.tensor([757, 750, 757]).view(-1, 1, 1, 1) / 1000 + cond.view(-1, 1, 1, 1) / 100
    features = y.mean((1, 2, 3)) + cond
    torch.testing.assert_close(next(trajectory), y + 0.5 * (table.A[0] * x + table.B[0] * eps - y), rtol=1e-12, atol=1e-12)
    assert told == [(t, 0, 1), (t + 7, 0, 2), (t, 1, 1), (t + 7, 1, 2)]
    next(trajectory)
    assert (counting.calls.full, counting.calls.cached, counting.calls.correction) == (3, 3, 3)


@pytest.mark.parametrize("evaluate_at", ["t", "s"])
def test_renorm_restores_the_norm_of_the_noise_and_keeps_its_direction(evaluate_at):
    """Image by image: no batch-mate has a part in it."""

    def network(x, step, cond=None, cache=None):
        return Prediction(torch.sin(3 * x + step.timestep))

    correction, table = Correction(2, (0.5,), 0.0, evaluate_at=evaluate_at), replace(TABLE, eta=0.3)
    plain, corrected, renormed = (
        states(Sampler(table, *how), network)
        for how in ((Correction(0),), (correction, ALL), (replace(correction, renorm=True), ALL))
    )
    fixed = table.A[0] * plain[0] + table.sigma[0] * NOISE.of_step(0)
    before, between, after = (s[1] - fixed for s in (plain, corrected, renormed))
    norms = [torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (before, between, after)]
    torch.testing.assert_close(norms[2], norms[0], rtol=1e-12, atol=0)
    assert (norms[1] < 0.99 * norms[0]).all()  # the corrected noise is an average
    cosine = torch.nn.functional.cosine_similarity(after.flatten(1), between.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


def test_renorm_is_another_cell_only_where_something_is_corrected(make_cell):
    cells = [make_cell(*o.split()) for o in ("iec=all_steps", "iec=all_steps iec.renorm=true", "iec.renorm=true", "")]
    assert "renorm" not in str(cells[0].identity) and cells[1].identity["iec"]["correction"]["renorm"] is True
    assert "-renorm-" in cells[1].slug and cells[2].identity == cells[3].identity

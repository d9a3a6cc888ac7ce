"""What callers may ask of every solver, DDIM and multistep alike."""

import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.ddim import DDIM, Sampler, takes_single_steps
from iec.sampling.multistep import SOLVERS, with_solver
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.from_timesteps([900, 600, 600, 300, 300, 0], NoiseSchedule())
REFRESH = frozenset({0, 3})
"""Step 1 changes nothing and is cached, step 3 changes nothing and refreshes."""


@pytest.fixture(params=SOLVERS)
def solver(request):
    return with_solver(request.param, Sampler(TABLE, refresh=REFRESH, dtype=torch.float32))


def test_every_solver_says_what_it_is(solver, request):
    assert solver.solver == request.node.callspec.params["solver"]
    assert (solver.timetable, solver.refresh, solver.dtype) == (TABLE, REFRESH, torch.float32)
    assert solver.corrected == frozenset() and solver.placement == Placement("none") and solver.epsilon_scale == 1
    assert takes_single_steps(solver) == hasattr(solver, "step") == (solver.solver == DDIM)


def test_every_solver_yields_all_states_and_calls_alike(solver, linear_network):
    network = linear_network(0.1)
    states = list(solver.trajectory(network, Noise(0, (0, 1), (3, 4, 4))))
    assert len(states) == len(TABLE) + 1 and {(x.dtype, x.shape) for x in states} == {(torch.float32, (2, 3, 4, 4))}
    assert [(step.index, step.mode) for step, _ in network.steps] == [
        (0, "full"), (2, "cached"), (3, "full"), (4, "cached"), (5, "cached")
    ]  # fmt: skip
    assert torch.equal(states[2], states[1]) and torch.equal(states[4], states[3])


def test_every_solver_can_have_other_refresh_steps(solver):
    every = frozenset(range(len(TABLE)))
    other = solver.refreshed_at(every)
    assert type(other) is type(solver) and other.refresh == every and solver.refresh == REFRESH
    assert other.solver == solver.solver and [other.mode(i) for i in range(6)] == ["full"] * 6
    assert not any(other.makes_no_call(i) for i in range(6)) and solver.makes_no_call(1) and not solver.makes_no_call(3)
    with pytest.raises(ConfigError, match="first step"):
        solver.refreshed_at(frozenset({1}))


def test_ddim_is_the_sampler_itself():
    sampler = Sampler(TABLE, placement=Placement("all_steps"), epsilon_scale=1.01)
    assert with_solver(DDIM, sampler) is sampler and sampler.corrected == {0, 2, 4, 5}

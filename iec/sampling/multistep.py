"""Multistep solvers, by the schedulers of diffusers, in place of DDIM: what else a network call can buy.

| solver    | diffusers                     | source                        |
|-----------|-------------------------------|-------------------------------|
| dpmsolver | `DPMSolverMultistepScheduler` | DPM-Solver++(2M), 2211.01095  |
| unipc     | `UniPCMultistepScheduler`     | UniPC-2, B_2(h), 2302.04867   |

Both take one network call a step, with an error of order 2 (unipc: 3, as its corrector looks at a step again with the next one's
call), at the timesteps of the cell's own timetable: so that what a technique prepared for its steps fits, and two runs differ in
the solver alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from iec.sampling.ddim import DDIM, Sampler
from iec.sampling.network import FeatureCache, Network, Step, renewed, require_finite
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

SCHEDULERS = {"dpmsolver": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
"""solver -> the class of diffusers, which is loaded with the first scheduler."""
SOLVERS = (DDIM, *SCHEDULERS)


def with_solver(name: str, sampler: Sampler) -> Solver:
    """The solver ``name`` at the steps of ``sampler``, which is itself the one named ddim.

    Raises `ConfigError` for an unknown name, and for what is defined for DDIM alone.
    """
    if name not in SOLVERS:
        raise ConfigError(f"Unknown sampler.solver {name!r}; choose one of {', '.join(SOLVERS)}.")
    if name == DDIM:
        return sampler
    if sampler.corrected or sampler.epsilon_scale != 1 or sampler.corrector != NO_CORRECTOR:
        raise ConfigError(
            f"sampler={name} is a control of its own: corrections and correctors refine DDIM's step. Use iec=none and "
            "corrector=none with it."
        )
    if sampler.adaptive is not None:
        raise ConfigError(
            f"sampler={name} takes the steps of a whole batch, and efficiency.schedule=adaptive splits it. Use sampler=ddim, or "
            "another schedule."
        )
    return MultistepSampler(sampler.timetable, name, sampler.refresh, sampler.dtype)


@dataclass(frozen=True)
class MultistepSampler(Solver):
    """A scheduler of diffusers as a `Solver`. Deterministic, uncorrected; the cache is refreshed as with DDIM.

    Steps that change nothing (t = s) are none of the solver's: they have no step size to divide by. Arithmetic is in ``dtype`` but
    for DPMSolverMultistepScheduler's state, which it rounds to float32. Raises `ConfigError` for a timetable with eta > 0.
    """

    timetable: Timetable
    solver: str = "dpmsolver"
    refresh: frozenset[int] | None = None
    dtype: torch.dtype = torch.float64
    correction: Correction = field(default=Correction(0), init=False)
    placement: Placement = field(default=Placement("none"), init=False)
    epsilon_scale: float = field(default=1.0, init=False)
    corrector: Corrector = field(default=NO_CORRECTOR, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SCHEDULERS:
            raise ConfigError(f"Unknown multistep solver {self.solver!r}; choose one of {', '.join(SCHEDULERS)}.")
        if self.timetable.eta:
            raise ConfigError(f"sampler={self.solver} is deterministic: sampler.eta={self.timetable.eta} needs sampler=ddim.")

    def trajectory(
        self, network: Network, noise: Noise, cond: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """See `Solver.trajectory`."""
        scheduler, cache = self.scheduler(), None
        x = noise.initial(self.dtype, device)
        yield x
        for i, (t, _) in enumerate(self.timetable.pairs):
            if not self.makes_no_call(i):
                x, cache = self._advance(scheduler, network, Step(i, t, self.mode(i)), x, cond, cache)
            yield x

    @torch.no_grad()
    def _advance(
        self, scheduler: Any, network: Network, step: Step, x: Tensor, cond: Tensor | None, cache: FeatureCache | None
    ) -> tuple[Tensor, FeatureCache | None]:
        prediction = network(x, step, cond, cache)
        if not self.timetable.is_noop(step.index):
            x = scheduler.step(prediction.eps.to(x.dtype), step.timestep, x, return_dict=False)[0]
            require_finite(x, step)
        return x, renewed(cache, prediction, step)

    def scheduler(self) -> Any:
        """A new one, at the first of the timetable's steps that change something."""
        import diffusers

        table, clean = self.timetable, self.timetable.abar_s[-1] == 1
        scheduler = getattr(diffusers, SCHEDULERS[self.solver])(
            trained_betas=betas(table), solver_order=2, final_sigmas_type="zero" if clean else "sigma_min"
        )
        steps = [i for i in range(len(table)) if not table.is_noop(i)]
        scheduler.set_timesteps(len(steps))
        scheduler.set_begin_index(0)
        abar = np.array([*table.abar_t[steps], table.abar_s[-1]])
        scheduler.timesteps = torch.tensor([table.pairs[i][0] for i in steps])
        scheduler.sigmas = torch.from_numpy(np.sqrt((1 - abar) / abar))  # float64, as ours; on the CPU, as diffusers keeps them
        return scheduler


def betas(table: Timetable) -> np.ndarray:
    """Of the training process, float64."""
    abar = table.schedule.abar
    return 1 - abar / np.concatenate([[1.0], abar[:-1]])

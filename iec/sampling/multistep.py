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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Network, Step, require_finite
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable

DDIM = "ddim"
SCHEDULERS = {"dpmsolver": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
"""solver -> the class of diffusers, which is loaded with the first scheduler that is made."""
SOLVERS = (DDIM, *SCHEDULERS)


@dataclass(frozen=True)
class MultistepSampler(Sampler):
    """A `Sampler` whose solver is a scheduler of diffusers. Deterministic, uncorrected; the cache is refreshed as with DDIM.

    Steps that change nothing (t = s) are none of the solver's: they have no step size to divide by. Arithmetic is in ``dtype`` but
    for DPMSolverMultistepScheduler's state, which it rounds to float32. Raises `ConfigError` for what is defined for DDIM alone.
    """

    solver: str = "dpmsolver"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SCHEDULERS:
            raise ConfigError(f"Unknown sampler.solver {self.solver!r}; choose one of {', '.join(SOLVERS)}.")
        if self.corrected or self.epsilon_scale != 1:
            raise ConfigError(
                f"sampler={self.solver} is a control of its own: corrections refine DDIM's step. Use iec=none with it."
            )
        if self.timetable.eta:
            raise ConfigError(f"sampler={self.solver} is deterministic: sampler.eta={self.timetable.eta} needs sampler=ddim.")

    def trajectory(
        self, network: Network, noise: Noise, cond: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """See `Sampler.trajectory`."""
        scheduler, cache = self.scheduler(), None
        x = noise.initial(self.dtype, device)
        yield x
        for i, (t, _) in enumerate(self.timetable.pairs):
            mode = self._mode(i)
            if not self.timetable.is_noop(i) or (self.refresh is not None and mode == "full"):
                x, cache = self._advance(scheduler, network, Step(i, t, mode), x, cond, cache)
            yield x

    def step(self, *_: Any) -> tuple[Tensor, FeatureCache | None]:
        """Raises `ConfigError`: a step depends on those before it."""
        raise ConfigError(
            f"A step of {self.solver} depends on those before it, and cannot be taken alone. Use sampler=ddim for this."
        )

    @torch.no_grad()
    def _advance(
        self, scheduler: Any, network: Network, step: Step, x: Tensor, cond: Tensor | None, cache: FeatureCache | None
    ) -> tuple[Tensor, FeatureCache | None]:
        prediction = network(x, step, cond, cache)
        if prediction.feature is not None:
            cache = FeatureCache(prediction.feature, step)
        if not self.timetable.is_noop(step.index):
            x = scheduler.step(prediction.eps.to(x.dtype), step.timestep, x, return_dict=False)[0]
            require_finite(x, step)
        return x, cache

    def scheduler(self) -> Any:
        """A new one, at the first of the timetable's steps that change something."""
        import diffusers

        table, clean = self.timetable, self.timetable.abar_s[-1] == 1
        made = getattr(diffusers, SCHEDULERS[self.solver])(
            trained_betas=betas(table), solver_order=2, final_sigmas_type="zero" if clean else "sigma_min"
        )
        steps = [i for i in range(len(table)) if not table.is_noop(i)]
        made.set_timesteps(len(steps))
        made.set_begin_index(0)
        abar = np.array([*table.abar_t[steps], table.abar_s[-1]])
        made.timesteps = torch.tensor([table.pairs[i][0] for i in steps])
        made.sigmas = torch.from_numpy(np.sqrt((1 - abar) / abar))  # float64, as ours; on the CPU, as diffusers keeps them
        return made


def betas(table: Timetable) -> np.ndarray:
    """Of the training process, float64."""
    abar = table.schedule.abar
    return 1 - abar / np.concatenate([[1.0], abar[:-1]])

"""Shifted timesteps (arXiv 2305.15583): the network is told the timestep whose noise level fits the state, image by image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from iec.errors import ConfigError, require_fields
from iec.sampling.corrector import Corrector
from iec.sampling.network import Step
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class TimeShift(Corrector):
    """t' = argmin over |tau - t| <= window / 2 of |Var(x_t) - (abar_tau data_variance + 1 - abar_tau)|,   for t > cutoff

    Var: over all values of an image. Of several tau that fit alike the nearest to t. A, B and the row of a quantizer or a cache
    stay those of the step; the corrections of IEC at t are told t', too. data_variance: of an image's values; 0 is the authors'
    rule, which takes the signal's variance for noise and is biased at small t, hence the cutoff. The authors' example for few
    steps (CIFAR-10, DPM-Solver) has window 30 and cutoff 300.

    Images that are told one timestep are evaluated together: as many calls, in smaller batches, which takes more time.
    """

    window: int = 30
    cutoff: int = 300
    data_variance: float = 0.0

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        if self.window < 0:
            raise ConfigError(f"corrector.window={self.window!r} must be a whole number of at least 0; 0 shifts nothing.")
        if not 0 <= self.data_variance <= 10:
            raise ConfigError(f"corrector.data_variance={self.data_variance} is outside [0, 10]; pixels of [-1, 1] have at most 1.")

    def timestep(self, x: Tensor, step: Step, table: Timetable) -> int | Tensor:
        half, t = self.window // 2, step.timestep
        if not half or t <= self.cutoff:
            return t
        last = table.schedule.num_timesteps - 1
        near = sorted(range(max(0, t - half), min(last, t + half) + 1), key=lambda tau: abs(tau - t))
        abar = torch.from_numpy(table.schedule.abar[near]).to(x)
        expected = abar * self.data_variance + 1 - abar
        distance = (x.flatten(1).var(dim=1)[:, None] - expected).abs()
        return torch.tensor(near, device=x.device)[distance.argmin(dim=1)]

"""Error as noise: a state with an error of known variance is treated as one of a noisier time (after StepbaQ, NeurIPS 2024)."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from iec.correctors.pairs import CalibratedCorrector, PairedRuns
from iec.efficiency.moments import Moments
from iec.errors import ConfigError
from iec.sampling.corrector import Corrector, Taken
from iec.sampling.network import Step
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class Stepback(CalibratedCorrector):
    """With mean m_i and variance V_i of the error d = e - f of step i, fitted to ``calibration_images`` full-precision runs:

        eps' = e - m_i                                       m_i for each channel; V_i over all, about the channels' means
        x_s <- sqrt(abar'_s / abar_s) x_s,   abar'_s = abar_s / (1 + B_i^2 V_i)
        the next step starts at abar'_s: its A and B are those from there to its own s, and the network is told the timestep whose
        abar is nearest to abar'_s

    B_i^2 V_i is the variance that the error adds to x_s; scaled to variance 1 again (for data of variance 1) the state is one of
    level abar'_s. abar'_s stays continuous, so that shifts of less than a timestep count. The last state is left as it is. The
    quantizer's and the cache's row stays i.

    Rebuilt from a description, whose named parts are an aligned timestep, a rescaled state and an adapted step size: neither the
    paper's formulas nor its code were to be had.
    """

    single_steps: ClassVar[bool] = False
    keeps_timesteps: ClassVar[bool] = False  # of what `fitted` gives

    def fitted(self, runs: PairedRuns) -> Corrector:
        return stepped_back(runs.moments(self.calibration_images), runs.sampler.timetable)


def stepped_back(moments: Moments, table: Timetable) -> "SteppedBack":
    """The corrector for these moments of (e, f). Raises `ConfigError` for errors so large that a level is noisier than any
    timestep: where V is above 1 or so, a step adds more noise than it takes out.
    """
    mean = torch.where(moments.count > 0, moments.mean_x - moments.mean_y, 0.0)
    error = (moments.var_x + moments.var_y - 2 * moments.cov).clamp_min(0).mean(1)
    variances = torch.where(moments.count[:, 0] > 0, error, 0.0).cpu().numpy()
    start, rescale = np.array(table.abar_t), np.ones(len(table))
    steps = [i for i in range(len(table)) if not table.is_noop(i)]
    for i, following in itertools.pairwise(steps):
        _, b = coefficients(table, i, start[i])
        growth = 1 + b**2 * variances[i]
        rescale[i] = growth**-0.5
        start[following] = table.abar_s[i] / growth
        if start[following] < table.schedule.abar[-1]:
            raise ConfigError(
                f"corrector=stepback: the error of step {i} has variance {variances[i]:.3g}, and no timestep is as noisy as the "
                "state would be then. Use corrector=affine or none, or more sampler.steps."
            )
    return SteppedBack(mean, tuple(start.tolist()), tuple(rescale.tolist()))


def coefficients(table: Timetable, i: int, abar: float) -> tuple[float, float]:
    """A and B from level ``abar`` to the s of step i."""
    abar_s, sigma = float(table.abar_s[i]), float(table.sigma[i])
    a = (abar_s / abar) ** 0.5
    return a, max(1 - abar_s - sigma**2, 0.0) ** 0.5 - a * (1 - abar) ** 0.5


@dataclass(frozen=True, eq=False)
class SteppedBack(Corrector):
    """mean: of the error, float64 [T, C]. start: abar' of the state where each step begins. rescale: of the state where it ends."""

    __hash__, __eq__ = object.__hash__, object.__eq__  # a tensor has no single truth to compare by

    single_steps: ClassVar[bool] = False
    needs_refresh_steps: ClassVar[bool] = True
    mean: Tensor
    start: tuple[float, ...]
    rescale: tuple[float, ...]

    def timestep(self, x: Tensor, step: Step, table: Timetable) -> int:
        start = self.start[step.index]
        return step.timestep if start == table.abar_t[step.index] else int(np.abs(table.schedule.abar - start).argmin())

    def eps(self, eps: Tensor, step: Step, table: Timetable) -> Tensor:
        return eps - self.mean[step.index].to(eps)[:, None, None]

    def after(self, taken: Taken, table: Timetable) -> Tensor:
        i = taken.index
        if self.start[i] == table.abar_t[i] and self.rescale[i] == 1:
            return taken.new
        a, b = coefficients(table, i, self.start[i])
        return self.rescale[i] * (taken.new + (a - float(table.A[i])) * taken.x + (b - float(table.B[i])) * taken.eps)

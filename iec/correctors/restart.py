"""Restart (arXiv 2306.14878): noise is added back and some steps are made again. A control that costs calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iec.errors import ConfigError, require_fields
from iec.sampling.corrector import Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class Restart(Corrector):
    """``repeats`` times, once the run has come down to the level sigma_min: noise of variance sigma_max^2 - sigma_min^2 is added
    (in x / sqrt(abar)), and the run's own steps from there are made again.

    The levels are those of the timetable that are nearest to sigma_min and sigma_max, sigma = sqrt((1 - abar) / abar), so that
    calibrations of single steps hold. With a cache the first step that is made again is the last refresh up to it. The steps are as
    they were the first time, with their corrections by IEC, and their calls are counted once more: repeats times (steps) in all.
    The noise of a restart belongs to (seed, image), like that of a step. Default: the paper's for CIFAR-10 (VP, 18 Heun steps).

    Raises `ConfigError` for levels without a step between them, and for eta > 0, whose noise a step made again would repeat.
    """

    single_steps: ClassVar[bool] = False
    needs_refresh_steps: ClassVar[bool] = True
    sigma_min: float = 0.06
    sigma_max: float = 0.3
    repeats: int = 2

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        if not 0 <= self.sigma_min < self.sigma_max < float("inf"):
            raise ConfigError(
                f"corrector.sigma_min={self.sigma_min} and corrector.sigma_max={self.sigma_max} need 0 <= sigma_min < sigma_max."
            )
        if self.repeats < 1:
            raise ConfigError(f"corrector.repeats={self.repeats!r} must be a whole number of at least 1. Use corrector=none for 0.")

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        if sampler.timetable.eta:
            raise ConfigError("corrector=restart repeats steps without noise of their own: use sampler.eta=0.")
        first, last = self.steps(sampler.timetable)
        if first > last:
            raise ConfigError(
                f"No step lies between corrector.sigma_max={self.sigma_max} and corrector.sigma_min={self.sigma_min}. Take levels "
                "that are further apart, or more sampler.steps."
            )
        return super().attach(sampler, shape)

    def steps(self, table: Timetable) -> tuple[int, int]:
        """The first and the last step that are made again, without a cache."""
        above, below = (np.sqrt((1 - abar) / abar) for abar in (table.abar_t, table.abar_s))
        return int(np.abs(above - self.sigma_max).argmin()), int(np.abs(below - self.sigma_min).argmin())

    def restarts(self, i: int, sampler: Solver) -> Sequence[int]:
        first, last = self.steps(sampler.timetable)
        if sampler.refresh is not None:
            first = max(step for step in sampler.refresh if step <= first)
        return [first] * self.repeats if i == last else []

"""`eps' = g e - b` with tables fitted to pairs of predictions. Published methods differ in the fit, see `iec.correctors.fits`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from iec.correctors.fits import FITS, Tables
from iec.correctors.pairs import CalibratedCorrector, PairedRuns
from iec.efficiency.moments import Moments
from iec.errors import ConfigError
from iec.sampling.corrector import Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.timetable import Timetable

GRANULARITIES, SOURCES = ("step", "channel"), ("full_precision", "corrected")


@dataclass(frozen=True)
class Affine(CalibratedCorrector):
    """A gain and a bias for each step (``granularity=step``), or for each step and channel (``channel``; the gain of ``ptqd`` is
    over all channels then too, as in its released code).

    fit: see `iec.correctors.fits`. source: the states at which pairs are taken: of the ``full_precision`` run, as PTQD and D2-DPM
    do, or of the efficient run that is ``corrected`` step by step, with what was fitted to the pairs up to there.
    calibration_images: runs that it is fitted to. ridge: of ``tac``, in units of the mean square of a pixel of eps, about 1.

    The row of a step is applied to all its calls, those of IEC too. It holds for one timetable, guidance and technique. Raises
    `ConfigError`.
    """

    fit: str = "d2"
    granularity: str = "step"
    source: str = "full_precision"
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in {"fit": FITS, "granularity": GRANULARITIES, "source": SOURCES}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"corrector.{name}={getattr(self, name)!r}; choose {', '.join(allowed)}.")
        if not 0 <= self.ridge < float("inf"):
            raise ConfigError(f"corrector.ridge={self.ridge} must be finite and not negative; 0 is plain least squares.")

    def label(self, name: str) -> str:
        return f"{name}-{self.fit}"

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity().items() if key != "ridge" or self.fit == "tac"}

    def tables(self, moments: Moments, table: Timetable) -> Tables:
        """Of all steps; g = 1 and b = 0 at those without pairs."""
        gain, bias = FITS[self.fit](moments if self.granularity == "channel" else moments.pooled(), table, self.ridge)
        known = moments.count > 0
        return Tables(torch.where(known, gain, 1.0), torch.where(known, bias, 0.0))

    def fitted(self, runs: PairedRuns) -> Corrector:
        table = runs.sampler.timetable
        if self.source == "full_precision":
            return AffineTables(*self.tables(runs.moments(self.calibration_images), table))

        def correct(moments: Moments, i: int, eps: Tensor) -> Tensor:
            return AffineTables(*self.tables(moments, table)).eps(eps, Step(i, table.pairs[i][0]), table)

        return AffineTables(*self.tables(runs.moments(self.calibration_images, correct, corrector=self.identity()), table))


@dataclass(frozen=True, eq=False)
class AffineTables(Corrector):
    """eps' = gain_i eps - bias_i, with tables float64 [T, C] or [T, 1]. A gain of 1 and a bias of 0 change no bit."""

    __hash__, __eq__ = object.__hash__, object.__eq__  # tensors have no single truth to compare by

    needs_refresh_steps: ClassVar[bool] = True
    gain: Tensor
    bias: Tensor

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        """Raises `ConfigError` for another number of steps or channels than it was fitted to."""
        steps, channels = self.gain.shape
        if steps != len(sampler.timetable) or channels not in (1, shape[0]):
            raise ConfigError(
                f"The corrector was fitted to {steps} steps and {channels} channels, and this run has {len(sampler.timetable)} "
                f"steps and {shape[0]} channels. Fit it again, or sample the {steps} steps."
            )
        return super().attach(sampler, shape)

    def eps(self, eps: Tensor, step: Step, table: Timetable) -> Tensor:
        gain, bias = (row[step.index].to(eps)[:, None, None] for row in (self.gain, self.bias))
        return gain * eps - bias

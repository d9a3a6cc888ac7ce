"""Epsilon scaling with its divisor searched: the one whose images end nearest to those of full precision."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch

from iec.correctors.es import EpsilonScaling, require_unscaled
from iec.correctors.pairs import CalibratedCorrector, PairedRuns, calling_steps
from iec.errors import ConfigError
from iec.sampling.corrector import Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.solver import Solver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpsilonSearch(CalibratedCorrector):
    """eps' = eps / b,   b = argmin of E |x_0(b) - x_0*|^2 over ``values`` equidistant b in [low, high]; of equals the nearest to 1.

    x_0*: the image of the full-precision run from the same noise, which no image of a cell has. The authors of epsilon scaling
    (arXiv 2308.15321) search b by FID, which takes thousands of images for every value: another aim, and another b. Each value is
    sampled with on ``calibration_images`` runs, which the reference makes, too. Raises `ConfigError`.
    """

    needs_refresh_steps: ClassVar[bool] = False
    low: float = 0.98
    high: float = 1.02
    values: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.low < self.high <= 2:
            raise ConfigError(f"corrector.low={self.low} and corrector.high={self.high} must rise within [0.5, 2].")
        if self.values < 2:
            raise ConfigError(f"corrector.values={self.values!r} must be a whole number of at least 2; corrector=es has one b.")

    @property
    def divisors(self) -> list[float]:
        """The b that are tried, ascending; rounded to 10 digits, so that 1 is 1."""
        return [round(b, 10) for b in torch.linspace(self.low, self.high, self.values, dtype=torch.float64).tolist()]

    def calibration_calls(self, sampler: Solver) -> int:
        """One a step, image and value, and one of the reference."""
        return (self.values + 1) * self.calibration_images * calling_steps(sampler)

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        require_unscaled(sampler, "es_search")
        return super().attach(sampler, shape)

    def fitted(self, runs: PairedRuns) -> Corrector:
        divisors = self.divisors
        found = runs.final_errors([EpsilonScaling(b) for b in divisors], self.calibration_images, divisors=divisors)
        best = min(zip(found.tolist(), divisors, strict=True), key=lambda pair: (pair[0], abs(pair[1] - 1)))[1]
        if best in (divisors[0], divisors[-1]):
            log.warning(
                "note: the best divisor is %g, an end of corrector.low .. corrector.high: a wider range may hold a better one", best
            )
        else:
            log.info("corrector=es_search: the best divisor is %g", best)
        return EpsilonScaling(best)

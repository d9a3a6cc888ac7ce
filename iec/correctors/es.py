"""Epsilon scaling (arXiv 2308.15321): the predicted noise divided by a number, constant or linear in the step."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from iec.errors import ConfigError, require_fields
from iec.sampling.corrector import Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.timetable import Timetable

ENDS = ("noisy", "clean")


@dataclass(frozen=True)
class EpsilonScaling(Corrector):
    """eps' = eps / (b + k n),   n = T - 1 - i (``end=noisy``: the noisiest step is scaled most) or n = i (``end=clean``).

    Nothing is fitted: b and k are searched by FID. In the authors' code (forever208/ADM-ES) the noisy end is scaled most; another
    one (Mingxiao-Li/TS-DPM) scales the clean end most. The authors' values for CIFAR-10 and 20 steps are b 1.017, or b 1.0 and
    k 0.0025. b < 1 removes more noise than predicted. With k = 0 this is ``iec.epsilon_scale=b``, and the same cell.

    Raises `ConfigError` unless b is in [0.5, 2], and, when it is attached, unless all divisors are.
    """

    b: float = 1.005
    k: float = 0.0
    end: str = "noisy"

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        if not 0.5 <= self.b <= 2:
            raise ConfigError(f"corrector.b={self.b} is outside [0.5, 2]; 1 changes nothing.")
        if not math.isfinite(self.k):
            raise ConfigError(f"corrector.k={self.k} must be a finite number; 0 divides all steps by b.")
        if self.end not in ENDS:
            raise ConfigError(f"corrector.end={self.end!r}; choose {' or '.join(ENDS)}.")

    def divisor(self, i: int, num_steps: int) -> float:
        """Of step i of T = ``num_steps``."""
        return self.b + self.k * (num_steps - 1 - i if self.end == "noisy" else i)

    def eps(self, eps: Tensor, step: Step, table: Timetable) -> Tensor:
        return eps / self.divisor(step.index, len(table))

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        steps = len(sampler.timetable)
        require_unscaled(sampler, "es")
        ends = [self.divisor(i, steps) for i in (0, steps - 1)]
        if not all(0.5 <= divisor <= 2 for divisor in ends):
            raise ConfigError(
                f"corrector.b={self.b} and corrector.k={self.k} divide by {ends[0]:g} .. {ends[1]:g} over {steps} steps, outside "
                "[0.5, 2]. Use a smaller corrector.k."
            )
        return replace(sampler, epsilon_scale=self.b) if self.k == 0 else super().attach(sampler, shape)


def require_unscaled(sampler: Sampler, name: str) -> None:
    """Raises `ConfigError` for a sampler that divides by ``iec.epsilon_scale``, too. name: of the corrector."""
    if sampler.epsilon_scale != 1:
        raise ConfigError(
            f"iec.epsilon_scale={sampler.epsilon_scale} and corrector={name} are one method. Use corrector=es alone, with "
            f"corrector.b={sampler.epsilon_scale} (or iec.epsilon_scale=1)."
        )

"""Lagged Heun: the trapezoidal rule of a step, made when the next step has called the network at its end (UniC-1, 2302.04867)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from iec.errors import ConfigError, require_fields
from iec.sampling.corrector import Corrector, Taken
from iec.sampling.network import Step
from iec.sampling.timetable import Timetable

STEPS = ("all", "full")


@dataclass(frozen=True)
class UniC(Corrector):
    """x_s <- x_s + (B / 2) (eps(x_s, s) - eps),   eps: the noise that the step from t to s took, B its coefficient.

    Without corrections of IEC this is A x_t + (B / 2) (eps(x_t, t) + eps(x_s, s)): Heun's rule without its second call, because
    eps(x_s, s) is what the next step needs anyway. It is not evaluated again at the corrected x_s. In log-SNR it is the corrector
    of UniPC of order 1 (noise prediction, B_2). The first step has nothing to look back at, and the last state stays as it is. The
    states of a trajectory are those that the network was called at, before their correction.

    steps: ``all``, or with a cache ``full``: only where eps(x_s, s) is a full call.
    """

    single_steps: ClassVar[bool] = False
    steps: str = "all"

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        if self.steps not in STEPS:
            raise ConfigError(f"corrector.steps={self.steps!r}; choose {' or '.join(STEPS)}.")

    def before(self, x: Tensor, eps: Tensor, step: Step, table: Timetable, last: Taken | None) -> Tensor:
        if last is None or (self.steps == "full" and step.mode == "cached"):
            return x
        return x + last.b / 2 * (eps - last.eps)

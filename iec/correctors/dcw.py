"""Differential correction in wavelet bands (DCW, arXiv 2604.16044): the state moved away from the predicted image after a step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from iec.errors import ConfigError, require_fields
from iec.sampling.corrector import Corrector, Taken
from iec.sampling.ddim import Sampler
from iec.sampling.timetable import Timetable

REACH = 1.0
"""Of a coefficient, either way."""


@dataclass(frozen=True)
class DCW(Corrector):
    """x_s <- x_s + lambda (x_s - sqrt(abar_s) x_0),   x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t),   on bands of x_s:

    | band    | lambda of a step                      |
    |---------|---------------------------------------|
    | `low`   | low sig_t / sig_max                   |
    | `high`  | high (1 - sig_t / sig_max)            |
    | `pixel` | pixel                                 |

    low: the averages of 2 x 2 pixels (the LL band of Haar's wavelet). high: the rest. pixel: both, at one weight. sig =
    sqrt((1 - abar) / abar), sig_max that of the first step. The authors advise to search low first, then high, and give 0.005 for
    low (EDM, CIFAR-10, 13 Euler steps). x_s - sqrt(abar_s) x_0 is the noise in x_s: a positive coefficient leaves more noise in, a
    negative one less. With eta = 0 ``pixel`` alone is epsilon scaling, by another divisor at each step. The step to a clean image
    stays as it is.

    The original works in x / sqrt(abar), where this is the same. With corrections of IEC, eps is what they made of it.

    Raises `ConfigError` for coefficients outside [-1, 1] or all 0, and for bands of images with an odd side.
    """

    low: float = 0.005
    high: float = 0.0
    pixel: float = 0.0

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        coefficients = {name: getattr(self, name) for name in ("low", "high", "pixel")}
        for name, value in coefficients.items():
            if not (math.isfinite(value) and abs(value) <= REACH):
                raise ConfigError(f"corrector.{name}={value} is outside [-{REACH:g}, {REACH:g}]; 0 leaves the band alone.")
        if not any(coefficients.values()):
            raise ConfigError("corrector=dcw with all coefficients 0 changes nothing. Use corrector=none, or corrector.low=0.005.")

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        if (self.low or self.high) and any(side % 2 for side in shape[-2:]):
            raise ConfigError(
                f"The bands of corrector=dcw need images with even sides, and these are {shape[-2]} x {shape[-1]}. Use "
                "corrector.pixel with corrector.low=0 and corrector.high=0."
            )
        return super().attach(sampler, shape)

    def after(self, taken: Taken, table: Timetable) -> Tensor:
        abar_t, abar_s = float(table.abar_t[taken.index]), float(table.abar_s[taken.index])
        if abar_s == 1:
            return taken.new
        x0 = (taken.x - (1 - abar_t) ** 0.5 * taken.eps) / abar_t**0.5
        noise = taken.new - abar_s**0.5 * x0
        share = sigma(abar_t) / sigma(float(table.abar_t[0]))
        change = self.pixel * noise
        if self.low or self.high:
            low = low_band(noise)
            change = change + self.low * share * low + self.high * (1 - share) * (noise - low)
        return taken.new + change


def sigma(abar: float) -> float:
    """sqrt((1 - abar) / abar), the noise level in sigma's variable."""
    return ((1 - abar) / abar) ** 0.5


def low_band(x: Tensor) -> Tensor:
    """x [B, C, H, W] of even sides with every 2 x 2 pixels replaced by their mean: what remains of its LL band alone."""
    means = torch.nn.functional.avg_pool2d(x, 2)
    return means.repeat_interleave(2, -2).repeat_interleave(2, -1)

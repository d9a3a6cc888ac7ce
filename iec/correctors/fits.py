"""Gain and bias of `eps' = g e - b` from the moments of pairs (e, f): e of the efficient network, f of the full-precision one.

d = e - f is the error. V = var(d) (1 - rho^2) is its part that e does not explain, rho the correlation of d and e.

| fit      | g                              | b                   | minimises, or restores                        | source     |
|----------|--------------------------------|---------------------|-----------------------------------------------|------------|
| `d2`     | cov(e, f) / var(e)             | mean(g e - f)       | E (g e - b - f)^2: least squares of f on e    | 2501.08180 |
| `ptqd`   | 1 / (1 + k)                    | (mean d - k mean f) g | the slope of e on f; the rest of d stays    | 2305.10657 |
| `tac`    | (E e f + r) / (E e^2 + r)      | 0                   | E (g e - f)^2 + r (g - 1)^2                   | 2407.03917 |
| `qdrift` | 1 + (sig_t - sig_s) V / (2 sig_t) | 0                | the marginals, d being noise of variance V    | 2603.18095 |
| `es`     | sqrt(E f^2 / E e^2)            | 0                   | the size of f: epsilon scaling, measured      | 2308.15321 |

k = cov(f, d) / var(f) over all channels, and at least 0; sig = sqrt((1 - abar) / abar).

Where this differs from released code. `ptqd` there subtracts mean d before it divides, which leaves a bias of k mean f. `d2` there
drops |d - mean| > 4 standard deviations first, which biases the slope; nothing is dropped here. Their noise schedules for eta > 0
are left out. `tac`: the paper's term in (e / f)^2 is left out, because its mean does not exist where f passes through 0; r is over
the mean square of a pixel, and images are pooled.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from iec.efficiency.moments import Moments
from iec.sampling.timetable import Timetable


class Tables(NamedTuple):
    """Gain and bias, float64 [T, C], or [T, 1] for all channels alike."""

    gain: Tensor
    bias: Tensor


def d2(m: Moments, table: Timetable, ridge: float) -> Tables:
    gain = _ratio(m.cov, m.var_x)
    return Tables(gain, gain * m.mean_x - m.mean_y)


def ptqd(m: Moments, table: Timetable, ridge: float) -> Tables:
    whole = m.pooled()
    k = (_ratio(whole.cov, whole.var_y) - 1).clamp_min(0)
    bias = (m.mean_x - m.mean_y - k * m.mean_y) / (1 + k)
    return Tables((1 / (1 + k)).expand_as(bias), bias)


def tac(m: Moments, table: Timetable, ridge: float) -> Tables:
    product, square = m.cov + m.mean_x * m.mean_y, m.var_x + m.mean_x**2
    return _gain_alone(_ratio(product + ridge, square + ridge))


def qdrift(m: Moments, table: Timetable, ridge: float) -> Tables:
    error = m.var_x + m.var_y - 2 * m.cov
    unexplained = torch.where(m.var_x > 0, error - (m.var_x - m.cov) ** 2 / m.var_x, error).clamp_min(0)
    sig_t, sig_s = (torch.tensor((1 - abar) / abar).sqrt().to(error.device)[:, None] for abar in (table.abar_t, table.abar_s))
    return _gain_alone(1 + (sig_t - sig_s) / (2 * sig_t) * unexplained)


def es(m: Moments, table: Timetable, ridge: float) -> Tables:
    return _gain_alone(_ratio(m.var_y + m.mean_y**2, m.var_x + m.mean_x**2).sqrt())


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 1 where b is 0: values that do not vary say nothing."""
    return torch.where(b > 0, a / b, 1.0)


def _gain_alone(gain: Tensor) -> Tables:
    return Tables(gain, torch.zeros_like(gain))


FITS: dict[str, Callable[[Moments, Timetable, float], Tables]] = {"d2": d2, "ptqd": ptqd, "tac": tac, "qdrift": qdrift, "es": es}

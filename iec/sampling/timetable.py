"""Noise schedule and sampling timetable: pure data in float64.

| here    | paper (arXiv 2511.06250)                  | DDIM (arXiv 2010.02502)  |
|---------|-------------------------------------------|--------------------------|
| abar    | cumulative product of 1 - beta            | alpha (their notation)   |
| t, s    | tau_i and the next, less noisy, point     | tau_i, tau_{i-1}         |
| A, B    | x_s = A x_t + B eps                       | eq. 12 with sigma = 0    |
| sigma   | noise added by a step; eta times DDPM's   | eq. 16                   |
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np

from iec.errors import ConfigError, require_fields, require_type

CLEAN = -1
"""The timestep of a clean image: abar = 1."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Betas of the training process and their cumulative product.

    kind: ``linear`` (pixel DDPM) or ``scaled_linear`` (LDM and Stable Diffusion call this one "linear"): betas are the
    squares of a linear range between the square roots. The defaults are DDPM's.
    """

    kind: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        require_fields(self, "NoiseSchedule.")
        if self.kind not in ("linear", "scaled_linear"):
            raise ConfigError(f"Unknown noise schedule {self.kind!r}; choose linear or scaled_linear.")
        if not 0 < self.beta_start <= self.beta_end < 1 or self.num_timesteps < 1:
            raise ConfigError(f"{self}: needs 0 < beta_start <= beta_end < 1 and num_timesteps >= 1.")

    @cached_property
    def abar(self) -> np.ndarray:
        """abar(t) for t = 0 .. num_timesteps - 1; float64, decreasing, in (0, 1)."""
        power = 1.0 if self.kind == "linear" else 2.0
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return np.cumprod(1.0 - np.linspace(*ends, self.num_timesteps, dtype=np.float64) ** power)

    def at(self, t: int) -> float:
        """abar(t); 1 at `CLEAN`."""
        return 1.0 if t == CLEAN else float(self.abar[t])


def spaced_timesteps(spacing: str, steps: int, schedule: NoiseSchedule) -> tuple[int, ...]:
    """Decreasing timesteps tau_0 .. tau_{T-1} (with repetitions for ``quad``).

    * ``uniform``: 0, c, 2c, ... with c = num_timesteps // T (pixel DDIM; ermongroup/ddim runners/diffusion.py);
    * ``leading_plus_one``: the same plus one each (LDM and SD; CompVis ldm/modules/diffusionmodules/util.py);
    * ``quad``: int((k sqrt(0.8 num_timesteps) / (T - 1))^2), k = 0 .. T-1 (CIFAR-10; the largest is 0.8 num_timesteps).

    Exactly T values. Where T does not divide num_timesteps the original code of the first two returns more than T; here, as in
    diffusers ("leading"), the T lowest are kept, and refused if T c is less than four fifths of num_timesteps: the noisiest part of
    the schedule would be left out. A T that divides it is as in the original code, however small: T = 1 is the timestep 0 (or 1)
    alone. Give explicit timesteps for a run of few steps from pure noise.
    """
    require_type("schedule", schedule, NoiseSchedule, "model.card.schedule, or iec.NoiseSchedule()")
    total = schedule.num_timesteps
    if not isinstance(steps, Integral) or not 1 <= steps <= total:
        raise ConfigError(
            f"sampler.steps={steps!r} must be a whole number of 1 .. {total}, the number of steps that the model was trained with."
        )
    if spacing == "quad":
        return tuple(int(v) for v in np.linspace(0, np.sqrt(total * 0.8), steps) ** 2)[::-1]
    if spacing not in ("uniform", "leading_plus_one"):
        raise ConfigError(f"Unknown sampler.spacing {spacing!r}; choose uniform, quad or leading_plus_one.")
    stride, offset = total // steps, int(spacing == "leading_plus_one")
    if stride * steps < 0.8 * total or stride * (steps - 1) + offset >= total:
        raise ConfigError(
            f"sampler.steps={steps} with sampler.spacing={spacing} gives timesteps {offset} .. {stride * (steps - 1) + offset} "
            f"of a schedule of {total}. Choose a smaller number that divides {total}, or give sampler.timesteps explicitly."
        )
    return tuple(range(offset, stride * steps + offset, stride))[::-1]


@dataclass(frozen=True)
class Timetable:
    """The T steps of a run: explicit (t, s) pairs, from the noisiest, and the coefficients of each, float64 [T].

        x_s = A x_t + B eps(x_t, t) + sigma z,   A = sqrt(abar_s / abar_t),
        B = sqrt(1 - abar_s - sigma^2) - sqrt(abar_s (1 - abar_t) / abar_t),
        sigma = eta sqrt((1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s))     (DDIM, arXiv 2010.02502, eqs. 12 and 16)

    The last s is `CLEAN` (abar = 1, pixel models) or 0 (abar(0), latent models). A pair with t = s (quad spacing repeats its
    smallest timesteps) is a no-op: A = 1, B = 0, sigma = 0. Raises `ConfigError` for pairs that do not form a chain.
    """

    pairs: tuple[tuple[int, int], ...]
    schedule: NoiseSchedule
    eta: float = 0.0

    def __post_init__(self) -> None:
        require_fields(self, "sampler.")
        require_type("schedule", self.schedule, NoiseSchedule, "model.card.schedule, or iec.NoiseSchedule()")
        last = self.schedule.num_timesteps - 1
        if not self.pairs:
            raise ConfigError("A timetable needs at least one (t, s) pair.")
        if fractions := [t for pair in self.pairs for t in pair if not isinstance(t, Integral)]:
            raise ConfigError(f"The timesteps {fractions[:3]} must be whole numbers.")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"sampler.eta={self.eta} is outside [0, 1] (0 is DDIM, 1 is DDPM).")
        for i, (t, s) in enumerate(self.pairs):
            if not (0 <= t <= last and CLEAN <= s <= t):
                raise ConfigError(f"Step {i} goes from t={t} to s={s}; needs 0 <= t <= {last} and {CLEAN} <= s <= t.")
            if i and t != self.pairs[i - 1][1]:
                raise ConfigError(f"Step {i} starts at t={t}, but step {i - 1} ended at s={self.pairs[i - 1][1]}.")
        object.__setattr__(self, "pairs", tuple((int(t), int(s)) for t, s in self.pairs))  # of NumPy they would be no JSON values

    @classmethod
    def from_timesteps(
        cls, timesteps: Sequence[int], schedule: NoiseSchedule, *, final: int = CLEAN, eta: float = 0.0
    ) -> "Timetable":
        """Steps tau_0 -> tau_1 -> ... -> final."""
        return cls(tuple(zip(timesteps, [*timesteps[1:], final], strict=True)), schedule, eta)

    @classmethod
    def spaced(cls, spacing: str, steps: int, schedule: NoiseSchedule, *, final: int = CLEAN, eta: float = 0.0) -> "Timetable":
        """T = ``steps`` steps of a named spacing, see `spaced_timesteps`."""
        return cls.from_timesteps(spaced_timesteps(spacing, steps, schedule), schedule, final=final, eta=eta)

    def __len__(self) -> int:
        return len(self.pairs)

    def is_noop(self, i: int) -> bool:
        """Whether step i leaves x as it is (t = s)."""
        t, s = self.pairs[i]
        return t == s

    def fingerprint(self) -> dict[str, Any]:
        """JSON values: what states depend on, beside the noise schedule."""
        return {"timetable": [list(pair) for pair in self.pairs], "eta": self.eta}

    @cached_property
    def abar_t(self) -> np.ndarray:
        return self._abar(t for t, _ in self.pairs)

    @cached_property
    def abar_s(self) -> np.ndarray:
        return self._abar(s for _, s in self.pairs)

    @cached_property
    def A(self) -> np.ndarray:
        return np.sqrt(self.abar_s / self.abar_t)

    @cached_property
    def sigma(self) -> np.ndarray:
        ratio = (1 - self.abar_s) / (1 - self.abar_t) * (1 - self.abar_t / self.abar_s)
        return self.eta * np.sqrt(ratio)

    @cached_property
    def B(self) -> np.ndarray:
        b = np.sqrt(np.maximum(1 - self.abar_s - self.sigma**2, 0)) - self.A * np.sqrt(1 - self.abar_t)
        return np.where(self.abar_s == self.abar_t, 0.0, b)  # exactly zero at a no-op, not rounding error

    def _abar(self, timesteps: Iterable[int]) -> np.ndarray:
        return np.array([self.schedule.at(t) for t in timesteps], dtype=np.float64)

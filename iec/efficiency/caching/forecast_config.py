"""Forecasts as configuration: the keys ``efficiency.forecast`` and ``efficiency.forecast_*``."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from iec.efficiency.caching.forecast import REUSE, Basis, Extrapolated, Forecast, Probed, hermite, newton, taylor
from iec.errors import ConfigError, require_fields

FORECASTS = ("none", "linear", "taylor", "newton", "hicache", "probe")
CLOCKS = ("index", "log_snr")
ORDER, SIGMA, CLIP = 1, 0.5, 1.5
"""Sigma and the clip are those of HiCache's and DiCache's code."""
TAKERS = {
    "forecast_order": ("taylor", "newton", "hicache"),
    "forecast_clock": ("linear", "taylor", "newton", "hicache"),
    "forecast_sigma": ("hicache",),
    "forecast_clip": ("probe",),
}


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """What cached steps take instead of the feature of the last refresh: see `iec.efficiency.caching.forecast`.

    * forecast: ``none`` (reuse it), ``linear``, ``taylor``, ``newton``, ``hicache`` or ``probe``.
    * forecast_order: m = 0 .. 3 of taylor, newton and hicache; None: 1. m + 1 features are stored; 0 is none.
    * forecast_clock: ``index`` (of the sampling step, None) or ``log_snr``, log(abar / (1 - abar)) / 2 at the step's timestep.
    * forecast_sigma: of hicache, in (0, 1]; None: 0.5. forecast_clip: of probe, at least 1; None: 1.5.
    """

    forecast: str = "none"
    forecast_order: int | None = None
    forecast_clock: str | None = None
    forecast_sigma: float | None = None
    forecast_clip: float | None = None

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")  # those of a subclass too
        if self.forecast not in FORECASTS:
            raise ConfigError(f"Unknown efficiency.forecast {self.forecast!r}; choose {', '.join(FORECASTS)}.")
        for key, kinds in TAKERS.items():
            if getattr(self, key) is not None and self.forecast not in kinds:
                raise ConfigError(
                    f"efficiency.{key} belongs to efficiency.forecast={' or '.join(kinds)}, not {self.forecast}. Leave one out."
                )
        if not 0 <= self._order <= 3:
            raise ConfigError(f"efficiency.forecast_order={self._order} must be 0, 1, 2 or 3.")
        if self.forecast_clock not in (None, *CLOCKS):
            raise ConfigError(f"Unknown efficiency.forecast_clock {self.forecast_clock!r}; choose {' or '.join(CLOCKS)}.")
        if not 0 < self._sigma <= 1:
            raise ConfigError(f"efficiency.forecast_sigma={self._sigma} is outside (0, 1]; HiCache uses {SIGMA}.")
        if not 1 <= self._clip < float("inf"):
            raise ConfigError(f"efficiency.forecast_clip={self._clip} must be at least 1, which is reuse; DiCache uses {CLIP}.")

    def forecast_of(self, abar: np.ndarray) -> Forecast:
        """For steps whose timesteps have ``abar`` [T], decreasing noise. Raises `ConfigError` where log-SNR is infinite."""
        if not self.forecasts:
            return REUSE
        if self.forecast == "probe":
            return Probed(self._clip)
        bases: dict[str, Basis] = {"newton": newton, "hicache": hermite(self._sigma)}
        clock = None if self._clock == "index" else log_snr(abar)
        return Extrapolated(bases.get(self.forecast, taylor), self._order, clock)

    def forecast_config(self) -> "ForecastConfig":
        """These keys alone, of what has more of them."""
        return ForecastConfig(**{f.name: getattr(self, f.name) for f in fields(ForecastConfig)})

    @property
    def forecasts(self) -> bool:
        """Whether cached steps get anything but the feature of the last refresh."""
        return self.forecast != "none" and self._order > 0

    def forecast_identity(self) -> dict[str, Any]:
        """JSON values: what features depend on. Nothing without a forecast, and the same for the names of one forecast."""
        if not self.forecasts:
            return {}
        if self.forecast == "probe":
            return {"forecast": {"method": "probe", "clip": self._clip}}
        linear = self._order == 1 and self.forecast != "hicache"
        own = {"sigma": self._sigma} if self.forecast == "hicache" else {}
        method = "linear" if linear else self.forecast
        return {"forecast": {"method": method, "order": self._order, "clock": self._clock, **own}}

    @property
    def _order(self) -> int:
        return ORDER if self.forecast_order is None else self.forecast_order

    @property
    def _clock(self) -> str:
        return self.forecast_clock or CLOCKS[0]

    @property
    def _sigma(self) -> float:
        return SIGMA if self.forecast_sigma is None else self.forecast_sigma

    @property
    def _clip(self) -> float:
        return CLIP if self.forecast_clip is None else self.forecast_clip


def log_snr(abar: np.ndarray) -> tuple[float, ...]:
    """log(abar / (1 - abar)) / 2 of each. Raises `ConfigError` for an abar of 0 or 1."""
    if not ((abar > 0) & (abar < 1)).all():
        raise ConfigError(
            "efficiency.forecast_clock=log_snr is infinite at a step of pure noise, abar = 0 (rescale_betas_zero_snr). Use "
            "efficiency.forecast_clock=index."
        )
    return tuple(float(u) for u in np.log(abar / (1 - abar)) / 2)

"""Where a UNet is cut and which steps refresh the cached feature, as configuration."""

from dataclasses import dataclass
from typing import cast

from iec.efficiency.caching.cut import Kind
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.errors import ConfigError
from iec.models.cards import Card
from iec.sampling.refresh import centred, explicit, quadratic, require_interval, uniform

SCHEDULES = ("uniform", "quadratic", "centred", "explicit")
QUADRATIC_POWER, CENTRED_POWER = 1.5, 1.4
"""Of DeepCache's latent code, and of its Stable Diffusion setting (with centre 15 of 50 steps)."""


@dataclass(frozen=True)
class CachingConfig(ForecastConfig):
    """Feature caching: see `iec.sampling.refresh` for the schedules and `find_cut` for the cut.

    * interval: N; about one in N steps runs the full network: n = ceil(T / N) refresh steps (unless ``explicit``).
    * schedule: ``uniform`` (every N-th step), ``quadratic`` (fewer refresh steps towards the clean end), ``centred`` (most of
      them around step ``centre``) or ``explicit`` (the list ``steps``, which has to contain 0).
    * power: of the quadratic and the centred curve, above 1; None: 1.5 for quadratic, 1.4 for centred.
    * cut: a skip connection by number, 0 is the shallowest, or ``pixel`` or ``latent``; None: that of the model's kind.
    * forecast, forecast_order, forecast_clock, forecast_sigma, forecast_clip: see `ForecastConfig`.
    """

    interval: int = 5
    cut: int | str | None = None
    schedule: str = "uniform"
    power: float | None = None
    centre: int | None = None
    steps: list[int] | None = None

    def __post_init__(self) -> None:
        ForecastConfig.__post_init__(self)
        if self.schedule not in self._schedules():
            raise ConfigError(f"Unknown efficiency.schedule {self.schedule!r}; choose {', '.join(self._schedules())}.")
        takers = {"power": ("quadratic", "centred"), "centre": ("centred",), "steps": ("explicit",)}
        for key, kinds in takers.items():
            given = getattr(self, key) is not None
            if given and self.schedule not in kinds:
                raise ConfigError(
                    f"efficiency.{key} belongs to efficiency.schedule={' or '.join(kinds)}, not {self.schedule}. Leave one out."
                )
            if not given and key != "power" and self.schedule in kinds:
                raise ConfigError(f"efficiency.schedule={self.schedule} needs efficiency.{key}.")

    def _schedules(self) -> tuple[str, ...]:
        return SCHEDULES

    def cut_of(self, card: Card) -> int | Kind:
        """What the configuration says, else the kind of model that the card names."""
        return card.cut if self.cut is None else cast(Kind, self.cut)  # find_cut refuses what is none

    def steps_of(self, num_steps: int) -> frozenset[int]:
        """The refresh steps of T = ``num_steps``. Raises `ConfigError` for an interval above T and a list without step 0."""
        if self.schedule == "explicit":
            return explicit(num_steps, self.steps or [])
        require_interval(num_steps, self.interval)
        if self.schedule == "quadratic":
            return quadratic(num_steps, self.interval, QUADRATIC_POWER if self.power is None else self.power)
        if self.schedule == "centred":
            power = CENTRED_POWER if self.power is None else self.power
            return centred(num_steps, -(-num_steps // self.interval), self.centre or 0, power)
        return uniform(num_steps, self.interval)

"""Where a UNet is cut and which steps refresh the cached feature, as configuration."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self, cast

from iec.efficiency.caching.cut import Kind
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.efficiency.planning.config import PlanConfig
from iec.errors import ConfigError
from iec.models.cards import Card
from iec.sampling.adaptive import AdaptiveRefresh
from iec.sampling.refresh import centred, explicit, quadratic, require_interval, require_power, uniform

SCHEDULES = ("uniform", "quadratic", "centred", "explicit")
"""Those that are known without a model."""
QUADRATIC_POWER, CENTRED_POWER = 1.5, 1.4
"""Of DeepCache's latent code, and of its Stable Diffusion setting (with centre 15 of 50 steps)."""


@dataclass(frozen=True)
class CachingConfig(ForecastConfig):
    """Feature caching: see `iec.sampling.refresh` for the schedules and `find_cut` for the cut.

    * interval: N; about one in N steps runs the full network: n = ceil(T / N) refresh steps (unless ``explicit``, or
      ``planned`` with ``refreshes``).
    * schedule: ``uniform`` (every N-th step), ``quadratic`` (fewer refresh steps towards the clean end), ``centred`` (most of
      them around step ``centre``), ``explicit`` (the list ``steps``, which has to contain 0), ``planned`` (n steps placed on
      calibration images, see `PlanConfig`) or ``adaptive`` (each image decides, see `AdaptiveRefresh`; N has no part in it).
    * threshold: of adaptive, the relative change of the feature that is tolerated; the larger, the fewer full calls.
    * power: of the quadratic and the centred curve, above 1; None: 1.5 for quadratic, 1.4 for centred.
    * refreshes: n of a plan, instead of ceil(T / N). objective, plan_images, plan_evaluations: of a plan; None: ``final``, 8, 100.
    * cut: a skip connection by number, 0 is the shallowest, or ``pixel`` or ``latent``; None: that of the model's kind.
    * forecast, forecast_order, forecast_clock, forecast_sigma, forecast_clip: see `ForecastConfig`.
    """

    interval: int = 5
    cut: int | str | None = None
    schedule: str = "uniform"
    power: float | None = None
    centre: int | None = None
    steps: list[int] | None = None
    refreshes: int | None = None
    objective: str | None = None
    plan_images: int | None = None
    plan_evaluations: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        ForecastConfig.__post_init__(self)
        if self.schedule not in self._schedules():
            raise ConfigError(f"Unknown efficiency.schedule {self.schedule!r}; choose {', '.join(self._schedules())}.")
        require_interval(self.interval)
        takers = {"power": ("quadratic", "centred"), "centre": ("centred",), "steps": ("explicit",), "threshold": ("adaptive",)}
        takers |= dict.fromkeys(("refreshes", "objective", "plan_images", "plan_evaluations"), ("planned",))
        for key, kinds in takers.items():
            given = getattr(self, key) is not None
            if given and self.schedule not in kinds:
                raise ConfigError(
                    f"efficiency.{key} belongs to efficiency.schedule={' or '.join(kinds)}, not {self.schedule}. Leave one out."
                )
            if not given and key in ("centre", "steps", "threshold") and self.schedule in kinds:
                raise ConfigError(f"efficiency.schedule={self.schedule} needs efficiency.{key}.")
        if self.power is not None:
            require_power(self.power)
        if self.centre is not None and self.centre < 0:
            raise ConfigError(f"efficiency.centre={self.centre} must be a sampling index, at least 0.")
        steps: object = self.steps
        indices = isinstance(steps, Collection) and all(type(i) is int and i >= 0 for i in steps) and 0 in steps
        if steps is not None and not indices:
            raise ConfigError(
                f"efficiency.steps={steps} must be sampling indices, whole numbers of at least 0, and the first step must "
                "refresh the cache: add 0."
            )
        if self.plan_evaluations is not None and self.objective in ("feature", "forecast"):
            raise ConfigError(
                f"efficiency.objective={self.objective} is exact and searches nothing. Leave efficiency.plan_evaluations out."
            )
        if self.objective == "forecast" and (not self.forecasts or self.forecast == "probe"):
            raise ConfigError(
                "efficiency.objective=forecast plans for the weights of efficiency.forecast=linear, taylor, newton or hicache, of "
                "order 1 or more. Choose one, or efficiency.objective=feature."
            )
        if self.schedule == "planned":
            self._plan_of(1 if self.refreshes is None else self.refreshes)  # refuses what it refuses, whatever T is
        _ = self.adaptive  # refuses what it refuses

    def _schedules(self) -> tuple[str, ...]:
        return (*SCHEDULES, "planned", "adaptive")

    @property
    def adaptive(self) -> AdaptiveRefresh | None:
        """What decides for each image, with ``schedule=adaptive``."""
        return AdaptiveRefresh(self.threshold) if self.schedule == "adaptive" and self.threshold is not None else None

    def require_known(self) -> None:
        """Raises `ConfigError` for a schedule that a technique's ``prepare`` finds on a model, and for one that images decide."""
        if self.schedule == "adaptive":
            raise ConfigError(
                "efficiency.schedule=adaptive has no refresh steps: each image decides, in `iec run` with efficiency=deepcache. "
                f"Choose {', '.join(SCHEDULES)} here."
            )
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"efficiency.schedule={self.schedule!r} is found by a calibration; choose {', '.join(SCHEDULES)}. The steps that "
                "`iec run` found are in the cell's prepared.json: give them as explicit."
            )

    def cut_of(self, card: Card) -> int | Kind:
        """What the configuration says, else the kind of model that the card names."""
        return card.cut if self.cut is None else cast(Kind, self.cut)  # find_cut refuses what is none

    def plan(self, num_steps: int) -> PlanConfig | None:
        """The plan to find for T = ``num_steps``; None for another schedule. Raises `ConfigError` for what T does not have."""
        if self.schedule != "planned":
            return None
        count = self.refreshes
        if count is None:
            require_interval(self.interval, num_steps)
            count = -(-num_steps // self.interval)
        config = self._plan_of(count)
        config.require_fits(num_steps)
        return config

    def _plan_of(self, count: int) -> PlanConfig:
        given = {"objective": self.objective, "images": self.plan_images, "evaluations": self.plan_evaluations}
        return PlanConfig(count, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]

    def at(self, refresh: frozenset[int]) -> Self:
        """The same with these refresh steps, however they were found."""
        found = {"schedule": "explicit", "steps": sorted(refresh)}
        unset = ("power", "centre", "refreshes", "objective", "plan_images", "plan_evaluations", "threshold")
        return replace(self, **found, **dict.fromkeys(unset))  # type: ignore[arg-type]

    def steps_of(self, num_steps: int) -> frozenset[int]:
        """The refresh steps of T = ``num_steps``. Raises `ConfigError` for an interval above T, a list without step 0, and steps
        that are not known yet.
        """
        self.require_known()
        if self.schedule == "explicit":
            return explicit(num_steps, self.steps or [])
        require_interval(self.interval, num_steps)
        if self.schedule == "quadratic":
            return quadratic(num_steps, self.interval, QUADRATIC_POWER if self.power is None else self.power)
        if self.schedule == "centred":
            power = CENTRED_POWER if self.power is None else self.power
            return centred(num_steps, -(-num_steps // self.interval), self.centre or 0, power)
        return uniform(num_steps, self.interval)

"""How a schedule is planned, as configuration."""

from dataclasses import asdict, dataclass
from typing import Any

from iec.efficiency.planning.features import require_refreshes
from iec.errors import ConfigError, require_fields

OBJECTIVES = ("final", "feature", "forecast")


@dataclass(frozen=True)
class PlanConfig:
    """``refreshes`` full calls an image, placed where ``objective`` is smallest on ``images`` images of their own seed.

    * ``feature``: the sum over steps of the relative distance of the reused feature to the one that a full call makes on the
      uncached run. Exact, and cheap: one uncached run of each image, for any number of refreshes.
    * ``forecast``: the same for the feature that is forecast from the last two refreshes by the weights of ``efficiency.forecast``,
      which may not be the probe's. At orders above 1 the network looks at more of them than the plan does.
    * ``final``: the relative distance of the final image to that of the uncached run. Searched: ``evaluations`` schedules are run,
      each about half a trajectory of each image; the search starts from the best of the uniform, the quadratic and the ``forecast``
      schedule (``feature`` without a forecast), so that on its images it is no worse than these.
    """

    refreshes: int
    objective: str = "final"
    images: int = 8
    evaluations: int = 100

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"Unknown efficiency.objective {self.objective!r}; choose {', '.join(OBJECTIVES)}.")
        limits = (("refreshes", self.refreshes, 1), ("plan_images", self.images, 1), ("plan_evaluations", self.evaluations, 4))
        for name, value, least in limits:
            if value < least:
                raise ConfigError(f"efficiency.{name}={value} must be a whole number of at least {least}.")

    def require_fits(self, steps: int) -> None:
        """Raises `ConfigError` for more refreshes than there are steps."""
        require_refreshes(self.refreshes, steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without settings of what is not in use."""
        values = asdict(self)
        if self.objective != "final":
            del values["evaluations"]
        return values

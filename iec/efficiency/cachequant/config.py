"""What CacheQuant (arXiv 2503.01323) is made of: a schedule, a cut, a quantization and two corrections."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from iec.efficiency.caching import Kind, explicit
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.efficiency.quantization import PTQConfig
from iec.errors import ConfigError, require_fields
from iec.sampling.refresh import require_interval


@dataclass(frozen=True)
class CacheQuantConfig:
    """Feature caching and quantization together, with corrections of both errors.

    interval: N; one in N steps refreshes the feature, n = ceil(T / N) in all.
    cut: what is cached, see `find_cut`.
    ptq: the quantization. With ``ptq.reconstruct`` the rounding is learned on the cached path. The paper then leaves out the
        quantization correction, whose tables were fitted to nearest rounding; here they are fitted to the weights as they are
        deployed, so that both can be on.
    refresh: the refresh steps; None: found by dynamic programming (DPS, `cheapest_refreshes`) on ``dps_images`` images.
    forecast: of the cached feature. Both corrections are then fitted to what it leaves.
    dec_cache: correct the cached feature. dec_quant: correct the first half of the layers that take it; needs
        ``ptq.split_skips``. Both are fitted on ``dec_images`` images.
    official_bias, official_divisors: the released code's variants, see `fit_quantization` and `AffineRegression.solve`.
    """

    interval: int
    cut: int | Kind
    ptq: PTQConfig = field(default_factory=PTQConfig)
    refresh: frozenset[int] | None = None
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    dps_images: int = 128
    dec_images: int = 512
    dec_cache: bool = True
    dec_quant: bool = True
    official_bias: bool = False
    official_divisors: bool = False

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        for name, least in (("interval", 1), ("dps_images", 1), ("dec_images", 2)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"efficiency.{name}={value} must be a whole number of at least {least}.")
        if self.dec_quant and not self.ptq.split_skips:
            raise ConfigError(
                "efficiency.dec_quant corrects one half of a split input: use efficiency.split_skips=true, or "
                "efficiency.dec_quant=false."
            )

    def require_fits(self, num_steps: int, cond: Tensor | None = None) -> None:
        """Raises `ConfigError` for an interval or refresh steps that T = ``num_steps`` does not have, and for a ``cond``
        that is too short.
        """
        if self.refresh is None:
            require_interval(self.interval, num_steps)
        else:
            explicit(num_steps, self.refresh)
        if cond is not None and len(cond) < self.images:
            raise ConfigError(
                f"{len(cond)} conditionings for {self.images} calibration images; give each image its own, or lower "
                "efficiency.calibration_images, dps_images and dec_images."
            )

    @property
    def images(self) -> int:
        """How many different images the stages run through."""
        counts = [self.ptq.calibration_images]
        if self.refresh is None:
            counts.append(self.dps_images)
        if self.dec_cache or self.dec_quant:
            counts.append(self.dec_images)
        return max(counts)

    def calibration_calls(self, num_steps: int) -> int | None:
        """Of the stages, images times steps: trajectories of the schedule, of both corrections and of the quantizer, whose network
        is then run once a step. None with ``reconstruct``, which runs parts of the network many times.
        """
        images = 2 * self.ptq.calibration_images + self.dec_images * (self.dec_cache + self.dec_quant)
        images += self.dps_images if self.refresh is None else 0
        return images * num_steps if self.ptq.reconstruct == "none" else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without the cut, whose number depends on the UNet, and without settings of what is not in use."""
        unused = {"cut", "forecast"}
        unused |= set() if self.refresh is None else {"dps_images"}
        unused |= set() if self.dec_quant else {"official_bias"}
        unused |= set() if self.dec_cache or self.dec_quant else {"dec_images", "official_divisors"}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unused}
        values |= {"ptq": self.ptq.fingerprint(), "refresh": "dps" if self.refresh is None else sorted(self.refresh)}
        return values | self.forecast.forecast_identity()

"""The options of the configuration that are compared: all of ``configs/``, and what takes other code within one."""

from dataclasses import dataclass

from iec.efficiency.caching.forecast_config import FORECASTS
from iec.gpucheck.part import Size
from iec.io.resources import configs

GROUPS = ("efficiency", "iec", "corrector", "sampler")
NOT_HERE = {
    "efficiency=engine": "runs on the CPU alone, from a file",
    "efficiency=error_smooth": "is of ideal models alone",
    "efficiency=error_noise": "has unrelated noise where inputs differ in their last bit",
}
CALIBRATED = ("efficiency.calibration_images=2", "efficiency.scale_rule=max")
CACHED = ("efficiency.interval=2",)
CACHEQUANT = (*CALIBRATED, *CACHED, "efficiency.dec_images=2")
FITTED = ("corrector.calibration_images=2",)
QUICK = {
    **dict.fromkeys(("w8a8", "w4a8"), CALIBRATED),
    **dict.fromkeys(("cachequant_w8a8", "cachequant_w4a8"), CACHEQUANT),
    **dict.fromkeys(("deepcache", "error_stale"), CACHED),
    **dict.fromkeys(("affine", "es_search", "stepback"), FITTED),
}
"""Option -> what makes it fit a few steps."""
REHEARSED = frozenset({"efficiency=w8a8", "iec=all_steps", "corrector=affine", "sampler=unipc", "deepcache, adaptive"})
ON_DEEPCACHE = ("efficiency=deepcache", *CACHED)
ON_W8A8 = ("efficiency=w8a8", *CALIBRATED)
ON_CACHEQUANT = ("efficiency=cachequant_w8a8", *CACHEQUANT)


@dataclass(frozen=True)
class Option:
    """name: in the report. overrides: of the configuration. on_cpu: those of what it is compared with; empty: the same."""

    name: str
    overrides: tuple[str, ...]
    on_cpu: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether something is measured on the network before it is sampled."""
        return any("calibration_images" in text for text in self.overrides)


def options(size: Size) -> list[Option]:
    """Those of ``configs/``, correctors on DeepCache, then the variants; at toy size `REHEARSED`."""
    return [option for option in (*_listed(), *_variants()) if size == "full" or option.name in REHEARSED]


def _listed() -> list[Option]:
    names = [(group, path.stem) for group in GROUPS for path in sorted((configs() / group).glob("*.yaml"))]
    context = {"corrector": ON_DEEPCACHE}
    return [
        Option(f"{group}={name}", (*context.get(group, ()), f"{group}={name}", *QUICK.get(name, ())))
        for group, name in names
        if f"{group}={name}" not in NOT_HERE and (name != "none" or group == "efficiency")
    ]


def _variants() -> list[Option]:
    planned = ("efficiency.schedule=planned", "efficiency.plan_images=2", "efficiency.plan_evaluations=4")
    forecasts = [name for name in FORECASTS if name != "none"]
    return [
        *(Option(f"deepcache, forecast {name}", (*ON_DEEPCACHE, f"efficiency.forecast={name}")) for name in forecasts),
        Option("deepcache, planned", (*ON_DEEPCACHE, *planned)),
        Option("deepcache, adaptive", ("efficiency=deepcache", "efficiency.schedule=adaptive", "efficiency.threshold=2")),
        Option("deepcache, IEC at all steps with full calls", (*ON_DEEPCACHE, "iec=all_steps", "iec.cached_steps=full")),
        Option("w8a8, a scale for each channel", (*ON_W8A8, "efficiency.activation_granularity=channel")),
        # against the simulation: not every CPU has exact 8-bit sums
        Option("w8a8, int8 kernels", (*ON_W8A8, "efficiency.kernels=int8_unfused"), ON_W8A8),
        Option("cachequant_w8a8, refresh steps by dps", (*ON_CACHEQUANT, "efficiency.schedule=dps", "efficiency.dps_images=2")),
        Option("cachequant_w8a8, forecast taylor", (*ON_CACHEQUANT, "efficiency.forecast=taylor")),
        Option("IEC, K = 3 with a tolerance", ("iec=all_steps", "iec.iterations=3", "iec.tolerance=0.001")),
        Option("IEC, eta = 1", ("iec=all_steps", "sampler.eta=1")),
    ]

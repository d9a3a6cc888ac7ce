"""CacheQuant (arXiv 2503.01323): feature caching and quantization together, with corrections of both errors."""

from iec.efficiency.cachequant.calibration import CacheQuant, Calibration
from iec.efficiency.cachequant.config import CacheQuantConfig
from iec.efficiency.cachequant.dec import Consumer, fit_cache, fit_quantization
from iec.efficiency.cachequant.dps import FeatureDistances, cheapest_refreshes
from iec.efficiency.cachequant.network import CacheTables, CorrectedCacheNetwork
from iec.efficiency.cachequant.regression import AffineRegression
from iec.efficiency.cachequant.trajectories import FloatCall, FloatRuns

__all__ = [
    "AffineRegression",
    "CacheQuant",
    "CacheQuantConfig",
    "CacheTables",
    "Calibration",
    "Consumer",
    "CorrectedCacheNetwork",
    "FeatureDistances",
    "FloatCall",
    "FloatRuns",
    "cheapest_refreshes",
    "fit_cache",
    "fit_quantization",
]

"""Feature caching (DeepCache): steps between two refreshes reuse the deep feature of the last full call."""

from iec.efficiency.caching.cut import Cut, Kind, default_cut, find_cut, num_cuts
from iec.efficiency.caching.network import CachedUNetNetwork
from iec.sampling.refresh import centred, explicit, quadratic, uniform

__all__ = [
    "CachedUNetNetwork",
    "Cut",
    "Kind",
    "centred",
    "default_cut",
    "explicit",
    "find_cut",
    "num_cuts",
    "quadratic",
    "uniform",
]

"""Feature caching (DeepCache): steps between two refreshes reuse the deep feature of the last full call."""

from iec.efficiency.caching.cut import Cut, Kind, find_cut
from iec.efficiency.caching.network import CachedUNetNetwork
from iec.sampling.refresh import centred, explicit, quadratic, uniform

__all__ = [
    "CachedUNetNetwork",
    "Cut",
    "Kind",
    "centred",
    "explicit",
    "find_cut",
    "quadratic",
    "uniform",
]

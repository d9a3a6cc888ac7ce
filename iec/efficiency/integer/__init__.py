"""Integer kernels: the calibrated quantized network computed on 8-bit integers, equal to its simulation."""

from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.network import ARITHMETIC, require_kernels, use_integers

__all__ = ["ARITHMETIC", "IntegerLayer", "require_kernels", "use_integers"]

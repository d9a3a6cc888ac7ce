"""Integer kernels: the calibrated quantized network computed on 8-bit integers, equal to its simulation."""

from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.network import KERNELS, require_kernels, use_integers

__all__ = ["KERNELS", "IntegerLayer", "require_kernels", "use_integers"]

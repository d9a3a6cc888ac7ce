"""Integer kernels: the calibrated quantized network computed on 8-bit integers, equal to its simulation."""

from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.network import ARITHMETIC, require_kernels, use_integers, with_kernels
from iec.efficiency.integer.passes import Passes, fused_passes

__all__ = ["ARITHMETIC", "IntegerLayer", "Passes", "fused_passes", "require_kernels", "use_integers", "with_kernels"]

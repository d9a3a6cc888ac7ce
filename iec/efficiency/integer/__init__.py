"""Integer kernels: the calibrated quantized network computed on 8-bit integers, equal to its simulation."""

from iec.efficiency.integer.blocks import fused_parts
from iec.efficiency.integer.borders import Crossings, count_crossings
from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.network import (
    ARITHMETIC,
    cached_network,
    require_integers,
    require_kernels,
    require_machine,
    stored_network,
    use_integers,
    with_kernels,
)
from iec.efficiency.integer.passes import Passes, fused_passes
from iec.efficiency.integer.stored import integer_tensors

__all__ = [
    "ARITHMETIC",
    "Crossings",
    "IntegerLayer",
    "Passes",
    "cached_network",
    "count_crossings",
    "fused_parts",
    "fused_passes",
    "integer_tensors",
    "require_integers",
    "require_kernels",
    "require_machine",
    "stored_network",
    "use_integers",
    "with_kernels",
]

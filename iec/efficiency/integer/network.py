"""The quantized UNet with its layers on integers."""

from pathlib import Path

import torch

from iec.efficiency.integer.attention import round_operands
from iec.efficiency.integer.blocks import fuse_blocks
from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.passes import Passes, fused_passes
from iec.efficiency.integer.products import OneDNN, PatchMatmul, Product
from iec.efficiency.quantization import PTQConfig, QuantizedUNet
from iec.efficiency.quantization.layers import QuantLayer
from iec.errors import ConfigError

ARITHMETIC = {"simulated": "sim.", "int8": "int8", "int8_unfused": "int8 unfused"}
"""Kernels, and what tables call them. ``simulated``: numbers on the grid in float arithmetic. ``int8``: layers on integers, with
compiled passes between them; ``int8_unfused``: with torch's, which need no compiler."""
BITS = 8


def require_kernels(kernels: str, config: PTQConfig) -> None:
    """Raises `ConfigError` for unknown kernels, and for a quantization that has no form in 8-bit integers."""
    if kernels not in ARITHMETIC:
        raise ConfigError(f"Unknown efficiency.kernels {kernels!r}; choose {', '.join(ARITHMETIC)}.")
    if kernels == "simulated":
        return
    for name in ("weight_bits", "activation_bits", "end_bits"):
        bits = getattr(config, name)
        if bits > BITS:
            raise ConfigError(
                f"efficiency.{name}={bits} has no form in 8-bit integers. Use efficiency.{name}={BITS} or fewer, or "
                "efficiency.kernels=simulated."
            )
    if config.activation_granularity != "tensor":
        raise ConfigError(
            "A sum over channels that have scales of their own is no sum of integers. Use "
            "efficiency.activation_granularity=tensor, or efficiency.kernels=simulated."
        )


def with_kernels(quantized: QuantizedUNet, kernels: str, folder: Path) -> QuantizedUNet:
    """``quantized`` with integer kernels. folder: where the compiled passes of ``int8`` are kept, on a CPU; a GPU has torch's.

    Raises what `use_integers` and `fused_passes` raise.
    """
    fused = kernels == "int8" and next(quantized.parameters()).device.type == "cpu"
    return use_integers(quantized, passes=fused_passes(folder) if fused else Passes())


def use_integers(quantized: QuantizedUNet, product: type[Product] | None = None, passes: Passes | None = None) -> QuantizedUNet:
    """Replace every quantized layer of a calibrated UNet by its `IntegerLayer`, in place: its float weights are released.
    Returns it.

    product: None takes oneDNN's on a CPU and `PatchMatmul` elsewhere. passes: None takes torch's. Networks that hold modules of the
    UNet (`CachedUNetNetwork`) have to be made after this. The products of attention stay simulated: operands on the grid, float
    arithmetic. Raises `ConfigError` as `require_kernels` does, and `DeviceError` for a CPU without exact 8-bit sums.
    """
    require_kernels("int8", quantized.config)
    if product is None:
        on_cpu = next(quantized.parameters()).device.type == "cpu"
        product = OneDNN if on_cpu else PatchMatmul
    passes = passes or Passes()
    replaced: dict[QuantLayer, IntegerLayer] = {}  # one layer can have two names
    with torch.no_grad():
        for path, module in list(quantized.unet.named_modules(remove_duplicate=False)):
            if isinstance(module, QuantLayer):
                if module not in replaced:
                    replaced[module] = IntegerLayer(module, product, passes)
                parent, _, child = path.rpartition(".")
                setattr(quantized.unet.get_submodule(parent), child, replaced[module])
    fuse_blocks(quantized.unet)
    round_operands(quantized.unet, passes)
    return quantized

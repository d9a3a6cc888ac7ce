"""The quantized UNet with its layers on integers."""

import torch

from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.products import OneDNN, PatchMatmul, Product
from iec.efficiency.quantization import PTQConfig, QuantizedUNet
from iec.efficiency.quantization.layers import QuantLayer
from iec.errors import ConfigError

ARITHMETIC = {"simulated": "sim.", "int8": "int8"}
"""Kernels, and what tables call them. ``simulated``: numbers on the grid in float arithmetic. ``int8``: layers on integers."""
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
            "A sum over channels that have scales of their own is no sum of integers. Use efficiency.activation_granularity=tensor, "
            "or efficiency.kernels=simulated."
        )


def use_integers(quantized: QuantizedUNet, product: type[Product] | None = None) -> QuantizedUNet:
    """Replace every quantized layer of a calibrated UNet by its `IntegerLayer`, in place: its float weights are released.
    Returns it.

    product: None takes oneDNN's on a CPU and `PatchMatmul` elsewhere. Networks that hold modules of the UNet (`CachedUNetNetwork`)
    have to be made after this. The products of attention stay simulated: operands on the grid, float arithmetic.
    Raises `ConfigError` as `require_kernels` does, and `DeviceError` for a CPU without exact 8-bit sums.
    """
    require_kernels("int8", quantized.config)
    if product is None:
        on_cpu = next(quantized.parameters()).device.type == "cpu"
        product = OneDNN if on_cpu else PatchMatmul
    replaced: dict[QuantLayer, IntegerLayer] = {}  # one layer can have two names
    with torch.no_grad():
        for path, module in list(quantized.unet.named_modules(remove_duplicate=False)):
            if isinstance(module, QuantLayer):
                if module not in replaced:
                    replaced[module] = IntegerLayer(module, product)
                parent, _, child = path.rpartition(".")
                setattr(quantized.unet.get_submodule(parent), child, replaced[module])
    return quantized

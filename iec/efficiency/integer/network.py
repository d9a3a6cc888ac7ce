"""The quantized UNet with its layers on integers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficiency.integer.attention import round_operands
from iec.efficiency.integer.blocks import fuse_blocks
from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.passes import Passes, fused_passes
from iec.efficiency.integer.products import OneDNN, PatchMatmul, Product, require_exact_sums
from iec.efficiency.integer.stored import KIND, Tensors, integer_unet
from iec.efficiency.quantization import PTQConfig, QuantizedUNet
from iec.efficiency.quantization.layers import QuantLayer
from iec.errors import ConfigError
from iec.io.artifacts import artifact_path, cached

ARITHMETIC = {"simulated": "sim.", "int8": "int8", "int8_unfused": "int8 unfused"}
"""Kernels, and what tables call them. ``simulated``: numbers on the grid in float arithmetic. ``int8``: layers on integers, with
compiled passes between them; ``int8_unfused``: with torch's, which need no compiler."""
BITS = 8


def require_kernels(kernels: str, config: PTQConfig) -> None:
    """Raises `ConfigError` for unknown kernels, and for a quantization that they cannot compute."""
    if kernels not in ARITHMETIC:
        raise ConfigError(f"Unknown efficiency.kernels {kernels!r}; choose {', '.join(ARITHMETIC)}.")
    if kernels != "simulated":
        require_integers(config, "efficiency.kernels=simulated")


def require_integers(config: PTQConfig, instead: str) -> None:
    """Raises `ConfigError` for a quantization that has no form in 8-bit integers. instead: what works for it."""
    for name in ("weight_bits", "activation_bits", "end_bits"):
        bits = getattr(config, name)
        if bits > BITS:
            raise ConfigError(
                f"efficiency.{name}={bits} has no form in 8-bit integers. Use efficiency.{name}={BITS} or fewer, or {instead}."
            )
    if config.activation_granularity != "tensor":
        raise ConfigError(
            "A sum over channels that have scales of their own is no sum of integers. Use "
            f"efficiency.activation_granularity=tensor, or {instead}."
        )


def require_machine(kernels: str, device: torch.device, folder: Path | None) -> None:
    """Raises `DeviceError` where ``kernels`` do not run; before a calibration, which takes longer. folder: as of `with_kernels`."""
    if kernels != "simulated" and device.type == "cpu":
        require_exact_sums(OneDNN)
        _passes(kernels, device, folder)


def with_kernels(quantized: QuantizedUNet, kernels: str, folder: Path | None) -> QuantizedUNet:
    """``quantized``, as `use_integers` makes it for these ``kernels``; ``simulated`` ones leave it as it is.

    folder: where the compiled passes of ``int8`` are kept, on a CPU (a GPU has torch's). None compiles them for this process.
    Raises what `use_integers` and `fused_passes` raise.
    """
    if kernels == "simulated":
        return quantized
    return use_integers(quantized, passes=_passes(kernels, _device(quantized.unet), folder))


def stored_network(
    unet: nn.Module, config: PTQConfig, num_steps: int, stored: Tensors, path: Path, kernels: str, folder: Path
) -> QuantizedUNet:
    """What `with_kernels` gives of the quantized UNet whose `integer_tensors` are ``stored``, without making that one; further
    arguments as of `integer_unet`.
    """
    device = _device(unet)
    passes = _passes(kernels, device, folder)
    return _finished(integer_unet(unet, config, num_steps, stored, path, _product(device), passes), passes)


def cached_network(
    unet: nn.Module,
    config: PTQConfig,
    num_steps: int,
    kernels: str,
    folder: Path,
    fingerprint: dict[str, Any],
    make: Callable[[], Tensors],
) -> tuple[QuantizedUNet, Tensors]:
    """What `stored_network` gives of the integers in ``folder``, and all tensors of their file.

    fingerprint: what they depend on; the kernels are no part of it. make: `integer_tensors` and what else belongs to them, called
    where the file is not there. Raises what `iec.io.artifacts.cached` raises.
    """
    path = artifact_path(folder, KIND, fingerprint)
    stored = cached(path, KIND, fingerprint, make)
    return stored_network(unet, config, num_steps, stored, path, kernels, folder), stored


def _passes(kernels: str, device: torch.device, folder: Path | None) -> Passes:
    return fused_passes(folder) if kernels == "int8" and device.type == "cpu" else Passes()


def _product(device: torch.device) -> type[Product]:
    return OneDNN if device.type == "cpu" else PatchMatmul


def _device(unet: nn.Module) -> torch.device:
    return next(unet.parameters()).device


def use_integers(quantized: QuantizedUNet, product: type[Product] | None = None, passes: Passes | None = None) -> QuantizedUNet:
    """Replace every quantized layer of a calibrated UNet by its `IntegerLayer`, in place: its float weights are released.
    Returns it.

    product: None takes oneDNN's on a CPU and `PatchMatmul` elsewhere. passes: None takes torch's. Networks that hold modules of the
    UNet (`CachedUNetNetwork`) have to be made after this. The products of attention stay simulated: operands on the grid, float
    arithmetic. Raises `ConfigError` as `require_kernels` does, and `DeviceError` for a CPU without exact 8-bit sums.
    """
    require_kernels("int8", quantized.config)
    product, passes = product or _product(_device(quantized.unet)), passes or Passes()
    replaced: dict[QuantLayer, IntegerLayer] = {}  # one layer can have two names
    with torch.no_grad():
        for path, module in list(quantized.unet.named_modules(remove_duplicate=False)):
            if isinstance(module, QuantLayer):
                if module not in replaced:
                    replaced[module] = IntegerLayer(module, product, passes)
                parent, _, child = path.rpartition(".")
                setattr(quantized.unet.get_submodule(parent), child, replaced[module])
    return _finished(quantized, passes)


def _finished(quantized: QuantizedUNet, passes: Passes) -> QuantizedUNet:
    """With all layers on integers: what lies between them."""
    fuse_blocks(quantized.unet)
    round_operands(quantized.unet, passes)
    return quantized

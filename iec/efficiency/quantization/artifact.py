"""The calibration of a quantized UNet as tensors, and as a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.efficiency.quantization.config import OFF
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.model import QuantizedUNet
from iec.errors import ArtifactError
from iec.io.artifacts import WAY_OUT, cached, load_artifact, save_artifact

KIND = "ptq"


def cached_calibration(path: Path, quantized: QuantizedUNet, fingerprint: dict[str, Any], make: Callable[[], object]) -> None:
    """Fill ``quantized`` from the file ``path``; where it is not there, ``make()`` calibrates ``quantized``, which is then saved.

    fingerprint: see `save_calibration`. Raises what `iec.io.artifacts.cached` raises.
    """

    def tensors() -> dict[str, Tensor]:
        make()
        return calibration_tensors(quantized)

    fill_calibration(quantized, cached(path, KIND, _fingerprint(quantized, fingerprint), tensors), path)


def save_calibration(path: Path, quantized: QuantizedUNet, fingerprint: dict[str, Any]) -> None:
    """Write the activation scales, weight scales and learned rounding of ``quantized``.

    fingerprint: what they depend on, JSON values, e.g. ``{"model": sha256, "timetable": [[t, s], ..]}``; the config and
    the number of steps are added. Raises `StoreError` when the file cannot be written.
    """
    save_artifact(path, KIND, _fingerprint(quantized, fingerprint), calibration_tensors(quantized))


def load_calibration(path: Path, quantized: QuantizedUNet, fingerprint: dict[str, Any]) -> None:
    """Fill ``quantized`` from a file written by `save_calibration` with the same ``fingerprint`` and config.

    Raises `ArtifactError`, and leaves ``quantized`` as it is, if the file is missing, damaged or was made from something else.
    """
    fill_calibration(quantized, load_artifact(path, KIND, _fingerprint(quantized, fingerprint)), path)


def calibration_tensors(quantized: QuantizedUNet, prefix: str = "") -> dict[str, Tensor]:
    """All that calibration and reconstruction found: name -> tensor. prefix: of those of some modules alone, e.g. ``conv_in.``."""
    tensors = {}
    for name, layer in quantized.layers().items():
        if not f"{name}.".startswith(prefix):
            continue
        tensors[f"{name}.weight_delta"] = layer.weight_delta
        tensors[f"{name}.weight_zero_point"] = layer.weight_zero_point
        if _is_learned(quantized, layer):
            tensors[f"{name}.rounded_up"] = pack(layer.rounding())
    for name, quantizer in quantized.quantizers().items():
        if not f"{name}.".startswith(prefix):
            continue
        tensors[f"{name}.delta"] = quantizer.delta
        tensors[f"{name}.zero_point"] = quantizer.zero_point
        tensors[f"{name}.calibrated"] = quantizer.calibrated
    return tensors


def fill_calibration(quantized: QuantizedUNet, stored: dict[str, Tensor], path: Path) -> None:
    """Put back what `calibration_tensors` gave. ``path`` is named in the `ArtifactError` for tensors that do not fit."""
    own = calibration_tensors(quantized)
    for name in sorted(own.keys() | stored.keys()):
        problem = _problem(name, own.get(name), stored.get(name))
        if problem:
            raise ArtifactError(f"The calibration {path} does not fit this network: {name} {problem}. {WAY_OUT}")
    for name, layer in quantized.layers().items():
        layer.set_weight_scales(stored[f"{name}.weight_delta"], stored[f"{name}.weight_zero_point"])
        if _is_learned(quantized, layer):
            layer.set_rounding(unpack(stored[f"{name}.rounded_up"], layer.layer.weight.shape))
    for name, quantizer in quantized.quantizers().items():
        quantizer.set_steps(*(stored[f"{name}.{key}"] for key in ("delta", "zero_point", "calibrated")))


def pack(bits: Tensor) -> Tensor:
    """A bool tensor as uint8 [ceil(n / 8)], eight values a byte."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy()))


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """What `pack` was given, of ``shape``."""
    bits = np.unpackbits(packed.cpu().numpy(), count=shape.numel())
    return torch.from_numpy(bits).bool().view(shape)


def _is_learned(quantized: QuantizedUNet, layer: QuantLayer) -> bool:
    return quantized.config.reconstruct != "none" and layer.weight_bits != OFF


def _fingerprint(quantized: QuantizedUNet, fingerprint: dict[str, Any]) -> dict[str, Any]:
    return {**fingerprint, "config": quantized.config.fingerprint(), "num_steps": quantized.context.num_steps}


def _problem(name: str, own: Tensor | None, stored: Tensor | None) -> str | None:
    if own is None:
        return "is in the file only"
    if stored is None:
        return "is missing from the file"
    if own.shape != stored.shape or own.dtype != stored.dtype:
        return f"is {stored.dtype} {list(stored.shape)} in the file and {own.dtype} {list(own.shape)} here"
    if not bool(torch.isfinite(stored).all()):
        return "holds NaN or infinity"
    if name.endswith("delta") and not bool((stored > 0).all()):
        return "holds a scale that is not positive"
    return None

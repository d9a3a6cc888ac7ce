"""A calibration as one file: safetensors, with what it was made from in the header."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iec.efficiency.quantization.model import QuantizedUNet
from iec.errors import ArtifactError
from iec.files import write_atomic

FORMAT = 1
KIND = "ptq"
WAY_OUT = "Delete the file, or calibrate again with this configuration."
SHOWN_DIFFERENCES = 8


def save_calibration(path: Path, quantized: QuantizedUNet, metadata: dict[str, Any]) -> None:
    """Write the activation rows and weight scales of ``quantized``. Raises `StoreError` when the file cannot be written.

    metadata: what they depend on, JSON values, e.g. ``{"model": sha256, "timetable": [[t, s], ..], "data": sha256}``. The config,
    format and kind are added, and the versions of torch and diffusers as a note that is not compared.
    """
    header = {
        **_identity(quantized, metadata),
        "made_with": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(quantized).items()}
    data = save(tensors, metadata={"iec": json.dumps(header, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data))


def load_calibration(path: Path, quantized: QuantizedUNet, expected: dict[str, Any]) -> None:
    """Fill ``quantized`` from a file written by `save_calibration` with the same ``metadata`` and config.

    Raises `ArtifactError`, and leaves ``quantized`` as it is, if the file is missing, damaged or was made from something else.
    """
    header, stored = _read(path)
    wanted = _identity(quantized, expected)
    differing = list(_differences({k: v for k, v in header.items() if k != "made_with"}, wanted))
    if differing:
        shown = "; ".join(differing[:SHOWN_DIFFERENCES])
        more = f"; and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
        raise ArtifactError(f"The calibration {path} was made from something else: {shown}{more}. {WAY_OUT}")
    own = _tensors(quantized)
    for name in sorted(own.keys() | stored.keys()):
        problem = _problem(name, own.get(name), stored.get(name))
        if problem:
            raise ArtifactError(f"The calibration {path} does not fit this network: {name} {problem}. {WAY_OUT}")
    for name, layer in quantized.layers().items():
        layer.set_weight_scales(stored[f"{name}.weight_delta"], stored[f"{name}.weight_zero_point"])
    for name, quantizer in quantized.quantizers().items():
        quantizer.set_rows(*(stored[f"{name}.{key}"] for key in ("delta", "zero_point", "calibrated")))


def _tensors(quantized: QuantizedUNet) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in quantized.layers().items():
        tensors[f"{name}.weight_delta"] = layer.weight_delta
        tensors[f"{name}.weight_zero_point"] = layer.weight_zero_point
    for name, quantizer in quantized.quantizers().items():
        tensors[f"{name}.delta"] = quantizer.delta
        tensors[f"{name}.zero_point"] = quantizer.zero_point
        tensors[f"{name}.calibrated"] = quantizer.calibrated
    return tensors


def _identity(quantized: QuantizedUNet, metadata: dict[str, Any]) -> dict[str, Any]:
    identity = {
        **metadata,
        "format": FORMAT,
        "kind": KIND,
        "config": asdict(quantized.config),
        "num_steps": quantized.context.num_steps,
    }
    return json.loads(json.dumps(identity))  # as it comes back from a file: tuples become lists


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ArtifactError(f"There is no calibration at {path}. Calibrate first, or give the path of an existing one.")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(json.loads((file.metadata() or {})["iec"]))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a complete calibration file ({error}). {WAY_OUT}") from error


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


def _differences(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """``config.weight_bits: stored 8, wanted 4`` for each leaf that differs."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            where = f"{path}.{key}" if path else key
            yield from _differences(stored.get(key, "nothing"), wanted.get(key, "nothing"), where)
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for i, (a, b) in enumerate(zip(stored, wanted, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif stored != wanted:
        yield f"{path}: stored {_short(stored)}, wanted {_short(wanted)}"


def _short(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Calibrations on disk: one safetensors file each, with all that it was made from in its header."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iec.errors import ArtifactError
from iec.io.files import canonical_hash, write_atomic

FORMAT = 2
WAY_OUT = "Delete the file, or calibrate again with this configuration."
SHOWN_DIFFERENCES = 8


def artifact_path(root: Path, kind: str, facts: dict[str, Any]) -> Path:
    """ROOT/KIND-HASH.safetensors, with the hash of all the facts, so that another model, timetable or option is another file."""
    return root / f"{kind}-{canonical_hash(facts)[:16]}.safetensors"


def save_artifact(path: Path, kind: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``tensors``. Raises `StoreError` when the file cannot be written.

    facts: what they depend on, JSON values, e.g. ``{"model": sha256, "timetable": [[t, s], ..], "config": {..}}``. The format, the
    kind and, as a note that is not compared, the versions of torch and diffusers are added.
    """
    header = {**_identity(kind, facts), "made_with": {"torch": torch.__version__, "diffusers": diffusers.__version__}}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(kept, metadata={"iec": json.dumps(header, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data))


def load_artifact(path: Path, kind: str, facts: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file written by `save_artifact` with the same kind and facts.

    Raises `ArtifactError` if it is missing, damaged or was made from something else; the message lists what differs.
    """
    header, stored = _read(path)
    differing = list(_differences({k: v for k, v in header.items() if k != "made_with"}, _identity(kind, facts)))
    if differing:
        shown = "; ".join(differing[:SHOWN_DIFFERENCES])
        more = f"; and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
        raise ArtifactError(f"The calibration {path} was made from something else: {shown}{more}. {WAY_OUT}")
    return stored


def _identity(kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({**facts, "format": FORMAT, "kind": kind}))  # as it comes back from a file: tuples become lists


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ArtifactError(f"There is no calibration at {path}. Calibrate first, or give the path of an existing one.")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(json.loads((file.metadata() or {})["iec"]))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a complete calibration file ({error}). {WAY_OUT}") from error


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

"""Calibrations on disk: one safetensors file each, with all that it was made from in its header."""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iec.errors import ArtifactError
from iec.io.files import as_stored, canonical_hash, write_atomic
from iec.io.locks import exclusive
from iec.io.paths import user_path

FORMAT = 2
HEADER = "iec"
"""The key of the header in the file's metadata."""
WAY_OUT = "Delete the file, or calibrate again with this configuration."
SHOWN_DIFFERENCES = 8


def artifact_path(root: Path, kind: str, fingerprint: dict[str, Any]) -> Path:
    """ROOT/KIND-HASH.safetensors, with the hash of the whole fingerprint: another model, timetable or option is another file."""
    return user_path(root) / f"{kind}-{canonical_hash(fingerprint)[:16]}.safetensors"


def cached(path: Path, kind: str, fingerprint: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the artefact ``path``, made and saved first where it is not there.

    Of the processes that need it at the same time one makes it, and the others wait and load it: a lock lies beside the file while
    it is made. What is there already is read without a lock, so that its folder may be read-only.
    Raises `ArtifactError` as `load_artifact` does, and `StoreError` where the file cannot be written, before ``make`` is called if
    the folder does not take the lock either.
    """
    if not path.exists():
        with exclusive(path.with_suffix(".lock"), f"making {path.name}"):
            if not path.exists():
                save_artifact(path, kind, fingerprint, make())
    return load_artifact(path, kind, fingerprint)


def save_artifact(path: Path, kind: str, fingerprint: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``tensors``. Raises `StoreError` when the file cannot be written.

    fingerprint: what they depend on, JSON values, e.g. ``{"model": sha256, "timetable": [[t, s], ..], "config": {..}}``. The
    format, the kind and, as a note that is not compared, the versions of torch and diffusers are added.
    """
    header = {**_identity(kind, fingerprint), "made_with": {"torch": torch.__version__, "diffusers": version("diffusers")}}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(kept, metadata={HEADER: json.dumps(header, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data))


def load_artifact(path: Path, kind: str, fingerprint: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file written by `save_artifact` with the same kind and fingerprint.

    Raises `ArtifactError` if it is missing, damaged or was made from something else; the message lists what differs.
    """
    header, stored = _read(path)
    differing = list(_differences({k: v for k, v in header.items() if k != "made_with"}, _identity(kind, fingerprint)))
    if differing:
        shown = "; ".join(differing[:SHOWN_DIFFERENCES])
        more = f"; and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
        raise ArtifactError(f"The calibration {path} was made from something else: {shown}{more}. {WAY_OUT}")
    return stored


def _identity(kind: str, fingerprint: dict[str, Any]) -> dict[str, Any]:
    return as_stored({**fingerprint, "format": FORMAT, "kind": kind})


def require_there(path: Path) -> None:
    """Raises `ArtifactError` where there is no file of a calibration."""
    if not path.is_file():
        raise ArtifactError(f"There is no calibration at {path}. Calibrate first, or give the path of an existing one.")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    require_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise ArtifactError(f"{path} is a safetensors file, but no calibration of this package. {WAY_OUT}")
            return dict(json.loads(metadata[HEADER])), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a complete calibration file ({error}). {WAY_OUT}") from error


def _differences(stored: Any, expected: Any, path: str = "") -> Iterator[str]:
    """``config.weight_bits: stored 8, expected 4`` for each leaf that differs."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        for key in sorted(stored.keys() | expected.keys()):
            where = f"{path}.{key}" if path else key
            yield from _differences(stored.get(key, "nothing"), expected.get(key, "nothing"), where)
    elif isinstance(stored, list) and isinstance(expected, list) and len(stored) == len(expected):
        for i, (a, b) in enumerate(zip(stored, expected, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif stored != expected:
        yield f"{path}: stored {_short(stored)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
